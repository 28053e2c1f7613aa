"""Images to study: Fashion-MNIST, from the package itself, from disk, or downloaded; checked whenever it is loaded."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, is_tensor, to_array
from fastcrit.errors import FileFormatError

__all__ = ["FASHION_MNIST_CLASSES", "LabelledImages", "fashion_mnist", "roll"]

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Where Debian's package dataset-fashion-mnist puts its files.
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_DOWNLOAD_FROM = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# sha256 of the uncompressed content, so that any recompression of the published files is good.
_FILES = {
    "train": {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    "test": {
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
# md5 of the published files, from the data set's README: what a download must match.
_PUBLISHED = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}
_SUBSET = Path(__file__).parent / "data_files" / "fashion-mnist-2000.npz"
_SUBSET_SHA256 = "c901f0dac875b64b97cae86455f2d2f595ca8b357a4ce7ea36d9bce0e39eeeb9"


@dataclass(frozen=True, eq=False, repr=False)
class LabelledImages:
    """Images uint8 (n, H, W), labels int64 (n,) and where they came from."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<LabelledImages: {len(self)} of {' x '.join(map(str, self.images.shape[1:]))}, from {self.source}>"

    def pixels(self) -> NDArray[np.float32]:
        """Images as float32 in [-1, 1]: value / 127.5 - 1, the scale that denoisers are trained on."""
        return self.images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def fashion_mnist(split: str = "subset", *, folder: str | os.PathLike[str] | None = None) -> LabelledImages:
    """Load Fashion-MNIST.

    Parameters
    ----------
    split : "subset", "train" or "test"
        The 2000 training images that ship with fastcrit (200 of each class), or the full sets of 60,000 and 10,000.
    folder : path, optional
        Where the full set's four .gz files lie. Left out, these are tried in turn: Debian's package
        dataset-fashion-mnist, $FASTCRIT_DATA, $FASTCRIT_DATA/fashion-mnist, and the cache, into which they are
        downloaded once.

    Raises
    ------
    FileNotFoundError
        ``folder`` lacks a file.
    FileFormatError
        A file is damaged or is another one; the message names it.
    OSError
        Nothing on disk and the download failed.
    ImportError
        The subset is asked for and Python was built without the module lzma.

    Notes
    -----
    Source: Xiao, Rasul and Vollgraf, arXiv:1708.07747; MIT licence.

    Examples
    --------
    >>> import fastcrit as fc
    >>> data = fc.data.fashion_mnist()
    >>> data.images.shape, float(data.pixels().min())
    ((2000, 28, 28), -1.0)
    """
    check_choice(split, ("subset", "train", "test"), "split")
    if split == "subset":
        return _load_subset(_SUBSET)
    paths = [_find(name, folder) for name in _FILES[split]]
    (_, images), (_, labels) = (
        (path, _read_idx(path, sha256)) for path, sha256 in zip(paths, _FILES[split].values(), strict=True)
    )
    return LabelledImages(images, labels.astype(np.int64), str(paths[0].parent))


def roll(images: NDArray[np.float32], step: int = 1, seed: int = 0) -> NDArray[np.float32]:
    """Images (n, H, W), each rolled along both axes by its own random multiple of ``step``: the data on a torus.

    A network that commutes with these shifts cannot tell the results apart; its samples lie anywhere, too.

    Raises
    ------
    ValueError
        Another shape.
    TypeError
        Masked values.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> rolled = fc.data.roll(np.eye(4, dtype=np.float32)[None], step=2)
    >>> float(rolled.sum())
    4.0
    """
    images = images if is_tensor(images) else to_array(images, "images")
    if images.ndim != 3:
        raise ValueError(f"images: expected shape (n, H, W), got {tuple(images.shape)}")
    rng = np.random.default_rng(seed)
    n, H, W = images.shape
    rows, columns = ((np.arange(side) + step * rng.integers(0, -(-side // step), (n, 1))) % side for side in (H, W))
    rolled: NDArray[np.float32] = images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return rolled


def _load_subset(path: Path) -> LabelledImages:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SUBSET_SHA256:
        raise FileFormatError(f"{path}: damaged: the checksum does not match; reinstall fastcrit")
    try:
        import_module("lzma")  # zipfile's own error does not say what to do
    except ImportError:
        raise ImportError(
            f"{path}: packed by LZMA, and this Python was built without the module lzma: use a Python built with"
            " liblzma, or fashion_mnist('train'), which does not need it",
            name="lzma",
        ) from None
    with np.load(io.BytesIO(content)) as file:
        images = np.ascontiguousarray(file["images"].transpose(2, 0, 1))  # stored as (y, x, n), which packs better
        return LabelledImages(images, file["labels"].astype(np.int64), "fastcrit's subset of 2000 training images")


def _find(name: str, folder: str | os.PathLike[str] | None) -> Path:
    if folder is not None:
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"folder: {path} does not exist")
        return path
    places = [_DEBIAN_FOLDER]
    given = os.environ.get("FASTCRIT_DATA", "")
    if given.strip():  # set to nothing is not set
        own = Path(given)
        places += [own, own / "fashion-mnist"]
    for place in places:
        if (place / name).is_file():
            return place / name
    return _download(name)


def _download(name: str) -> Path:
    import pooch

    cache = pooch.os_cache("fastcrit") / "fashion-mnist"
    try:
        found = pooch.retrieve(_DOWNLOAD_FROM + name, _PUBLISHED[name], fname=name, path=cache, progressbar=True)
    except Exception as error:
        raise OSError(
            f"{name}: not in {_DEBIAN_FOLDER} nor in $FASTCRIT_DATA, and the download failed ({error}). "
            "Install Debian's dataset-fashion-mnist, or set FASTCRIT_DATA to a folder that holds the file."
        ) from error
    return Path(found)


def _read_idx(path: Path, sha256: str) -> NDArray[np.uint8]:
    """A byte array in IDX format: 0, 0, type 8, number of axes, the sides as big-endian 32-bit integers, the data."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise FileFormatError(f"{path}: damaged, or not a gzip file ({error})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FileFormatError(
            f"{path}: not the Fashion-MNIST file of that name, or damaged: the checksum does not match"
        )
    axes = content[3]
    shape = np.frombuffer(content, ">i4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
