"""How fashion-mnist-2000.npz was made: 200 training images of each class, drawn with a fixed seed.

Run ``python fastcrit/data_files/make_subset.py`` where the full data set is to be had; it prints the checksum that
fastcrit/data.py expects.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from fastcrit.data import fashion_mnist

PER_CLASS = 200
SEED = 0


def main() -> None:
    """Write the subset beside this script."""
    full = fashion_mnist("train")
    rng = np.random.default_rng(SEED)
    chosen = np.concatenate(
        [np.sort(rng.choice(np.flatnonzero(full.labels == c), PER_CLASS, replace=False)) for c in range(10)]
    )
    chosen = np.sort(chosen)
    target = Path(__file__).with_name("fashion-mnist-2000.npz")
    arrays = {
        "images": full.images[chosen].transpose(1, 2, 0).copy(order="F"),
        "labels": full.labels[chosen].astype(np.uint8),
        "index": chosen.astype(np.int32),
    }
    # A sixth smaller than by savez_compressed: LZMA, and images (y, x, n) with neighbours in y side by side.
    with zipfile.ZipFile(target, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_LZMA)
    print(target.stat().st_size, "bytes, sha256", hashlib.sha256(target.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
