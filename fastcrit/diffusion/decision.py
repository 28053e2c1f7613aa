"""At which noise level the class of a sample is decided: two curves over s that need no guidance to be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from fastcrit._edge.arrays import check_integer, check_levels, to_tensor
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.forward_states import ForwardStates
from fastcrit.diffusion.retention import Retention
from fastcrit.diffusion.sample import sample

Floats = NDArray[np.float64]

__all__ = ["EntropyRate", "class_entropy_rate", "forward_backward"]


@dataclass(frozen=True)
class EntropyRate:
    r"""How fast the entropy of the class grows with the noise level.

    Attributes
    ----------
    levels : (levels,)
    samples : (levels, n)
        :math:`|D_y - D_\emptyset|^2/s^3` of every image, nats per unit of s.
    """

    levels: Floats
    samples: Floats

    @property
    def rate(self) -> Floats:
        """Mean over images: dH(Y | y_s)/ds, nats per unit of s."""
        return np.asarray(self.samples.mean(axis=1))

    @property
    def stderr(self) -> Floats:
        """Standard error of `rate`."""
        return np.asarray(self.samples.std(axis=1, ddof=1) / np.sqrt(self.samples.shape[1]))

    def interval(self, confidence: float = 0.95) -> tuple[Floats, Floats]:
        """Normal interval of `rate`, not below 0."""
        half = scipy.special.ndtri(0.5 + confidence / 2) * self.stderr
        return np.maximum(self.rate - half, 0.0), self.rate + half

    @property
    def peak(self) -> float:
        """Level of the most prominent interior maximum of s times `rate`, where the class is decided on the way back.

        NaN where none stands out by three standard errors. A network that is not quite the posterior's mean has
        s^-2 of its error besides, which rises towards low levels.
        """
        curve, error = self.rate * self.levels, self.stderr * self.levels
        at, found = scipy.signal.find_peaks(curve, prominence=0.0)
        prominence = found["prominences"]
        if not at.size or prominence.max() < 3.0 * error[at[prominence.argmax()]]:
            return float("nan")
        return float(self.levels[at[prominence.argmax()]])

    @property
    def integral(self) -> tuple[float, float]:
        """Entropy (nats) gained between the lowest and the highest level, and its standard error.

        The trapezoidal rule in log s. Over levels from where the state says which class it is to where it says nothing
        this is H(Y): log(classes) where all are equally frequent.
        """
        each = np.asarray(-np.trapezoid(self.samples * self.levels[:, None], np.log(self.levels), axis=0))
        return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def class_entropy_rate(
    D: Denoiser, images: Any, labels: Any, levels: Any, *, unlabelled: Denoiser | None = None, seed: int = 0,
    first_sample: int = 0, batch_size: int = 256, progress: bool = False,
) -> EntropyRate:  # fmt: skip
    r"""Rate :math:`dH(Y|y_s)/ds = E|D_y - D_\emptyset|^2 / s^3` at which noise takes away what is known of the class.

    Two evaluations an image and level, no sampling. It is largest per unit of log s (times s) where the class is
    decided on the way back.

    Parameters
    ----------
    D : Denoiser
        With classes.
    images : tensor or array (n, C, H, W)
        Data, in the network's scale.
    labels : (n,) of int
    levels : sequence of float
        Decreasing and positive.
    unlabelled : Denoiser, optional
        The unconditional network. Default: ``D`` itself, if it was trained without labels too.
    seed : int
        The noise of image j at a level is a function of ``seed``, j and the level.
    first_sample : int
        Number of the first image.
    batch_size : int
    progress : bool

    Raises
    ------
    ValueError
        Fewer than two images; a network without classes; none that works without labels; other shapes.

    Notes
    -----
    The I-MMSE relation (Guo, Shamai and Verdu, IEEE Trans. Inf. Theory 51, 1261 (2005), eq. 7) for I(x0; y) and for
    I(x0; y | Y), whose difference is I(Y; y).

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4))
    >>> model = fc.theory.GaussianMixture(means, std=0.3)
    >>> images, labels = model.sample_data(2000)
    >>> D = fc.diffusion.from_mixture(model)
    >>> found = fc.diffusion.class_entropy_rate(D, images, labels, fc.schedules.log_levels(30, high=80, low=0.1))
    >>> bool(abs(found.integral[0] / np.log(2) - 1) < 0.1)  # one bit
    True
    """
    x0, s = _checked(D, images, levels)
    without = D if unlabelled is None else unlabelled
    if not D.classes or not without.unlabelled:
        raise ValueError(f"D: expected a network that works with labels and one that works without, got {D}, {without}")
    targets = D.prepare_labels(labels, len(x0), "cpu")
    assert targets is not None
    found = np.empty((len(s), len(x0)))
    with torch.no_grad(), tqdm(total=len(s) * len(x0), disable=None if progress else True, unit="state") as bar:
        for begin in range(0, len(x0), batch_size):
            part = np.arange(begin, min(begin + batch_size, len(x0)))
            states = ForwardStates(x0, part, seed, first_sample, D.device)
            for i, level in enumerate(s.tolist()):
                y = states(level)
                difference = D(y, level, targets[part]) - without(y, level)
                found[i, part] = difference.double().square().flatten(1).sum(dim=1).cpu().numpy() / level**3
                bar.update(len(part))
    return EntropyRate(s, found)


def forward_backward(
    D: Denoiser, images: Any, classifier: Callable[[Tensor], Tensor], levels: Any, *, steps: int = 40,
    lowest: float = 0.02, solver: str = "euler", clones: int = 1, patch: int | None = None, seed: int = 0,
    first_sample: int = 0, batch_size: int = 256, progress: bool = False,
) -> Retention:  # fmt: skip
    r"""Noise images to each level, denoise them without labels, and ask whether they kept their class.

    The same run says how far the classifier's scores have turned; with ``clones`` how often two reverse runs from one
    noisy state end in one class; with ``patch`` how many patches change together. See `Retention`.

    Parameters
    ----------
    D : Denoiser
        That works without labels.
    images : tensor or array (n, C, H, W)
    classifier : callable
        ``f(images) -> scores (n, classes)``. The cosine is of these scores as they are: where all images share most of
        them, have the classifier return them standardised, as Sclocchi et al. do.
    levels : sequence of float
        Decreasing and positive.
    steps : int
        Of the solver from the highest of the levels to 0; a run from a lower level takes its share of them, 2 at least.
    lowest : float
        The level before 0.
    solver : str
        As in `sample`.
    clones : int
        Reverse runs from every noisy state, each with noise of its own, at so many times the cost. More than one needs
        ``solver="sde"``; an ODE brings them all to one result. Class, cosine and changes are of the first.
    patch : int, optional
        Side of square patches whose changes are followed, in sites; a divisor of both sides of an image.
    seed, first_sample : int
        As in `class_entropy_rate`.
    batch_size : int
        As in `sample`.
    progress : bool

    Raises
    ------
    ValueError
        Fewer than two images, a network that needs labels, ``lowest`` not below the levels, clones with a solver that
        adds no noise, a patch that does not tile the images.

    Notes
    -----
    Sources: Sclocchi, Favero and Wyart 2402.16991 (class, cosine); Biroli et al. 2402.18491 (cloning); Sclocchi et al.
    2410.13770 (susceptibility). Exact values for mixtures: `fastcrit.theory.GaussianMixture.agreement`.

    Examples
    --------
    >>> import numpy as np, torch, fastcrit as fc
    >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4))
    >>> model = fc.theory.GaussianMixture(means, std=0.3)
    >>> images, _ = model.sample_data(200)
    >>> D = fc.diffusion.from_mixture(model)
    >>> judge = lambda x: torch.from_numpy(model.posterior(x.numpy(), 0.0))
    >>> found = fc.diffusion.forward_backward(D, images, judge, [80.0, 0.5])
    >>> bool(abs(found.retained[0] - 0.5) < 0.15), float(found.retained[1])
    (True, 1.0)
    >>> found = fc.diffusion.forward_backward(D, images, judge, [80.0, 0.5], solver="sde", clones=2, patch=2)
    >>> bool(abs(found.agreement[0] - 0.5) < 0.15), float(found.agreement[1])
    (True, 1.0)
    >>> bool(found.susceptibility[0] > 3.5), bool(found.susceptibility[1] < 1.5)  # all four patches; each its own
    (True, True)
    """
    x0, s = _checked(D, images, levels)
    if not D.unlabelled:
        raise ValueError(f"D: expected a network that works without labels, got {D}")
    check_integer(steps, "steps", 2)
    if not 0 < lowest < s[-1]:
        raise ValueError(f"lowest: expected a positive level below {s[-1]:.6g}, the lowest of the levels, got {lowest}")
    if check_integer(clones, "clones", 1) > 1 and solver != "sde":
        raise ValueError(f'clones: expected 1 with solver={solver!r}, from which all end alike, or solver="sde"')
    if patch is not None and any(side % check_integer(patch, "patch", 1) for side in x0.shape[2:]):
        raise ValueError(f"patch: expected a divisor of both sides of images {tuple(x0.shape)}, got {patch}")
    x0 = x0.to(D.device or "cpu")
    scores = classifier(x0)
    shape = (len(s), len(x0))
    kept, cosines, agreements = np.empty((3, *shape))
    changes = None if patch is None else np.empty((*shape, x0.shape[2] // patch * (x0.shape[3] // patch)))
    seeds = [seed, *_seeds_of_clones(seed, clones - 1)]
    states = ForwardStates(x0, np.arange(len(x0)), seed, first_sample, D.device)
    with tqdm(total=len(s), disable=None if progress else True, unit="level") as bar:
        for i, level in enumerate(s.tolist()):
            own = max(2, round(steps * np.log(level / lowest) / np.log(s[0] / lowest)))
            path = np.append(np.geomspace(level, lowest, own), 0.0)
            noisy, ends = states(level), []
            for clone, own_seed in enumerate(seeds):
                back = sample(
                    D, n_samples=len(x0), levels=path, solver=solver, seed=own_seed, initial=noisy,
                    first_sample=first_sample, batch_size=batch_size,
                )  # fmt: skip
                after = classifier(back)
                ends.append(after.argmax(dim=1))
                if not clone:
                    cosines[i] = _cosine(scores, after)
                    if changes is not None and patch is not None:
                        changes[i] = _changes(x0, back, patch)
            kept[i] = (ends[0] == scores.argmax(dim=1)).cpu().numpy()
            pairs = [(one == other).cpu().numpy() for one, other in combinations(ends, 2)]
            agreements[i] = np.mean(pairs, axis=0) if pairs else np.nan
            bar.update()
    return Retention(s, kept, cosines, agreements if clones > 1 else None, changes)


def _seeds_of_clones(seed: int, clones: int) -> list[int]:
    """Seeds of reverse runs beyond the first, which has ``seed`` itself."""
    return [int(x) for x in np.random.SeedSequence(seed).generate_state(clones, np.uint64)]


def _cosine(before: Tensor, after: Tensor) -> Floats:
    cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=1)
    return np.asarray(cosine.detach().cpu().numpy())


def _changes(before: Tensor, after: Tensor, patch: int) -> Floats:
    """Mean squares of the difference (n, patches), over channels and the sites of each patch."""
    square = (after - before).double().square().mean(dim=1)
    return np.asarray(torch.nn.functional.avg_pool2d(square, patch).flatten(1).cpu().numpy())


def _checked(D: Denoiser, images: Any, levels: Any) -> tuple[Tensor, Floats]:
    if not isinstance(D, Denoiser):
        raise TypeError(f"D: expected a Denoiser, got {type(D).__name__}")
    x0 = to_tensor(images, "images").float()
    if x0.ndim != 4 or len(x0) < 2 or (D.shape is not None and tuple(x0.shape[1:]) != D.shape):
        raise ValueError(f"images: expected two or more of shape {D.shape or '(C, H, W)'}, got {tuple(x0.shape)}")
    if not bool(torch.isfinite(x0).all()):
        raise ValueError("images: NaN or infinite values")
    s = check_levels(levels)
    D.check_level(s[0])
    return x0, s
