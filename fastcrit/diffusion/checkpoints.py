"""Large models from disk: NVIDIA's pickles of EDM and EDM2; folders of diffusers are read in folders.py."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch

from fastcrit._edge.placement import usable_device
from fastcrit._edge.statefile import digest_of_files
from fastcrit.diffusion.adapters import from_edm
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.folders import load_diffusers
from fastcrit.diffusion.network import built_plainly
from fastcrit.errors import FileFormatError

# Image pixels to a latent pixel, along a side, of the encoders in NVIDIA's pickles, by the name of their class.
_ENCODERS = {"StandardRGBEncoder": 1, "StabilityVAEEncoder": 8}


def load_edm2(path: str | os.PathLike[str], *, trust_pickle: bool = False, device: str = "cpu") -> Denoiser:
    """The network under 'ema' of a pickle as EDM and EDM2 publish them.

    Parameters
    ----------
    path : path
        network-snapshot-*.pkl or edm2-*.pkl, on disk.
    trust_pickle : bool
        Unpickling runs whatever code the file brings: only with True, and only for files from someone you trust.
    device : str
        Where the network lives, as torch names it.

    Returns
    -------
    Denoiser
        ``data_std`` is the network's ``sigma_data``; ``card`` has the file's ``sha256`` and ``pixels_per_site``: 8 for
        latents of the Stability VAE, 1 for RGB, None where the file does not tell. ``decode`` is the encoder's.

    Raises
    ------
    ValueError
        ``trust_pickle`` is not True.
    FileNotFoundError
        No such file.
    FileFormatError
        It is no pickle, damaged, or holds no network under 'ema'.
    ModuleNotFoundError
        The pickle needs code that is not installed (EDM2's: its repository on PYTHONPATH).

    Examples
    --------
    >>> import fastcrit as fc
    >>> fc.diffusion.load_edm2("edm2-img512-xs.pkl")
    Traceback (most recent call last):
    ValueError: edm2: edm2-img512-xs.pkl is a pickle, and loading it runs any code that is in it; if you trust where it
    comes from, say so by --trust-pickle (trust_pickle=True)
    """
    return _pickled(path, "edm2", trust_pickle, device)


def _pickled(path: str | os.PathLike[str], argument: str, trust_pickle: bool, device: str) -> Denoiser:
    """The network of a pickle that came as this argument."""
    target = Path(path)
    if trust_pickle is not True:
        raise ValueError(
            f"{argument}: {path} is a pickle, and loading it runs any code that is in it; if you trust where it comes "
            "from, say so by --trust-pickle (trust_pickle=True)"
        )
    if not target.is_file():
        raise FileNotFoundError(f"{argument}: {target}: no such file")
    device = usable_device(device)
    try:
        with target.open("rb") as file, built_plainly():
            content = pickle.load(file)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{argument}: {target} needs the module {error.name} that its network was defined in; for EDM2, put its "
            "repository on PYTHONPATH",
            name=error.name,
        ) from error
    except Exception as error:  # whatever the code in a damaged pickle raises, the file is named
        raise FileFormatError(f"{argument}: {target}: damaged, or not a pickle ({error})") from error
    net = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(net, torch.nn.Module):
        held = f"a dict of {sorted(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise FileFormatError(f"{argument}: {target}: expected a dict with a network under 'ema', got {held}")
    D = from_edm(net.to(device).eval().requires_grad_(False))
    D.name, D.data_std = target.name, getattr(net, "sigma_data", None)
    encoder = content.get("encoder")
    known = 1 if encoder is None else _ENCODERS.get(type(encoder).__name__)
    D.card = {"sha256": digest_of_files([target]), "pixels_per_site": known}
    if known != 1 and callable(getattr(encoder, "decode", None)):
        D.decode = lambda y: encoder.decode(y).float() / 127.5 - 1.0  # from bytes
    return D


def load_pair(
    edm2: str | None, diffusers: str | None, guide: str | None, *, trust_pickle: bool, null_label: int | None,
    device: str,
) -> tuple[Denoiser, Denoiser | None]:  # fmt: skip
    """The denoiser of one of ``edm2`` and ``diffusers``, and where ``guide`` is given the one to lead away from."""
    if (edm2 is None) == (diffusers is None):
        raise ValueError(f"edm2, diffusers: expected one of them, got {edm2!r} and {diffusers!r}")
    if edm2 is not None:
        D = load_edm2(edm2, trust_pickle=trust_pickle, device=device)
    else:
        assert diffusers is not None
        D = load_diffusers(diffusers, null_label=null_label, device=device)
    return D, None if guide is None else _pickled(guide, "guide", trust_pickle, device)
