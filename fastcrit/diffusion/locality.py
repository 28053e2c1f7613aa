"""What a denoiser loses when it sees a window alone: the locality gap, resampled, cropped or as the user says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from fastcrit._edge.arrays import check_choice, check_integer, check_levels, to_numbers, to_tensor
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.sample import PhiloxNoise

Floats = NDArray[np.float64]

__all__ = ["LocalityGap", "locality_gap"]

METHODS = ("resampled", "cropped")
# Ends the key of the draws of sites.
_SITES = 7


@dataclass(frozen=True)
class LocalityGap:
    r"""Mean square change of the denoised image at a site when all beyond a window about it is taken away.

    Attributes
    ----------
    levels : (levels,)
    radii : (radii,)
        Windows have 2 r + 1 sites a side.
    samples : (levels, radii, n)
        :math:`|\Delta D|^2` of every image, averaged over its sites and channels: the state's units squared.
    method : str
        What stands for what is beyond: "resampled", "cropped", or the name of the function that was given. These are
        different quantities.
    """

    levels: Floats
    radii: NDArray[np.int64]
    samples: Floats = field(repr=False)
    method: str

    @property
    def gap(self) -> Floats:
        r""":math:`E|\Delta D|^2`, (levels, radii)."""
        return np.asarray(self.samples.mean(axis=-1))

    @property
    def stderr(self) -> Floats:
        """Standard error of `gap` over images; two that follow each other share one, and may be correlated."""
        apart = self.samples - self.gap[..., None]
        own = (apart**2).mean(axis=-1)
        shared = 2.0 * (apart * np.roll(apart, 1, axis=-1)).mean(axis=-1) if self.samples.shape[-1] > 2 else 0.0
        return np.asarray(np.sqrt((own + np.maximum(shared, 0.0)) / (self.samples.shape[-1] - 1)))

    @property
    def amplitude(self) -> Floats:
        r"""Root of `gap`: :math:`|\Delta D|` in the state's units."""
        return np.asarray(np.sqrt(self.gap))

    def interval(self, confidence: float = 0.95) -> tuple[Floats, Floats]:
        """Normal interval of `gap` over images, not below 0."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
        half = scipy.special.ndtri(0.5 + confidence / 2) * self.stderr
        return np.maximum(self.gap - half, 0.0), self.gap + half


def locality_gap(
    D: Denoiser, x0: Any, levels: Any, radii: Any, labels: Any = None, *,
    method: str | Callable[[Tensor, float, Tensor], Tensor] = "resampled", sites: int = 1, periodic: bool = True,
    seed: int = 0, first_sample: int = 0, batch_size: int = 256, progress: bool = False,
) -> LocalityGap:  # fmt: skip
    r"""Measure how much D at a site changes when it sees no more than a square window about it.

    On forward states y = x0 + s n, at sites that are drawn. An image and level take 1 evaluation, and one more for each
    site and radius.

    Parameters
    ----------
    D : Denoiser
    x0 : tensor or array (n, C, H, W)
        Images, in the network's scale, two or more. Or (n, C, L), (n, C, T, H, W), as D takes them.
    levels : sequence of float
        Decreasing and positive.
    radii : sequence of int
        Of the windows, 2 r + 1 sites a side; ascending.
    labels : optional
        As for D.
    method : "resampled", "cropped" or callable
        Beyond the window is the state of the next image at the same level; nothing, D being given the window alone, if
        it takes any shape; or what ``f(y, s, inside)`` makes of it, which returns denoised images of states (n, C, H,
        W) with windows ``inside`` (n, 1, H, W), of type bool: a regional posterior, say, whose gap is then the exact
        one.
    sites : int
        Sites of every image.
    periodic : bool
        Whether windows go on at the opposite edge. False cuts them at edges; a crop then takes sites whose windows
        are inside the image.
    seed, first_sample : int
        Sites and noise of image j follow from ``seed`` and first_sample + j, noise from the level, too.
    batch_size : int
    progress : bool

    Returns
    -------
    LocalityGap

    Raises
    ------
    ValueError
        Fewer than two images, or of another shape; NaN in them; levels or labels that D refuses; radii that are not
        ascending integers; a crop that D does not take or that is larger than the image; another method.
    FloatingPointError
        A denoised image is NaN or infinite.

    Notes
    -----
    The gap of an exact posterior mean, E|D_A(y) - D_A(y_AB)|^2 = mmse(A|y_AB) - mmse(A|y), needs the posterior of
    windows. What is resampled is not that: for Gaussian data it is 2 tr(W S W^T), with W the part of the filter beyond
    the window and S the covariance of the state there (`fastcrit.theory.GaussianTheory.locality_gap` has both). s times
    the gap's root in epsilon, and s/(1 + s) times that in a flow's velocity, are the same number.

    Examples
    --------
    >>> import fastcrit as fc
    >>> pair = fc.patch.Dictionary.binary(size=3, random=4, seed=1)
    >>> x0 = fc.patch.sample(pair, lattice=9, levels=[4.0, 1.0, 0.0], n_samples=4)[:, None]
    >>> found = fc.diffusion.locality_gap(fc.diffusion.from_patch(pair), x0, [2.0], [0, 1, 2])
    >>> (found.gap[0] > 0).tolist()  # nothing beyond the patch
    [True, False, False]
    """
    images, s = _checked_images(D, x0, levels)
    shape = tuple(int(n) for n in images.shape[2:])
    windows = _checked_radii(radii)
    check_integer(sites, "sites", 1)
    if not callable(method):
        check_choice(method, METHODS, "method")
    if method == "cropped":
        _check_crops(D, shape, int(windows[-1]))
    n = len(images)
    prepared = D.prepare_labels(labels, n, "cpu")
    found = np.zeros((len(s), len(windows), n))
    total = len(s) * len(windows) * n * sites
    with torch.no_grad(), tqdm(total=total, disable=None if progress else True, unit="state") as bar:
        for begin in range(0, n, batch_size):
            part = np.arange(begin, min(begin + batch_size, n))
            few = None if prepared is None else prepared[part]
            clean, other = (images[(part + step) % n].to(D.device or "cpu") for step in (0, 1))
            noise, others = (_Noise(seed, first_sample + (part + step) % n, clean) for step in (0, 1))
            margin = int(windows[-1]) if method == "cropped" and not periodic else 0
            centres = _draw(seed, first_sample + part, sites, shape, margin)
            for i, level in enumerate(s.tolist()):
                y, beyond = clean + level * noise(level), other + level * others(level)
                whole = D(y, level, few)
                _check_finite(whole, level, begin)
                for centre in centres:
                    for j, radius in enumerate(windows.tolist()):
                        inside = _window(centre, radius, shape, periodic).to(y.device)
                        if method == "cropped":
                            alone = _crop(D, y, level, few, centre, radius)
                        elif callable(method):
                            alone = _at(method(y, level, inside), centre)
                        else:
                            alone = _at(D(torch.where(inside, y, beyond), level, few), centre)
                        _check_finite(alone, level, begin)
                        change = (alone - _at(whole, centre)).double().square().mean(dim=1)
                        found[i, j, part] += change.cpu().numpy() / sites
                        bar.update(len(part))
    return LocalityGap(s, windows, found, method if isinstance(method, str) else getattr(method, "__name__", "given"))


class _Noise:
    """Noise of a level of samples with any numbers."""

    def __init__(self, seed: int, samples: NDArray[np.int64], like: Tensor) -> None:
        self._of_each = [PhiloxNoise(seed, range(j, j + 1), tuple(like.shape[1:]), like) for j in samples.tolist()]

    def __call__(self, level: float) -> Tensor:
        return torch.cat([noise(level) for noise in self._of_each])


def _draw(seed: int, samples: NDArray[np.int64], sites: int, shape: tuple[int, ...], margin: int) -> list[Tensor]:
    """``sites`` times one site (n, ndim) of every sample, at least ``margin`` from the edges."""
    drawn = [
        np.stack([np.random.default_rng([seed, j, axis, _SITES]).integers(margin, side - margin, sites)
                  for axis, side in enumerate(shape)], axis=-1)
        for j in samples.tolist()
    ]  # fmt: skip
    return list(torch.from_numpy(np.stack(drawn, axis=1)))


def _window(centre: Tensor, radius: int, shape: tuple[int, ...], periodic: bool) -> Tensor:
    """Whether sites are in the window of each state, (n, 1, *shape)."""
    inside = torch.ones(len(centre), 1, *shape, dtype=torch.bool)
    for axis, side in enumerate(shape):
        apart = (torch.arange(side)[None] - centre[:, axis, None]).abs()
        near = (torch.minimum(apart, side - apart) if periodic else apart) <= radius
        inside &= near.reshape(len(centre), 1, *(side if a == axis else 1 for a in range(len(shape))))
    return inside


def _check_finite(images: Tensor, s: float, first: int) -> None:
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(finite.all()):
        at = first + int((~finite).int().argmax())
        raise FloatingPointError(f"x0: the denoised image of image {at} at s = {s:.6g} is NaN or infinite")


def _at(fields: Tensor, centre: Tensor) -> Tensor:
    """Values (n, C) of fields (n, C, ..) at one site each."""
    flat = torch.zeros(len(fields), dtype=torch.int64)
    for axis, side in enumerate(fields.shape[2:]):
        flat = flat * side + centre[:, axis]
    at = flat.to(fields.device)[:, None, None].expand(-1, fields.shape[1], 1)
    return fields.flatten(2).gather(2, at)[:, :, 0]


def _crop(D: Denoiser, y: Tensor, s: float, labels: Tensor | None, centre: Tensor, radius: int) -> Tensor:
    """D of the windows alone, at their centres, (n, C)."""
    axes = tuple(range(1, y.ndim - 1))
    middle = [
        torch.roll(state, tuple(radius - int(x) for x in at), axes) for state, at in zip(y, centre, strict=True)
    ]  # fmt: skip
    side = 2 * radius + 1
    windows = torch.stack(middle)
    for axis in axes:
        windows = windows.narrow(axis + 1, 0, side)
    out = D(windows.contiguous(), s, labels).flatten(2)
    return out[:, :, out.shape[2] // 2]  # odd sides: the centre


def _checked_images(D: Denoiser, x0: Any, levels: Any) -> tuple[Tensor, Floats]:
    if not isinstance(D, Denoiser):
        raise TypeError(f"D: expected a Denoiser, got {type(D).__name__}")
    given = to_tensor(x0, "x0")
    images = given if given.dtype == torch.float64 else given.float()
    if images.ndim != D.ndim + 2 or len(images) < 2 or (D.shape is not None and tuple(images.shape[1:]) != D.shape):
        raise ValueError(f"x0: expected two images or more of shape {D.shape or '(C, H, W)'}, got {tuple(given.shape)}")
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(f"x0: NaN or infinite values in image {int((~finite).int().argmax())}")
    s = check_levels(levels)
    D.check_level(s[0])
    return images, s


def _checked_radii(radii: Any) -> NDArray[np.int64]:
    r = to_numbers(radii, "radii", "a sequence of integers")
    if r.ndim != 1 or not r.size or (r != np.rint(r)).any() or r[0] < 0 or (np.diff(r) <= 0).any():
        raise ValueError(f"radii: expected ascending integers of at least 0, got {radii!r}")
    return r.astype(np.int64)


def _check_crops(D: Denoiser, shape: tuple[int, ...], radius: int) -> None:
    if D.shape is not None:
        raise ValueError(f'method: expected "resampled" or a function, since {D.name} takes states of one shape alone')
    if 2 * radius + 1 > min(shape):
        raise ValueError(
            f"radii: expected at most {math.floor((min(shape) - 1) / 2)} for crops of images {shape}, got {radius}"
        )
