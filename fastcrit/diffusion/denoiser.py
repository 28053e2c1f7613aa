"""The denoiser D(y, s, labels) -> E[x0 | y] that all of fastcrit calls, in the scaled state y = x0 + s noise."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcrit._edge.arrays import check_integer, to_array, to_tensor
from fastcrit.diffusion.network import check_forgetful, device_of, dtype_of, training_mode, unwrapped

Level = float | Tensor


class Denoiser:
    """A denoiser D(y, s, labels): callable, with what is known of the network it wraps.

    Made by `from_edm`, `from_diffusers`, `from_epsilon`, `from_velocity`, `from_denoiser`, `from_patch`,
    `from_gaussian` and `from_mixture`.

    Attributes
    ----------
    shape : tuple of int or None
        (C, H, W) of a state, where the network or its adapter says so; (C, L) on a line, (C, T, H, W) of videos and
        volumes. None: any (C, H, W); states on lattices of one or three axes need a shape.
    ndim : int
        Number of lattice axes of a state: those of ``shape`` behind the channels, or 2.
    classes : int
        Number of classes that labels can name; 0: the network takes no labels.
    unlabelled : bool
        Whether ``labels=None`` is meaningful: a network without labels, or one trained with label dropout.
    highest : float
        Highest noise level the network was made for.
    device, dtype : torch.device or None, torch.dtype or None
        Where the network computes, and in which type: of its parameters, or what offloading and casting hooks bring
        them to.
    data_std : float or None
        Standard deviation of the data, where known.
    shift : int or None
        Where known: D commutes with periodic shifts by multiples of this many sites, and its samples lie anywhere.
    decode : callable or None
        Where states are latents: from those without noise (batch, C, H, W) to images (batch, 3, H, W) in [-1, 1].
    null_label : int or None
        The class that stands for "no label", where there is one.
    flow : str or None
        Of a flow-matching network, as what it was taken, in words: nothing in it says which time and sign it has, so
        `sample` looks whether its D depends on pure noise, and warns.
    card : dict
        How the network came about, where it was read with its card.

    Examples
    --------
    >>> import torch, fastcrit as fc
    >>> D = fc.diffusion.from_denoiser(lambda y, sigma: y / (1 + sigma[:, None, None, None] ** 2), shape=(1, 4, 4))
    >>> float(D(torch.ones(2, 1, 4, 4), 1.0)[0, 0, 0, 0])
    0.5

    On a line of 64 sites, with two channels:

    >>> line = fc.diffusion.from_denoiser(lambda y, sigma: y / (1 + sigma[:, None, None] ** 2), shape=(2, 64))
    >>> line.ndim, tuple(line(torch.ones(3, 2, 64), 1.0).shape)
    (1, (3, 2, 64))
    """

    def __init__(
        self,
        function: Callable[[Tensor, Level, Tensor | None], Tensor],
        *,
        name: str,
        shape: Sequence[int] | None = None,
        classes: int = 0,
        one_hot: bool = False,
        unlabelled: bool | None = None,
        highest: float = float("inf"),
        network: Any = None,
    ) -> None:
        self.name = name
        if shape is not None and (isinstance(shape, str) or not isinstance(shape, Sequence)):
            raise TypeError(f"shape: expected (C, H, W), got {shape!r}")
        self.shape = None if shape is None else tuple(operator.index(n) for n in shape)
        if self.shape is not None and (not 2 <= len(self.shape) <= 4 or min(self.shape) < 1):
            raise ValueError(f"shape: expected positive numbers (C, H, W), or (C, L), or (C, T, H, W), got {shape!r}")
        self.classes = check_integer(classes, "classes", 0)
        self.unlabelled = self.classes == 0 if unlabelled is None else bool(unlabelled)
        self.highest = float(highest)
        self.data_std: float | None = None
        self.shift: int | None = None
        self.decode: Callable[[Tensor], Tensor] | None = None
        self.null_label: int | None = None
        self.flow: str | None = None
        self.card: dict[str, Any] = {}
        self._given = network
        network = unwrapped(network)
        check_forgetful(network, name)
        self._network = network
        self._warned = training_mode(network, name)
        if self._warned is not None:
            warnings.warn(self._warned, stacklevel=3)
        # Ways of taking its derivatives that `mode_response` has held against differences.
        self.borne_out: set[str] = set()
        self.device = device_of(network)
        self.dtype = dtype_of(network)
        self._function = function
        self._one_hot = one_hot

    @property
    def ndim(self) -> int:
        """Number of lattice axes of a state."""
        return 2 if self.shape is None else len(self.shape) - 1

    def __repr__(self) -> str:
        shape = "any shape" if self.shape is None else " x ".join(map(str, self.shape))
        return f"<Denoiser: {self.name}, {shape}, {self.classes or 'no'} classes>"

    def __call__(self, y: Tensor, s: Level, labels: Any = None) -> Tensor:
        """D(y; s), of the shape, type and device of ``y``.

        Parameters
        ----------
        y : tensor (batch, C, H, W)
            States y = x0 + s noise; (batch, *shape) where ``shape`` is known.
        s : float or tensor (batch,)
            Noise level. A float costs no look at the device; a tensor may, where a schedule has to be inverted. Values
            are checked unless they lie on an accelerator.
        labels : int, sequence or tensor of int (batch,), or one-hot (batch, classes), optional

        Raises
        ------
        ValueError
            A state of another shape, a level that is not positive or above `highest`, labels where there are no
            classes, outside them or missing.
        TypeError
            No floating-point tensor.
        """
        self._check_state(y)
        batch = len(y)
        if isinstance(s, np.ndarray) and s.ndim:
            s = to_tensor(s, "s")
        if isinstance(s, Tensor):
            if s.shape not in ((), (batch,)):
                raise ValueError(f"s: expected a float or shape ({batch},), got {tuple(s.shape)}")
            if s.device.type == "cpu" and batch:
                self.check_level(s.min())
                self.check_level(s.max())
        else:
            s = self.check_level(s)
        prepared = self.prepare_labels(labels, batch, y.device)
        if not batch:
            return y.clone()
        D = self._function(y, s, prepared)
        # A copy: what a network returns may be a buffer that its next call overwrites, as of CUDA graphs.
        return D.to(y.dtype, copy=True)

    def check_mode(self) -> None:
        """UserWarning for a network that was put in training mode since this denoiser was made."""
        said = training_mode(self._network, self.name)
        if said is not None and said != self._warned:
            self._warned = said
            warnings.warn(said, stacklevel=4)

    def check_level(self, s: Any) -> float:
        """``s`` as a float, if this denoiser covers it; ValueError otherwise."""
        try:
            level = float(s)
        except (TypeError, ValueError):
            raise TypeError(f"s: expected a noise level, got {s!r}") from None
        if not 0.0 < level < float("inf"):
            raise ValueError(f"s: expected a positive noise level, got {s!r}")
        if level > self.highest * (1 + 1e-6):
            raise ValueError(f"s: {level:.6g} is above {self.highest:.6g}, the highest noise level of {self.name}")
        return level

    def prepare_labels(self, labels: Any, batch: int, device: torch.device | str = "cpu") -> Tensor | None:
        """Labels as the network takes them, on ``device``: class numbers, or one-hot rows; None stays None.

        Values are checked unless they already lie on an accelerator.
        """
        if labels is None:
            if not self.unlabelled:
                raise ValueError(
                    f"labels: {self.name} is conditional, and without labels it is not unconditional; pass labels "
                    "(or tell the adapter, unlabelled=True or null_label=.., if it was trained with label dropout)"
                )
            return None
        if self.classes == 0:
            raise ValueError(
                f"labels: {self.name} takes no labels, as far as its adapter was told; if the network does, pass the "
                "adapter classes="
            )
        if isinstance(labels, Tensor):
            given = labels
        else:
            array = to_array(labels, "labels")
            if array.dtype.kind not in "iuf":
                raise ValueError(f"labels: expected class numbers or one-hot rows, got {array.dtype} {array.shape}")
            given = torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
        if given.ndim == 2 and given.shape == (batch, self.classes) and given.dtype != torch.bool:
            rows = given.float()
            if self._one_hot:
                if rows.device.type == "cpu" and not torch.allclose(rows.sum(dim=1), rows.new_ones(batch)):
                    raise ValueError("labels: expected one-hot rows, or probabilities: every row has to sum to 1")
                return rows.to(device)
            if not bool(((rows == 1).sum(dim=1) == 1).all() and ((rows == 0).sum(dim=1) == self.classes - 1).all()):
                raise ValueError(f"labels: {self.name} takes class numbers; expected rows with a single 1 each")
            return rows.argmax(dim=1).to(device)
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(
                f"labels: expected class numbers, or one-hot rows ({batch}, {self.classes}), "
                f"got {given.dtype} {tuple(given.shape)}"
            )
        if given.ndim == 0:
            given = given.expand(batch)
        if given.shape != (batch,):
            raise ValueError(f"labels: expected one for each of {batch} states, got shape {tuple(given.shape)}")
        if given.device.type == "cpu" and batch and not 0 <= int(given.min()) <= int(given.max()) < self.classes:
            raise ValueError(
                f"labels: expected classes from 0 to {self.classes - 1}, got {int(given.min())} to {int(given.max())}"
            )
        numbers = given.to(device=device, dtype=torch.int64)
        return torch.nn.functional.one_hot(numbers, self.classes).float() if self._one_hot else numbers

    def _check_state(self, y: Tensor) -> None:
        if not isinstance(y, Tensor) or not y.is_floating_point():
            kind = f"{y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"y: expected a floating-point tensor (batch, C, H, W), got {kind}")
        if self.shape is not None and tuple(y.shape[1:]) != self.shape:
            raise ValueError(f"y: {self.name} takes states of shape (batch, *{self.shape}), got {tuple(y.shape)}")
        if y.ndim != 4 and self.shape is None:
            raise ValueError(
                f"y: expected states (batch, C, H, W), got shape {tuple(y.shape)}; of other lattices tell the "
                "adapter the shape, as shape=(C, L) or shape=(C, T, H, W)"
            )
        if self.device is not None and y.device != self.device:
            raise ValueError(f"y: {self.name} is on {self.device}, the states are on {y.device}")


def _column(s: Level, y: Tensor, ndim: int | None = None) -> Tensor:
    """Noise levels that broadcast against states."""
    if isinstance(s, Tensor):
        return s.to(y).reshape(-1, *(1,) * ((ndim or y.ndim) - 1))
    return torch.full((1,) * (ndim or y.ndim), s, device=y.device, dtype=y.dtype)
