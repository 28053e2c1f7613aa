"""The Gaussian model, the null case: data with a known spectrum, whose denoiser, trajectories and gains are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_integer, check_levels, check_positive, to_numbers, to_real
from fastcrit._estimates.dispersion import dispersion_length
from fastcrit._estimates.response_function import ResponseFunction, exact_response
from fastcrit._kernels.lattice import Lattice
from fastcrit._kernels.lattice import lattice as lattice_tables
from fastcrit.theory.gaussian_window import exact_gap, region_information, resampled_gap, window_filter
from fastcrit.theory.regions import SIGNS, region, seen_by_four

if TYPE_CHECKING:
    from fastcrit.observe import Recorder

Floats = NDArray[np.float64]


class GaussianTheory:
    r"""Data N(0, P(k)) on a periodic lattice.

    D is the Wiener filter P/(P + s^2), the gain is g_k = P/(P + s^2) < 1, and the state's structure factor is
    P(k) + s^2 at every level, along the ODE and the SDE alike. There is no transition at any level.

    Parameters
    ----------
    spectrum : array (N1, .., Nd)
        P(k) on the full lattice in the layout of `numpy.fft.fftn`, non-negative and even under k -> -k.

    Raises
    ------
    ValueError
        Negative, non-finite or uneven spectra.

    Examples
    --------
    >>> import fastcrit as fc
    >>> model = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16)
    >>> float(model.gain([0.0, 0.0], 2.0))  # P(0) = xi^2 = 4 = s^2
    0.5
    """

    def __init__(self, spectrum: Any) -> None:
        P = np.array(to_real(spectrum, "spectrum"), dtype=np.float64)  # a copy: the caller may go on with theirs
        if not 1 <= P.ndim <= 3 or P.size == 0:
            raise ValueError(f"spectrum: expected 1 to 3 axes, got shape {P.shape}")
        if not np.isfinite(P).all() or (P < 0).any():
            raise ValueError("spectrum: expected finite values >= 0")
        mirrored = np.roll(np.flip(P), 1, axis=tuple(range(P.ndim)))
        if not np.allclose(P, mirrored, rtol=1e-9, atol=0):
            raise ValueError("spectrum: expected P(k) = P(-k), as real fields have")
        self.spectrum = P
        self._half = P[..., : P.shape[-1] // 2 + 1]

    @classmethod
    def ornstein_zernike(cls, xi: float, lattice: int | tuple[int, ...], *, ndim: int = 2) -> GaussianTheory:
        r"""P = 1 / (xi^-2 + k^2), with lattice momentum k^2 = sum_i 4 sin^2(k_i/2); ``xi`` in sites."""
        check_positive(xi, "xi")
        shape = (lattice,) * ndim if isinstance(lattice, int) else tuple(lattice)
        axes = [4.0 * np.sin(np.pi * np.fft.fftfreq(side)) ** 2 for side in shape]
        return cls(1.0 / (xi**-2 + sum(np.meshgrid(*axes, indexing="ij"))))

    @property
    def lattice(self) -> Lattice:
        """Mode tables of the lattice."""
        return lattice_tables(self.spectrum.shape)

    def sample_data(self, n: int, seed: int = 0, dtype: Any = np.float64) -> Any:
        """``n`` exact fields (n, N1 .. Nd); ValueError for n below 1."""
        check_integer(n, "n", 1)
        return self._filter(_normal(seed, (n, *self.spectrum.shape)), np.sqrt(self._half)).astype(dtype)

    def denoise(self, y: Any, s: float) -> Any:
        """D(y; s) = E[x0 | y] for states (..., N1 .. Nd)."""
        array = to_real(y, "y")
        s = check_positive(s, "s")
        if not np.isfinite(array).all():
            raise ValueError("y: expected finite values, got NaN or Inf")
        return self._filter(array, self._half / (self._half + s**2)).astype(array.dtype)

    def gain(self, k: Any, s: float) -> Any:
        """g_k = P/(P + s^2) for wavevectors ``k`` (..., d), rad per site, that are modes of the lattice."""
        k = to_numbers(k, "k")
        sides = np.array(self.spectrum.shape)
        if k.ndim < 1 or k.shape[-1] != sides.size:
            raise ValueError(f"k: expected wavevectors of shape (..., {sides.size}), got {k.shape}")
        n = k * sides / (2.0 * np.pi)
        if not np.isfinite(k).all() or (np.abs(n - np.rint(n)) > 1e-6).any():
            raise ValueError(f"k: not a mode of the {self.spectrum.shape} lattice: its wavenumbers are 2 pi n / L")
        P = self.spectrum[tuple(np.moveaxis(np.rint(n).astype(int) % sides, -1, 0))]
        return P / (P + s**2)

    def shell_gain(self, s: float) -> Floats:
        """Mean gain of every shell below the Nyquist wavenumber."""
        grid = self.lattice
        gain = np.moveaxis(self._half / (self._half + s**2), -1, 0).ravel()
        weights = grid.half_weights * gain
        sums = np.asarray(np.bincount(grid.orbit_of_mode, weights, minlength=len(grid.orbit_k)), dtype=np.float64)
        return grid.to_shells(sums)[: grid.shells_below_nyquist] / grid.shell_modes[: grid.shells_below_nyquist]

    def response_function(self, s: float) -> ResponseFunction:
        r"""G(r), the inverse transform of the gain, exactly; the same at every state.

        For P = A/(kappa^2 + k^2) with the lattice momentum k^2 of `ornstein_zernike` the response length is
        :math:`1/\sqrt{\kappa^2 + A/s^2}`, as long as it is short beside the lattice.

        Parameters
        ----------
        s : float
            Noise level.

        Returns
        -------
        ResponseFunction
            As `fastcrit.response_function` measures it.

        Raises
        ------
        ValueError
            A level that is not positive.

        Examples
        --------
        >>> import fastcrit as fc
        >>> model = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=32)
        >>> round(model.response_function(2.0).length, 3)  # 1/sqrt(1/4 + 1/4)
        1.414
        """
        axes = tuple(range(self.spectrum.ndim))
        gain = self._half / (self._half + check_positive(s, "s") ** 2)
        G = scipy.fft.irfftn(gain, s=self.spectrum.shape, axes=axes)
        return exact_response(self.lattice, s, G[None, None, None], G[None] ** 2)

    def window_filter(self, s: float, radius: int) -> Floats:
        r"""The best filter of a window: w (N1 .. Nd) with :math:`E[x_0 | y_W] = \sum_r w_r y_r`, 0 beyond it.

        Windows have 2 ``radius`` + 1 sites a side. ValueError for a level that is not positive or a negative radius.
        """
        return window_filter(self.spectrum, check_positive(s, "s"), check_integer(radius, "radius", 0))

    def locality_gap(self, s: float, radius: int, *, method: str = "exact") -> float:
        r"""Mean square change of D at a site when it sees a window of 2 ``radius`` + 1 sites a side alone.

        Parameters
        ----------
        s : float
            Noise level.
        radius : int
        method : "exact" or "resampled"
            mmse given the window less mmse given all, by the windowed Wiener filter; or the state beyond the window
            replaced by another sample's, 2 tr(W S W^T), as `fastcrit.diffusion.locality_gap` measures it.

        Raises
        ------
        ValueError
            A level that is not positive, a negative radius, another method.

        Examples
        --------
        >>> import fastcrit as fc
        >>> model = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16)
        >>> model.locality_gap(1.0, 1) < 0.1 * model.locality_gap(1.0, 0)
        True
        """
        s, radius = check_positive(s, "s"), check_integer(radius, "radius", 0)
        check_choice(method, ("exact", "resampled"), "method")
        return (exact_gap if method == "exact" else resampled_gap)(self.spectrum, s, radius)

    def information(self, s: float, inside: Any = None) -> float:
        r"""I(x0; y) in nats, and of a region I(x_R; y_R): :math:`\frac12 \log\det(1 + C_{RR}/s^2)`.

        Parameters
        ----------
        s : float
            Noise level, positive.
        inside : array (N1 .. Nd) of bool, optional
            The region; default: all.

        Raises
        ------
        ValueError
            A level that is not positive; a region that is not bools of the lattice's shape.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> model = fc.theory.GaussianTheory(np.ones((4, 4)))  # white: half of log(1 + 1/s^2) a site
        >>> round(model.information(1.0), 3)  # 8 log 2
        5.545
        """
        s, seen = check_positive(s, "s"), region(inside, self.spectrum.shape)
        if seen.all():
            return float(0.5 * np.log1p(self.spectrum / s**2).sum())
        return region_information(self.spectrum, s, seen)

    def conditional_information(self, s: float, A: Any, C: Any, B: Any = None) -> float:
        """I(y_A; y_C | y_B) in nats: what A tells of C beyond what lies between them.

        Parameters
        ----------
        s : float
            Noise level, positive.
        A, C : array (N1 .. Nd) of bool
        B : array (N1 .. Nd) of bool, optional
            Default: what A and C leave.

        Raises
        ------
        ValueError
            A level that is not positive; regions that are not bools of the lattice's shape, share sites or have none.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> model = fc.theory.GaussianTheory.ornstein_zernike(xi=3.0, lattice=12)
        >>> x = np.arange(144).reshape(12, 12) % 12
        >>> near, far = (model.conditional_information(1.0, A=x < 4, C=(x >= 4 + b) & (x < 12 - b)) for b in (1, 3))
        >>> bool(near > 10 * far > 0)
        True
        """
        s, seen = check_positive(s, "s"), seen_by_four(A, C, B, self.spectrum.shape)
        return float(sum(SIGNS[name] * self.information(s, mask) for name, mask in seen.items()))

    def xi_eq(self, s: float) -> float:
        """Equilibrium correlation length from the exact gains of the lowest four shells, in sites."""
        gain = self.shell_gain(s)
        return float(dispersion_length(self.lattice.shell_k2[: gain.size], gain))

    def sample(
        self,
        levels: Any,
        n_samples: int,
        *,
        solver: str = "ode",
        seed: int = 0,
        recorder: Recorder | None = None,
        dtype: Any = np.float64,
    ) -> Any:
        """States at levels[-1], each level reached by the exact solution of the ODE or the exact posterior of the SDE.

        Starts from the exact marginal N(0, P + s^2) at levels[0]. The recorder sees every level, and the exact gains.
        """
        levels = check_levels(levels, allow_zero_end=True)
        check_choice(solver, ("ode", "sde"), "solver")
        if recorder is not None and not (
            recorder.levels.shape == levels.shape and np.allclose(recorder.levels, levels, rtol=1e-12, atol=0)
        ):
            raise ValueError(f"recorder: expected one made for the {levels.size} sampling levels, got {recorder!r}")
        P = self._half
        y = self._filter(_normal(seed, (n_samples, *self.spectrum.shape)), np.sqrt(P + levels[0] ** 2))
        for i, s in enumerate(levels):
            if i > 0:
                before = levels[i - 1]
                shrink = (P + s**2) / (P + before**2)
                if solver == "ode":
                    y = self._filter(y, np.sqrt(shrink))
                else:
                    noise = _normal((seed, i), y.shape)
                    y = self._filter(y, shrink) + self._filter(noise, np.sqrt(shrink * (before**2 - s**2)))
            if recorder is not None:
                denoised = self._filter(y, P / (P + s**2)) if s > 0 else y
                recorder.update(i, y.astype(dtype), denoised=denoised.astype(dtype))
                if recorder.gain_shells:
                    gain = self.shell_gain(float(s))[list(recorder.gain_shells)]
                    recorder.update_gain(i, np.broadcast_to(gain, (n_samples, gain.size)))
        return y.astype(dtype)

    def _filter(self, y: Any, response: Floats) -> Any:
        axes = tuple(range(-self.spectrum.ndim, 0))
        if y.shape[-self.spectrum.ndim :] != self.spectrum.shape:
            raise ValueError(f"y: expected shape (..., {self.spectrum.shape}), got {y.shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            filtered = scipy.fft.irfftn(scipy.fft.rfftn(y, axes=axes) * response, s=self.spectrum.shape, axes=axes)
        if not np.isfinite(filtered).all():
            raise OverflowError(f"y: its transform exceeds the range of {y.dtype}; rescale it")
        return filtered


def _normal(seed: Any, shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)
