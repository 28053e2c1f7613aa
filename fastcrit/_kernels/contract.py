"""What sums over samples are, wherever an array lies: `Sums`, which numpy arrays and tensors on a device have alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]

# A field is mostly uniform where it is so many times the range of its values: 30 standard deviations or so.
HEAVY = 4.0


@dataclass(frozen=True)
class Trend:
    """What detrending subtracts: the least-squares combination of the columns of ``design`` (sites, columns)."""

    design: Floats
    solve: Floats  # (columns, sites): coefficients from a field

    @classmethod
    def of(cls, kind: str, shape: tuple[int, ...]) -> Trend:
        """The mean ("constant") or the plane ("linear")."""
        columns = [np.ones(shape)]
        if kind == "linear":
            columns += list(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
        design = np.stack([c.ravel() for c in columns], axis=1)
        # A side of one site gives a column of zeros; the pseudo-inverse leaves its slope at zero.
        return cls(design, np.asarray(np.linalg.pinv(design), np.float64))


@dataclass(frozen=True)
class Averages:
    """Averages over the samples of an ensemble (n, .., lattice), of which there are ``fields`` side by side.

    Attributes
    ----------
    means : tensor, shape (2, .., shells)
        Mean of ``|phi^|^2 / N`` over the first shells' modes and all samples, unbiased, and its standard error.
    square, variance : array, shape (fields,)
        Mean square of the first sample, or of all where each is less its own mean; and of the centred fields.
    sums : callable
        Gives sums over samples as `Sums.mode_sums` does: power (blocks, fields, orbits) and first (blocks, fields,
        ndim). Waits for the device.
    computed : dtype
        The type in which fields were computed.
    """

    means: Any
    square: Floats
    variance: Floats
    sums: Callable[[], tuple[Floats, Floats]]
    computed: Any


class Sums(Protocol):
    """Sums over the samples of arrays of one lattice. NaN, Inf and overflow are errors that name the field."""

    def shell_power(
        self, fields: Any, shells: int, trend: Trend | None, taper: Floats | None, lead: tuple[int, ...]
    ) -> Any:
        """(fields, shells): mean of |phi^|^2 / N over each shell, of the kind and dtype of ``fields``."""

    def shell_power_unchecked(
        self, fields: Any, shells: int, trend: Trend | None, taper: Floats | None, lead: tuple[int, ...]
    ) -> tuple[Any, Callable[[], None]]:
        """The same without waiting for a device, and what waits for it and refuses what is not finite."""

    def mode_sums(self, samples: Any, center: str, blocks: int, name: str) -> tuple[Floats, Floats, Floats]:
        """Sums over samples, centred as in `structure_factor`.

        (blocks, orbits): |phi^|^2 / N over the orbit's modes; (blocks, ndim): the same at 2 pi / L of each axis;
        (2, shells): shell means of the first sample, and squares of all samples' less these, all blocks together.
        Sample j is in block j mod ``blocks``. Fields whose squares leave the range of float32 are measured in float64.
        """

    def averages(self, samples: Any, center: str, blocks: int, shells: int) -> Averages | None:
        """Averages over samples on a device, in a few launches and one wait.

        None where no kernels do that, and where float32 holds too few digits of a field, or it is not finite: what
        `mode_sums` is for.
        """

    def lag_sums(self, samples: Any, center: str, padded: Lattice, pairs: Floats) -> tuple[Floats, Floats]:
        """(lags,) and (2, lags): sum over samples of C(r) for the shells of ``pairs`` lag vectors; squares of it.

        The squares are as those of `mode_sums`. Fields are padded with zeros to the sides of ``padded``.
        """

    def first_modes(self, samples: Any, name: str) -> Floats:
        """(1 + 2 ndim, samples): sum, then re and im of phi^ at 2 pi / L of each axis."""

    def signs(self, samples: Any, name: str) -> Any:
        """The sign of every site of finite fields as +1 (also for 0) or -1."""


class Squares:
    """Squares of what samples (count, columns) have, less what the first of all has, summed: digits of small scatter.

    Arrays or tensors. ``array`` (2, columns): the first sample's and the sums.
    """

    array: Any = None

    def add(self, values: Any) -> None:
        """Add samples; the first that comes is the first of all."""
        if self.array is None:
            self.array = values[[0, 0]]
            self.array[1] = 0.0
        self.array[1] += ((values - self.array[0]) ** 2).sum(0)
