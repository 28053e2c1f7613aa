"""Nats that noisy images tell of the image, of its class, and that one region tells of another: by I-MMSE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from fastcrit._estimates.information import InformationCurve, LevelWindow, first_above, level_window, where_above
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.forward_states import ForwardStates, check_denoised, check_returned, checked_images
from fastcrit.theory.regions import seen_by_four

Floats = NDArray[np.float64]
Regional = Callable[..., Tensor]

__all__ = ["Information", "InformationCurve", "LevelWindow", "information"]


@dataclass(frozen=True)
class Information:
    """What noisy images tell, in nats over noise levels.

    Attributes
    ----------
    levels : (levels,)
    image : InformationCurve
        I(x0; y), of the whole image.
    classes : InformationCurve or None
        I(class; y), where labels were given and the network works without them, too.
    window, window_classes : InformationCurve or None
        The same of B: I(x_B; y_B), I(class; y_B).
    conditional : InformationCurve or None
        I(y_A; y_C | y_B): what A tells of C beyond what lies between them.
    entropy : float
        Of the labels, nats; NaN without.
    regional : str
        What the denoisers of regions were: "resampled", or the name of the function; empty without regions.
    """

    levels: Floats
    image: InformationCurve
    classes: InformationCurve | None
    window: InformationCurve | None
    window_classes: InformationCurve | None
    conditional: InformationCurve | None
    entropy: float
    regional: str

    @property
    def biased_below(self) -> float:
        """The highest level at which the nats about the class are a network's error, by two standard errors.

        There they exceed `entropy`, or a tenth of them is not borne out by errors against the images
        (`InformationCurve.bias`). From there down the curves mean nothing. NaN where neither shows.
        """
        if self.classes is None:
            return float("nan")
        value, stderr = self.classes.value, self.classes.stderr
        wrong = value - 2 * stderr > self.entropy
        wrong |= np.abs(self.classes.bias) - 2 * self.classes.bias_stderr > 0.1 * np.abs(value)
        return float(self.levels[wrong.argmax()]) if wrong.any() else float("nan")

    def nonlocality(self, delta: float = 0.01, seed: int = 0) -> LevelWindow:
        """Levels between which A tells more than ``delta`` nats of C beyond B: context matters there.

        Raises
        ------
        ValueError
            No regions were given; ``delta`` that is not positive.
        """
        if self.conditional is None:
            raise ValueError("A, C: expected regions in the call of information, got none")
        _check_delta(delta)
        return level_window([self.conditional.each], lambda v: where_above(self.levels, v[0], delta), seed)

    def speciation(self, delta: float = 0.01, seed: int = 0) -> LevelWindow:
        """Levels between which B has lost more than ``delta`` nats of the class, and the whole still has more.

        What is lost counts from the lowest level on, which has to be one where all of the class is known.

        There the class is decided by what no window sees. It contains `nonlocality` of the same ``delta`` where given
        the class A and C are independent: I(A; C | B) <= H(class | B), and <= I(class; ABC).

        Raises
        ------
        ValueError
            No regions or no labels were given; ``delta`` that is not positive.
        """
        if self.classes is None or self.window_classes is None:
            raise ValueError("labels, A, C: expected labels and regions in the call of information")
        _check_delta(delta)

        def ends(values: list[Floats]) -> tuple[float, float]:
            whole, lost = values
            return first_above(self.levels[::-1], lost[::-1], delta), first_above(self.levels, whole, delta)

        return level_window([self.classes.each, self.window_classes.lost], ends, seed)


def information(
    D: Denoiser, x0: Any, levels: Any, labels: Any = None, *, A: Any = None, C: Any = None, B: Any = None,
    regional: str | Regional = "resampled", unlabelled: Denoiser | None = None, seed: int = 0, first_sample: int = 0,
    batch_size: int = 256, progress: bool = False,
) -> Information:  # fmt: skip
    r"""Measure what noisy images tell of the image and of its class, and, with regions, what A tells of C beyond B.

    On forward states y = x0 + s n, by I-MMSE integrals from high noise down; the highest level has to be one at which
    the state tells next to nothing. Costs an evaluation an image and level, one more for labels, and for regions three
    more, one where A, B and C are not everything, and one where there are labels, too.

    Parameters
    ----------
    D : Denoiser
    x0 : tensor or array (n, C, H, W)
        Images, in the network's scale, two or more.
    levels : sequence of float
        Decreasing and positive.
    labels : (n,) of int, optional
        For the information about the class.
    A, C, B : array (H, W) of bool, optional
        Regions that share no site; B is by default what A and C leave. Masks that hold for every image.
    regional : callable or "resampled"
        ``f(y, s, inside, labels)``: denoised images of states (n, C, H, W) of which the sites ``inside`` (n, 1, H, W)
        alone are seen; labels are None, or of each state. Or D itself, of states whose sites outside are the next
        image's at the same level: then numbers of regions are an index of nonlocality, and no information.
    unlabelled : Denoiser, optional
        The unconditional network. Default: ``D`` itself, if it was trained without labels too.
    seed, first_sample : int
        Noise of image j follows from ``seed``, first_sample + j and the level.
    batch_size : int
    progress : bool

    Returns
    -------
    Information

    Raises
    ------
    ValueError
        Images, levels or labels that are refused as by `locality_gap`; A without C; regions that are not bools (H, W),
        share sites or have none; another ``regional``, or one whose images are not of the states' shape; no network
        that works without labels.
    TypeError
        No Denoiser; a regional function that returns no tensor.
    FloatingPointError
        A denoised image is NaN or infinite.

    Notes
    -----
    .. math:: I(x_R; y_R) = \int_s^\infty \frac{\mathrm{mmse}_R}{s'^3} ds', \quad
              I(c; y) = \int_s^\infty \frac{E|D_c - D_\emptyset|^2}{s'^3} ds'

    (Guo, Shamai and Verdu, IEEE Trans. Inf. Theory 51, 1261 (2005)), and I(A; C|B) from the errors of four regional
    denoisers with the signs AB + BC - B - ABC. Of posterior means differences of errors are squares of differences of
    the denoised images, and less noisy, so these are taken:

    .. math:: |D_{AB} - D_{ABC}|^2_{AB} + |D_{BC} - D_{ABC}|^2_C - |D_B - D_{BC}|^2_B

    over the sites of the regions named last. All holds for posterior means. A network's own error e adds e^2/s^3 to
    the rates, which rises without bound towards low noise; how much of it the images' errors show is
    `InformationCurve.bias`. Exact values:
    `fastcrit.theory.GaussianMixture.conditional_information`, `fastcrit.theory.GaussianTheory.conditional_information`.
    Window definitions after Liu et al., Breakdown of Local Denoising as Semantic Speciation (2026), in our notation.

    Examples
    --------
    >>> import numpy as np, torch, fastcrit as fc
    >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 8, 8))
    >>> model = fc.theory.GaussianMixture(means, std=1.0)
    >>> x0, labels = model.sample_data(1000)
    >>> D, levels = fc.diffusion.from_mixture(model), fc.schedules.log_levels(30, high=80, low=0.3)
    >>> site = np.arange(64).reshape(8, 8)
    >>> regional = lambda y, s, inside, labels: torch.from_numpy(model.denoise(y, s, inside, labels))
    >>> found = fc.diffusion.information(D, x0, levels, labels, A=site < 8, C=site >= 24, regional=regional)
    >>> bool(abs(found.classes.value[-1] / np.log(2) - 1) < 0.05)  # one bit
    True
    >>> found.speciation(0.02).contains(found.nonlocality(0.02))
    True
    """
    images, s = checked_images(D, x0, levels)
    n = len(images)
    if unlabelled is not None and not isinstance(unlabelled, Denoiser):
        raise TypeError(f"unlabelled: expected a Denoiser or None, got {type(unlabelled).__name__}")
    seen = _checked_regions(A, C, B, regional, tuple(int(side) for side in images.shape[2:]))
    without = D if unlabelled is None else unlabelled
    targets = None if labels is None else D.prepare_labels(labels, n, "cpu")
    if not without.unlabelled:
        raise ValueError(f"D: expected a network that works without labels, too, or unlabelled=, got {without}")
    kinds = ["image", *(["classes"] if targets is not None else [])]
    if seen:
        kinds += ["window", "conditional", *(["window_classes"] if targets is not None else [])]
    found = {kind: np.empty((2, len(s), n)) for kind in kinds}
    with torch.no_grad(), tqdm(total=len(s) * n, disable=None if progress else True, unit="state") as bar:
        for begin in range(0, n, batch_size):
            part = np.arange(begin, min(begin + batch_size, n))
            few = None if targets is None else targets[part]
            own, next_ones = (ForwardStates(images, (part + k) % n, seed, first_sample, D.device) for k in (0, 1))
            for i, level in enumerate(s.tolist()):
                y = own(level)
                beyond = next_ones(level) if seen and not callable(regional) else y

                def denoise(inside: Tensor | None, labels: Tensor | None, y: Tensor = y, level: float = level,
                            beyond: Tensor = beyond, begin: int = begin) -> Tensor:  # fmt: skip
                    """D of what is inside, or of all; in float64."""
                    network = D if labels is not None else without
                    if inside is None:
                        out = network(y, level, labels)
                    elif callable(regional):
                        out = regional(y, level, inside.to(y.device).expand(len(y), 1, *inside.shape), labels)
                        check_returned(out, y, "regional")
                    else:
                        out = network(torch.where(inside.to(y.device), y, beyond), level, labels)
                    check_denoised(out, level, begin)
                    return out.double()

                for kind, both in _changes(denoise, own.clean, few, seen).items():
                    for row, values in zip(found[kind], both, strict=True):
                        row[i, part] = np.nan if values is None else values.cpu().numpy()
                bar.update(len(part))
    curves = {
        kind: InformationCurve(s, changes, None if kind in ("image", "window") else excess)
        for kind, (changes, excess) in found.items()
    }
    named = "" if not seen else regional if isinstance(regional, str) else getattr(regional, "__name__", "given")
    return Information(
        s, curves["image"], curves.get("classes"), curves.get("window"), curves.get("window_classes"),
        curves.get("conditional"), _entropy(targets), named,
    )  # fmt: skip


def _entropy(targets: Tensor | None) -> float:
    """Of the classes as often as they occur, nats; NaN for none. Labels are numbers, or one-hot rows."""
    if targets is None:
        return float("nan")
    numbers = targets if targets.ndim == 1 else targets.argmax(dim=1)
    return float(torch.special.entr(torch.bincount(numbers).double() / len(numbers)).sum())


def _changes(
    denoise: Callable[[Tensor | None, Tensor | None], Tensor], clean: Tensor, labels: Tensor | None,
    seen: dict[str, Tensor],
) -> dict[str, tuple[Tensor, Tensor | None]]:  # fmt: skip
    """For each curve its squares (n,) and their excess over errors, of one batch at one level."""
    whole = denoise(None, None)
    found: dict[str, tuple[Tensor, Tensor | None]] = {"image": (_square(whole - clean), None)}
    if labels is not None:
        found["classes"] = _fall(clean, whole, denoise(None, labels))
    if not seen:
        return found
    four = {name: whole if mask.all() else denoise(mask, None) for name, mask in seen.items()}
    A, B, C = seen["ABC"] & ~seen["BC"], seen["B"], seen["ABC"] & ~seen["AB"]
    parts = [
        (1, _fall(clean, four["AB"], four["ABC"], A | B)),
        (1, _fall(clean, four["BC"], four["ABC"], C)),
        (-1, _fall(clean, four["B"], four["BC"], B)),
    ]
    changes, excess = (torch.stack([sign * part[k] for sign, part in parts]).sum(dim=0) for k in (0, 1))
    found["conditional"] = (changes, excess)
    found["window"] = (_square(four["B"] - clean, B), None)
    if labels is not None:
        found["window_classes"] = _fall(clean, four["B"], denoise(B, labels), B)
    return found


def _fall(clean: Tensor, less: Tensor, more: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """|less - more|^2 (n,), by which the error falls where more is known, and its excess over that fall."""
    change = _square(more - less, inside)
    return change, change - (_square(less - clean, inside) - _square(more - clean, inside))


def _square(change: Tensor, inside: Tensor | None = None) -> Tensor:
    """Sums (n,) over channels, and sites inside."""
    square = change.double().square()
    return (square if inside is None else square * inside.to(square.device)).flatten(1).sum(dim=1)


def _checked_regions(A: Any, C: Any, B: Any, regional: Any, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Masks of what the four denoisers see; none without regions."""
    if not callable(regional) and regional != "resampled":
        raise ValueError(f'regional: expected "resampled" or a function, got {regional!r}')
    if A is None and C is None and B is None:
        return {}
    if A is None or C is None:
        raise ValueError("A, C: expected both regions, or none")
    return {name: torch.from_numpy(mask) for name, mask in seen_by_four(A, C, B, shape).items()}


def _check_delta(delta: float) -> None:
    if not delta > 0:
        raise ValueError(f"delta: expected a positive number of nats, got {delta!r}")
