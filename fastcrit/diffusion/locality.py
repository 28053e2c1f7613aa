"""What a denoiser loses when it sees a window alone: the locality gap, resampled, cropped, masked or by any rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from fastcrit._edge.arrays import check_choice, check_integer, to_numbers
from fastcrit._estimates.averages import neighbours_error
from fastcrit.diffusion.attention_windows import windows_of
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.forward_states import ForwardStates, check_denoised, check_returned, checked_images
from fastcrit.theory.regions import near_along

Floats = NDArray[np.float64]

__all__ = ["LocalityGap", "locality_gap"]

METHODS = ("resampled", "cropped", "masked")
# Ends the key of the draws of sites.
_SITES = 7


@dataclass(frozen=True)
class LocalityGap:
    r"""Mean square change of the denoised image at a site when all beyond a window about it is taken away.

    Attributes
    ----------
    levels : (levels,)
    radii : (radii,)
        Windows have 2 r + 1 sites a side; of "masked", tokens.
    samples : (levels, radii, n)
        :math:`|\Delta D|^2` of every image, averaged over its sites and channels: the state's units squared.
    method : str
        What stands for what is beyond: "resampled", "cropped", "masked", or the name of the function that was given.
        These are different quantities.
    reach : (radii,) or None
        Of "masked": sites each way within which anything can matter, since windows compound over blocks.
    """

    levels: Floats
    radii: NDArray[np.int64]
    samples: Floats = field(repr=False)
    method: str
    reach: NDArray[np.int64] | None = None

    @property
    def gap(self) -> Floats:
        r""":math:`E|\Delta D|^2`, (levels, radii)."""
        return np.asarray(self.samples.mean(axis=-1))

    @property
    def stderr(self) -> Floats:
        """Standard error of `gap` over images; two that follow each other share one, and may be correlated."""
        return neighbours_error(self.samples)

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
    site and radius; "masked" one more for each radius.

    Parameters
    ----------
    D : Denoiser
    x0 : tensor or array (n, C, H, W)
        Images, in the network's scale, two or more. Or (n, C, L), (n, C, T, H, W), as D takes them.
    levels : sequence of float
        Decreasing and positive.
    radii : sequence of int
        Of the windows, 2 r + 1 sites a side; ascending. Of "masked": tokens a side.
    labels : optional
        As for D.
    method : "resampled", "cropped", "masked" or callable
        Beyond the window is the state of the next image at the same level; nothing, D being given the window alone, if
        it takes any shape; what the blocks of a transformer of diffusers pass on whose tokens attend to those of a
        window about them (`attention_window`), which is no window but reaches radius times blocks; or what
        ``f(y, s, inside)`` makes of it, which returns denoised images of states (n, C, H, W) with windows ``inside``
        (n, 1, H, W), of type bool: a regional posterior, say, whose gap is then the exact one.
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
        ascending integers; a crop that D does not take or that is larger than the image; another method, or a function
        whose images are not of the states' shape; attention that ignores the mask, and what else `attention_window`
        refuses.
    TypeError
        No Denoiser; "masked" of a network without attention windows; a function that returns no tensor.
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
    images, s = checked_images(D, x0, levels)
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
    total = len(s) * len(windows) * n * (1 if method == "masked" else sites)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        attention = stack.enter_context(windows_of(D, periodic=periodic)) if method == "masked" else None
        bar = stack.enter_context(tqdm(total=total, disable=None if progress else True, unit="state"))
        for begin in range(0, n, batch_size):
            part = np.arange(begin, min(begin + batch_size, n))
            few = None if prepared is None else prepared[part]
            own, next_ones = (ForwardStates(images, (part + k) % n, seed, first_sample, D.device) for k in (0, 1))
            margin = int(windows[-1]) if method == "cropped" and not periodic else 0
            centres = _draw(seed, first_sample + part, sites, shape, margin)
            for i, level in enumerate(s.tolist()):
                y = own(level)
                beyond = next_ones(level) if method == "resampled" else y
                whole = D(y, level, few)
                check_denoised(whole, level, begin)
                for j, radius in enumerate(windows.tolist()):
                    masked = None
                    if attention is not None:  # one evaluation has every site's window
                        bar.set_description(str(attention.window(radius)))
                        attention.see(radius)
                        masked = D(y, level, few)
                        attention.see(None)
                        check_denoised(masked, level, begin)
                        bar.update(len(part))
                    for centre in centres:
                        if masked is not None:
                            alone = _at(masked, centre)
                        elif method == "cropped":
                            alone = _crop(D, y, level, few, centre, radius)
                        else:
                            inside = _window(centre, radius, shape, periodic).to(y.device)
                            if callable(method):
                                given = method(y, level, inside)
                                check_returned(given, y, "method")
                                alone = _at(given, centre)
                            else:
                                alone = _at(D(torch.where(inside, y, beyond), level, few), centre)
                        check_denoised(alone, level, begin)
                        change = (alone - _at(whole, centre)).double().square().mean(dim=1)
                        found[i, j, part] += change.cpu().numpy() / sites
                        bar.update(0 if masked is not None else len(part))
    name = method if isinstance(method, str) else getattr(method, "__name__", "given")
    reach = None if attention is None else np.array([attention.window(r).reach_sites for r in windows.tolist()])
    return LocalityGap(s, windows, found, name, reach)


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
        near = torch.from_numpy(near_along(side, radius, periodic))[centre[:, axis]]
        inside &= near.reshape(len(centre), 1, *(side if a == axis else 1 for a in range(len(shape))))
    return inside


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
