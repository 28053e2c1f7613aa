"""Networks by name: those that ship with fastcrit, and those that `fastcrit train` left on disk."""

from __future__ import annotations

import os
from pathlib import Path

from fastcrit._edge.placement import usable_device
from fastcrit._edge.statefile import digest_of_files
from fastcrit.diffusion.adapters import from_edm
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.train import load_net

_FOLDER = Path(__file__).parent.parent / "data_files"
# Padding and training seed. Their cards say how each was made and how good it is.
SHIPPED = ("circular-0", "circular-1", "zeros-0", "zeros-1")


def pretrained(name: str | os.PathLike[str] = "circular-0", device: str = "cpu") -> Denoiser:
    """A denoiser of Fashion-MNIST (pixels in [-1, 1]), with and without labels: shipped, or a file of `save_net`.

    Parameters
    ----------
    name : str or path
        One of `SHIPPED` (the padding and the training seed), or a net.safetensors that `fastcrit train` made.

    device : str
        Where the network lives, as torch names it.

    Returns
    -------
    Denoiser
        ``card`` says how the network was trained, and how good it is; ``card["sha256"]`` is the file's.

    Raises
    ------
    FileNotFoundError
        Neither a shipped network nor a file.
    FileFormatError
        The file is damaged or is no network.

    Examples
    --------
    >>> import fastcrit as fc
    >>> D = fc.diffusion.pretrained("circular-0")
    >>> D.shape, D.classes, D.card["training"]["seed"]
    ((1, 28, 28), 10, 0)
    """
    path = _FOLDER / f"fashion-mnist-{name}.safetensors" if name in SHIPPED else Path(name)
    if not path.is_file():
        if name in SHIPPED:
            raise FileNotFoundError(f"net: {path}, which ships with fastcrit, is missing; reinstall fastcrit")
        raise FileNotFoundError(f"net: {name} is neither one of {', '.join(SHIPPED)} nor a file")
    device = usable_device(device)
    net, card = load_net(path)
    dropout = (card.get("training") or {}).get("label_dropout", 0.0)
    D = from_edm(net.to(device), unlabelled=net.config.classes == 0 or dropout > 0)
    D.name = str(name) if name in SHIPPED else path.name
    D.data_std = net.config.data_std
    D.shift = net.config.shift
    D.card = {**card, "sha256": digest_of_files([path])}
    return D
