"""What every implementation of the spectra must do: one class, run for the C++ core, for torch and for CUDA kernels.

A module that collects it has a fixture ``backend``: see tests/test_devices.py and tests/gpu/test_cuda.py. Needs numpy,
scipy, torch and pytest only.
"""

from __future__ import annotations

import pickle
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit import _core
from fastcrit._edge import arrays as _arrays
from fastcrit._kernels import device as torch_spectra
from fastcrit._kernels.lattice import lattice, selection
from tests.oracles import spectra as oracle

# Relative to the mean power of the field, as in test_spectra.py. Half types are computed in float32; the oracle reads
# the rounded values, so their own rounding is no part of the error.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-5, "bfloat16": 2e-5}
DTYPES = list(TOLERANCE)

# One site, odd, prime, long, not square; the squares that the fused kernel knows; 3 dimensions.
SHAPES = [
    (1,), (7,), (64,), (101,), (9, 6), (13, 29), (2, 40), (17, 17), (12, 12), (16, 16), (32, 32), (64, 64), (128, 128),
    (5, 6, 7), (8, 8, 8), (4, 1, 6),
]  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """An implementation: numpy arrays (``device`` None) or tensors there, by ``kind`` of spectrometer."""

    device: torch.device | None
    kind: type | None = None

    def array(self, values, dtype):
        """``values`` as this backend takes them, and what they are once rounded to ``dtype``, in float64."""
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))
        exact = tensor.double().numpy()
        if self.device is not None:
            return tensor.to(self.device), exact
        return (tensor.float() if dtype == "bfloat16" else tensor).numpy(), exact

    def power(self, fields, bins, offset=None, selected=None):
        shape = tuple(fields.shape[1:])
        if self.device is not None:
            found = self.kind(shape, self.device).power(fields, bins, offset, selected)
        else:
            fields = _arrays.to_real(fields, "fields")
            chosen = None if selected is None else selection(shape, selected)
            found = lattice(shape).core.power(fields, bins, offset, chosen)
        return tuple(host(x) for x in found)

    def autocorrelation(self, fields, offset=None):
        shape = tuple(fields.shape[1:])
        if self.device is not None:
            return host(self.kind(shape, self.device).autocorrelation(fields, offset))
        return lattice(shape).core.autocorrelation(_arrays.to_real(fields, "fields"), offset)

    def first_modes(self, fields):
        shape = tuple(fields.shape[1:])
        if self.device is not None:
            return host(self.kind(shape, self.device).first_modes(fields))
        fields = _arrays.to_real(fields, "fields")
        out = np.empty((1 + 2 * len(shape), len(fields)))
        lattice(shape).core.first_modes(fields, out)
        return out


def host(x):
    return x.double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def state_of(rec):
    return {name: host(values) for name, values in rec.state.items()}


@contextmanager
def in_use(backend, monkeypatch):
    """Public functions and recorders compute by this backend."""
    before = list(_arrays.TENSOR_DEVICES)
    try:
        if backend.device is not None:
            _arrays.TENSOR_DEVICES[:] = [backend.device.type]
            made = lru_cache(backend.kind)  # the tables once for every shape, as in use
            monkeypatch.setattr(torch_spectra, "spectrometer", made)
        yield backend
    finally:
        _arrays.TENSOR_DEVICES[:] = before


def kernels_on_the_host():
    return getattr(_core, "cuda_compiled", False) and _core.cuda_host


class SpectraContract:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_power_and_selected_modes_are_those_of_the_direct_transform(self, backend, shape, dtype, rng):
        grid = lattice(shape)
        fields, exact = backend.array(rng.standard_normal((3, *shape)), dtype)
        selected = tuple(sorted({0, len(grid.orbit_of_mode) // 2, len(grid.orbit_of_mode) - 1}))
        shells, none = backend.power(fields, "shells")
        orbits, modes = backend.power(fields, "orbits", selected=selected)
        assert none.size == 0
        assert modes.shape == (3, len(selected), 2)
        for j, field in enumerate(exact):
            full = oracle.direct_dft(field)
            scale = np.mean(field**2)
            _, means, counts = oracle.shell_average(np.abs(full) ** 2 / field.size, corners=True)
            # A shell's sum has `counts` modes, each with an error of the mean power's size times the tolerance.
            assert np.abs(shells[j] / counts - means).max() <= TOLERANCE[dtype] * scale
            half = np.moveaxis(full[..., : shape[-1] // 2 + 1], -1, 0).ravel()
            power = grid.half_weights * np.abs(half) ** 2 / field.size
            by_orbit = np.bincount(grid.orbit_of_mode, power, len(grid.orbit_k))
            assert (np.abs(orbits[j] - by_orbit) / grid.orbit_modes).max() <= TOLERANCE[dtype] * scale
            found = modes[j, :, 0] + 1j * modes[j, :, 1]
            # |phi^| is sqrt(N power), and its relative error at most that of the power.
            assert np.abs(found - half[list(selected)]).max() <= TOLERANCE[dtype] * np.sqrt(scale) * field.size**0.5

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("shape", [(16, 16), (10, 9)])
    def test_an_offset_is_taken_from_every_field(self, backend, shape, dtype, rng):
        values, offset = rng.standard_normal((4, *shape)), 3.0 + rng.standard_normal(shape)
        fields, exact = backend.array(values, dtype)
        less, exact_less = backend.array(offset, dtype)
        plain, exact_plain = backend.array(exact - exact_less, "float64")
        del exact_plain
        for bins in ("orbits", "shells"):
            found, expected = backend.power(fields, bins, less)[0], backend.power(plain, bins)[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * expected.max())
        found, expected = backend.autocorrelation(fields, less), backend.autocorrelation(plain)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())

    @pytest.mark.parametrize("count", [1, 31, 33, 10_000])
    @pytest.mark.parametrize("shape", [(16, 16), (7, 5)])
    def test_the_size_of_the_batch_changes_nothing(self, backend, shape, count, rng):
        fields, exact = backend.array(rng.standard_normal((count, *shape)), "float32")
        found, _ = backend.power(fields, "orbits")
        some = np.unique(np.linspace(0, count - 1, 20).astype(int))
        expected, _ = Backend(None).power(exact[some], "orbits")
        np.testing.assert_allclose(found[some], expected, rtol=0, atol=TOLERANCE["float32"] * expected.max())
        assert np.isfinite(found).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_views_that_are_not_contiguous(self, backend, dtype, rng):
        base, _ = backend.array(rng.standard_normal((32, 16, 12)), dtype)
        view = base[::2, :, 1::3].swapaxes(0, 2)  # (4, 16, 16) with strides of its own
        copy = view.clone() if backend.device is not None else view.copy()
        # Not to the bit: a reduction may take its steps along the memory.
        for found, expected in (
            (fc.power_spectrum(view).power, fc.power_spectrum(copy).power),
            (fc.structure_factor(view).S, fc.structure_factor(copy).S),
        ):
            np.testing.assert_allclose(
                host(found), host(expected), rtol=0, atol=TOLERANCE[dtype] * host(expected).max()
            )

    @pytest.mark.parametrize("shape", [(16, 16), (7, 5)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_fields_that_begin_anywhere_in_memory(self, backend, shape, dtype, rng):
        base, _ = backend.array(rng.standard_normal(1 + 6 * shape[0] * shape[1]), dtype)
        fields = base[1:].reshape(6, *shape)
        copy = fields.clone() if backend.device is not None else fields.copy()
        for found, expected in (
            (backend.power(fields, "orbits")[0], backend.power(copy, "orbits")[0]),
            (backend.first_modes(fields), backend.first_modes(copy)),
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())

    @pytest.mark.parametrize("shape", [(16,), (9,), (8, 8), (7, 10), (16, 16), (4, 5, 6)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_autocorrelation_sums_over_pairs(self, backend, shape, dtype, rng):
        fields, exact = backend.array(rng.standard_normal((2, *shape)), dtype)
        sums = backend.autocorrelation(fields)
        grid = lattice(shape)
        for j, field in enumerate(exact):
            C = oracle.autocorrelation(field)[1]
            found = sums[j, : len(C)] / grid.lag_pairs[: len(C)]
            assert np.abs(found - C).max() <= TOLERANCE[dtype] * np.mean(field**2)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_first_modes(self, backend, shape, dtype, rng):
        fields, exact = backend.array(rng.standard_normal((5, *shape)) + 2.0, dtype)
        found = backend.first_modes(fields)
        for j, field in enumerate(exact):
            full = oracle.direct_dft(field)
            at = [full[tuple(int(a == b) % side for b, side in enumerate(shape))] for a in range(len(shape))]
            expected = [field.sum(), *(part for mode in at for part in (mode.real, mode.imag))]
            # A sum of N values of size m has errors of eps N m at the most.
            tolerance = 1e-12 if dtype == "float64" else 1e-6
            assert np.abs(found[:, j] - expected).max() <= tolerance * np.abs(field).sum()

    @pytest.mark.parametrize("shape", [(16, 16), (12, 10), (6, 5, 4)])
    def test_the_same_bits_every_time(self, backend, shape, rng):
        fields, _ = backend.array(rng.standard_normal((300, *shape)), "float32")
        runs = []
        for _ in range(2):
            rec = fc.Recorder([1.0], shape=shape, ndim=len(shape), binarized=True, device=backend.device)
            rec.update(0, fields)
            runs.append([*backend.power(fields, "shells"), backend.autocorrelation(fields), *state_of(rec).values()])
        for a, b in zip(*runs, strict=True):
            np.testing.assert_array_equal(a, b)


class PublicContract:
    @pytest.mark.parametrize("shape", [(16, 16), (9, 14)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_functions_agree_with_the_core_in_float64(self, backend, shape, dtype, rng):
        fields, exact = backend.array(rng.standard_normal((40, 2, *shape)) + rng.standard_normal(shape), dtype)
        atol = TOLERANCE[dtype] * np.mean(exact**2)
        for corners in (False, True):
            for options in ({}, {"detrend": "linear"}, {"window": "hann"}):
                a, b = (fc.power_spectrum(x, corners=corners, **options) for x in (fields, exact))
                # A plane is fitted in float64 and taken away in float32, a window multiplied: a few eps of the field.
                np.testing.assert_allclose(host(a.power), b.power, rtol=0, atol=2 * atol)
                np.testing.assert_array_equal(host(a.counts), b.counts)
                np.testing.assert_array_equal(host(a.k), b.k)
        for center in ("ensemble", "sample", "none"):
            a, b = (fc.structure_factor(x, center=center) for x in (fields, exact))
            np.testing.assert_allclose(host(a.S), b.S, rtol=0, atol=atol)
            np.testing.assert_allclose(host(a.stderr), b.stderr, rtol=0, atol=atol)
            for periodic in (True, False):
                a, b = (fc.autocorrelation(x, center=center, periodic=periodic) for x in (fields, exact))
                np.testing.assert_allclose(host(a.C), b.C, rtol=0, atol=atol)
                np.testing.assert_allclose(host(a.stderr), b.stderr, rtol=0, atol=atol)

    @pytest.mark.parametrize("shape", [(16, 16), (12, 10), (11, 7)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_spectrum_that_is_checked_later(self, backend, shape, dtype, rng):
        values = rng.standard_normal((3, 4, *shape))
        values[1, 2] = 0.0
        fields, _ = backend.array(values, dtype)
        now, later = (fc.power_spectrum(fields, check=when) for when in ("now", "deferred"))
        later.check()
        for a, b in ((now.power, later.power), (now.k, later.k), (now.counts, later.counts)):
            np.testing.assert_array_equal(host(a), host(b))
        twin = pickle.loads(pickle.dumps(later))
        np.testing.assert_array_equal(host(twin.k), host(now.k))
        tapered = fc.power_spectrum(fields, check="deferred", window="hann", detrend="linear")
        tapered.check()
        assert np.isfinite(host(tapered.power)).all()
        for wrong, message in ((np.nan, "NaN in the field"), (np.inf, "infinite value in the field")):
            values[2, 1, 3, 2] = wrong
            fields, _ = backend.array(values, dtype)
            with pytest.raises(ValueError, match=rf"{message} at index \(2, 1\)"):
                fc.power_spectrum(fields, check="deferred").check()
        with pytest.raises(ValueError, match="check: expected one of 'now', 'deferred', got 'never'"):
            fc.power_spectrum(fields, check="never")

    def test_results_are_where_the_fields_are(self, backend, rng):
        fields, _ = backend.array(rng.standard_normal((6, 2, 8, 8)), "float32")
        s, S, C = fc.power_spectrum(fields), fc.structure_factor(fields), fc.autocorrelation(fields)
        for x in (s.k, s.power, s.counts, S.k, S.S, S.stderr, S.counts, C.r, C.C, C.stderr, C.counts):
            assert getattr(x, "device", None) == backend.device if backend.device else isinstance(x, np.ndarray)
        assert str(s.power.dtype).endswith("float32")

    @pytest.mark.parametrize("method", fc.METHODS)
    def test_lengths_agree_with_the_core(self, backend, method, rng):
        y = rng.standard_normal((200, 2, 16, 16))
        fields, exact = backend.array(y + np.roll(y, 1, -1) + np.roll(y, 1, -2) + np.roll(y, 2, -1), "float32")
        a, b = (fc.correlation_length(x, method=method) for x in (fields, exact))
        # The fit converges to about 1e-6 of the length, from sums that differ by float32's rounding.
        np.testing.assert_allclose(a.value, b.value, rtol=1e-4)
        np.testing.assert_allclose(a.stderr, b.stderr, rtol=1e-3)
        assert a.flags == b.flags

    @pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "infinite value")])
    def test_the_field_with_nan_or_inf_is_named(self, backend, value, word, rng):
        y = rng.standard_normal((300, 3, 8, 8))
        y[217, 2, 1, 5] = value
        fields, _ = backend.array(y, "float32")
        with pytest.raises(ValueError, match=rf"field: {word} in the field at index \(217, 2\)"):
            fc.power_spectrum(fields)
        for center in ("ensemble", "none"):
            for function in (fc.structure_factor, fc.autocorrelation):
                with pytest.raises(ValueError, match=f"field: {word} in the field at index 217"):
                    function(fields, center=center)
        for method in ("second_moment", "binarized"):
            with pytest.raises(ValueError, match=f"field_or_S: {word} in the field at index 217"):
                fc.correlation_length(fields, method=method)

    def test_power_beyond_the_dtype_is_an_error(self, backend):
        with pytest.raises(OverflowError, match=r"field at index 1 exceeds the range of float32"):
            fc.power_spectrum(backend.array(np.array([1.0, 1e30])[:, None, None] * np.ones((8, 8)), "float32")[0])

    @pytest.mark.parametrize(
        ("dtype", "mean"), [("float32", 1e4), ("float32", -1e6), ("float64", 1e6), ("float64", -1e10)]
    )
    @pytest.mark.parametrize("shape", [(16, 16), (12, 10), (64, 64)])
    def test_a_large_mean_drowns_nothing(self, backend, shape, dtype, mean, rng):
        x = rng.standard_normal((24, 2, *shape)) + mean
        x[3::5] -= mean  # fields about zero among them
        fields, exact = backend.array(x, dtype)
        about = np.where(np.arange(24) % 5 == 3, 0.0, mean)[:, None, None, None]
        noise = exact - about  # without rounding
        # As everywhere relative to the mean power, here of the noise, which is 1. P_0 is a square, of N times the mean.
        atol = 2 * TOLERANCE[dtype]
        found, expected = fc.power_spectrum(fields), fc.power_spectrum(noise)
        np.testing.assert_allclose(host(found.power)[..., 1:], expected.power[..., 1:], rtol=0, atol=atol)
        found, expected = fc.power_spectrum(fields, window="hann"), fc.power_spectrum(exact, window="hann")
        # The window spreads the mean over the first two shells, and has eps of it in every product.
        products = 8 * np.finfo(float).eps * abs(mean)
        np.testing.assert_allclose(host(found.power)[..., 3:], expected.power[..., 3:], rtol=0, atol=atol + products)
        np.testing.assert_allclose(host(found.power)[..., :3], expected.power[..., :3], rtol=atol, atol=atol + products)
        found = fc.power_spectrum(fields)
        zero = noise[0, 0].size * exact.mean(axis=(-2, -1)) ** 2
        # An amplitude errs by a part of what varies, of variance 1: a small one by more of itself.
        assert (np.abs(host(found.power)[..., 0] - zero) <= atol * np.maximum(zero, np.sqrt(zero))).all()
        for center in ("ensemble", "sample", "none"):
            # In an ensemble of one mean each: what is subtracted is right to eps of the noise.
            same = slice(None) if center != "ensemble" else np.arange(24) % 5 != 3
            a, b = fc.structure_factor(fields[same], center=center), fc.structure_factor(noise[same], center=center)
            # Of float64 at 1e10, the mean over samples has eps of 1e10.
            slack = 4 * np.finfo(float).eps * abs(mean)
            np.testing.assert_allclose(host(a.S)[..., 1:], b.S[..., 1:], rtol=0, atol=atol + slack)
            np.testing.assert_allclose(host(a.stderr)[..., 1:], b.stderr[..., 1:], rtol=0, atol=atol + slack)
            if center != "none":
                np.testing.assert_allclose(host(a.S)[..., 0], b.S[..., 0], rtol=0, atol=atol + slack)
        a, b = (fc.autocorrelation(x[np.arange(24) % 5 != 3]) for x in (fields, noise))
        np.testing.assert_allclose(host(a.C), b.C, rtol=0, atol=atol + slack)

    @pytest.mark.parametrize("scale", [1e-25, 1e-23, 1e-19, 1e-16])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_squares_below_float32_are_not_lost(self, backend, dtype, scale, rng):
        fields, exact = backend.array(rng.standard_normal((30, 2, 16, 16)) * scale, dtype)
        for center in ("ensemble", "none"):
            a, b = (fc.structure_factor(x, center=center) for x in (fields, exact))
            np.testing.assert_allclose(host(a.S) / scale**2, b.S / scale**2, rtol=0, atol=TOLERANCE[dtype])
            a, b = (fc.autocorrelation(x, center=center) for x in (fields, exact))
            np.testing.assert_allclose(host(a.C) / scale**2, b.C / scale**2, rtol=0, atol=TOLERANCE[dtype])
        for method in ("second_moment", "integral"):
            a, b = (fc.correlation_length(x, method=method) for x in (fields, exact))
            np.testing.assert_allclose(a.value, b.value, rtol=1e-4)
        if scale > 1e-18:
            a, b = fc.power_spectrum(fields), fc.power_spectrum(exact)
            np.testing.assert_allclose(host(a.power) / scale**2, b.power / scale**2, rtol=0, atol=5 * TOLERANCE[dtype])
        elif scale < 1e-19:  # the result is of float32
            with pytest.raises(OverflowError, match=r"at index \(0, 0\) is below the range of float32; rescale it"):
                fc.power_spectrum(fields)

    @pytest.mark.parametrize("scale", [1e-170, 1e170])
    def test_squares_beyond_float64_are_errors(self, backend, scale, rng):
        fields, _ = backend.array(rng.standard_normal((8, 8, 8)) * scale, "float64")
        word = "below" if scale < 1 else "exceeds"
        length = lambda x: fc.correlation_length(x, method="second_moment")  # noqa: E731
        for function in (fc.power_spectrum, fc.structure_factor, fc.autocorrelation, length):
            with pytest.raises(OverflowError, match=f"{word}.* the range of float64; rescale"):
                function(fields)

    def test_fields_of_zeros_have_no_power(self, backend):
        fields, _ = backend.array(np.zeros((5, 8, 8)), "float32")
        for result in (fc.power_spectrum(fields).power, fc.structure_factor(fields).S, fc.autocorrelation(fields).C):
            assert not host(result).any()

    def test_bad_input_is_named(self, backend):
        fields, _ = backend.array(np.ones((4, 8)), "float32")
        with pytest.raises(ValueError, match=r"field: expected shape \(samples, .* with ndim=2, got shape \(4, 8\)"):
            fc.structure_factor(fields)
        with pytest.raises(ValueError, match=r"field: empty array of shape \(0, 4, 8\)"):
            fc.power_spectrum(fields[None][:0])
        with pytest.raises(TypeError, match="field: expected real values, got complex"):
            fc.power_spectrum(fields * 1j)

    @pytest.mark.parametrize("dtype", ["int16", "uint8", "int64", "bool"])
    def test_integers_are_converted_as_numbers(self, backend, dtype, rng):
        fields, exact = backend.array(rng.integers(0, 2, (3, 9, 10)), dtype)
        power = fc.power_spectrum(fields).power
        assert str(power.dtype).endswith("float64" if dtype == "int64" else "float32")
        np.testing.assert_allclose(host(power), fc.power_spectrum(exact).power, rtol=1e-4, atol=1e-5)


class RecorderContract:
    @pytest.mark.parametrize(
        ("shape", "ndim"),
        [((3, 12, 10), 2), ((2, 16, 16), 2), ((16, 32), 2), ((2, 5, 4, 3), 3), ((30,), 1), ((4, 1), 2)],
    )
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("cuts", [(301,), (3, 5, 200, 93)])
    def test_sums_are_those_of_the_definition(self, backend, shape, ndim, dtype, cuts, rng):
        n, blocks = 301, 7
        y = rng.standard_normal((n, *shape))
        y, exact = backend.array(y + np.roll(y, 1, axis=-1) + np.linspace(0, 3, shape[-1]), dtype)
        rec = fc.Recorder(
            [5.0, 1.0], shape=shape, ndim=ndim, blocks=blocks, low_modes=3, binarized=True, device=backend.device
        )
        begin = 0
        for cut in cuts:
            rec.update(1, y[begin : begin + cut], sample=4 if begin == 0 else None)
            begin += cut
        found = state_of(rec)
        expected = sums_of(exact.reshape(n, -1, *shape[-ndim:]), rec, first=4)
        assert set(found) == set(expected)
        # Sums of 43 samples a block, each right to a few eps of the field's own scale.
        tolerance = 1e-12 if dtype == "float64" else 1e-5
        for name, values in expected.items():
            assert not found[name][0].any()  # the other level
            np.testing.assert_allclose(
                found[name][1], values, rtol=0, atol=tolerance * np.abs(values).max(), err_msg=name
            )
        # A field's own sum has a few eps of float32 at the most, whatever the side; its fourth power four times that.
        for name in ("moments", "field"):
            np.testing.assert_allclose(found[name][1], expected[name], rtol=0, atol=1e-6 * np.abs(expected[name]).max())

    @pytest.mark.parametrize("mean", [1.0, 100.0, 1000.0])
    @pytest.mark.parametrize("shape", [(48, 48), (32, 32)])
    def test_a_large_mean_costs_float32_nothing_at_k_zero(self, backend, mean, shape, rng):
        y, exact = backend.array(rng.standard_normal((100, *shape)) + mean, "float32")
        rec = fc.Recorder([0.1], shape=shape, device=backend.device)
        rec.update(0, y)
        S, expected = rec.dataset().S[0], fc.structure_factor(exact).S
        # As in test_observe.py: the transform rounds every mode to 6e-8 of the mean; k = 0 is not part of it.
        np.testing.assert_allclose(S[0], expected[0], rtol=1e-6 * max(1.0, mean))
        np.testing.assert_allclose(S[1:], expected[1:], rtol=1e-5 * max(1.0, mean))

    @pytest.mark.parametrize(
        ("dtype", "mean"), [("float32", 1e4), ("float32", -1e6), ("float64", 1e6), ("float64", -1e9)]
    )
    @pytest.mark.parametrize("shape", [(16, 16), (2, 12, 10), (3, 16, 16)])
    def test_fluctuations_about_a_large_mean(self, backend, shape, dtype, mean, rng):
        means = mean * np.array([1.0, -0.5, 0.0])[: shape[0] if len(shape) == 3 else 1]
        offset = means.reshape(-1, *[1] * (len(shape) - 1))
        y, exact = backend.array(rng.standard_normal((120, *shape)) + offset, dtype)
        noise = exact - offset
        rec = fc.Recorder([0.5], shape=shape, blocks=8, device=backend.device)
        begins = (0, 1, 33, 120)
        for a, b in pairwise(begins):
            rec.update(0, y[a:b], denoised=y[a:b])
        plain = fc.Recorder([0.5], shape=shape, blocks=8)
        plain.update(0, noise, denoised=noise)
        ds, expected = rec.dataset(), plain.dataset()
        # A total of N values has eps of the mean; its square, N m u, is compared with 1.
        rtol = TOLERANCE[dtype] + 20 * np.finfo(float).eps * abs(mean) * exact[0].size
        for name in ("S", "S_stderr", "C", "S_denoised", "m_stderr"):
            scale = np.nanmax(np.abs(expected[name]))
            np.testing.assert_allclose(ds[name], expected[name], rtol=0, atol=5 * rtol * scale, err_msg=name)
        m = exact.mean(axis=(-2, -1)).reshape(120, -1)
        N = exact.shape[-1] * exact.shape[-2]
        heavy = means != 0
        np.testing.assert_allclose(np.ravel(ds.m[0]), m.mean(axis=0), rtol=1e-12, atol=1e-6)
        chi = N * m.var(axis=0)
        np.testing.assert_allclose(np.ravel(ds.chi[0])[heavy], chi[heavy], rtol=rtol)
        binder = 1 - (m**4).mean(axis=0) / (3 * (m**2).mean(axis=0) ** 2)
        np.testing.assert_allclose(np.ravel(ds.binder[0]), binder, rtol=1e-5, atol=1e-9)
        if len(shape) == 3:
            scale = np.nanmax(np.abs(expected.cross_spectrum))
            np.testing.assert_allclose(ds.cross_spectrum, expected.cross_spectrum, rtol=0, atol=rtol * scale)

    def test_recorders_about_different_offsets_merge(self, backend, rng, tmp_path):
        y = rng.standard_normal((90, 2, 8, 8)) * np.linspace(1, 6, 90)[:, None, None, None] + [[[1e6]], [[-3e5]]]
        y, exact = backend.array(y, "float64")
        options = {"levels": [0.5], "shape": (2, 8, 8), "blocks": 6}
        whole = fc.Recorder(**options)
        whole.update(0, exact, denoised=exact)
        parts = [fc.Recorder(**options, device=backend.device) for _ in range(3)]
        for part, begin in zip(parts, (0, 30, 60), strict=True):
            part.update(0, y[begin : begin + 30], denoised=y[begin : begin + 30], sample=begin)
        assert len({tuple(part.sums()["offset"].ravel()) for part in parts}) > 1
        parts[2].save(tmp_path / "part")
        parts[2] = fc.Recorder.load(tmp_path / "part", device=backend.device)
        empty = fc.Recorder(**options, device=backend.device)
        for order in ((0, 1, 2), (2, 0, 1)):
            total = fc.Recorder(**options, device=backend.device)
            for part in [parts[i] for i in order]:
                total.merge(part)
                total.merge(empty)
            ds, expected = total.dataset(), whole.dataset()
            for name in ("S", "S_stderr", "S_denoised", "chi", "chi_stderr", "m", "abs_m", "binder", "cross_spectrum"):
                # Sums about offsets of about ten standard deviations: 1e-16 of 100 N, and of the mean's total.
                scale = np.nanmax(np.abs(expected[name]))
                np.testing.assert_allclose(ds[name], expected[name], rtol=0, atol=1e-8 * scale, err_msg=name)

    @pytest.mark.parametrize("scale", [1e-25, 1e-23, 1e-16])
    @pytest.mark.parametrize("shape", [(16, 16), (12, 10), (2, 16, 16)])
    def test_squares_of_float32_that_are_lost(self, backend, shape, scale, rng):
        y, exact = backend.array(rng.standard_normal((30, *shape)) * scale, "float32")
        rec = fc.Recorder([0.5], shape=shape, device=backend.device)
        plain = fc.Recorder([0.5], shape=shape)
        rec.update(0, y)
        plain.update(0, exact)
        if backend.device is not None and scale < 1e-18:  # on a device, float64 would be another call
            with pytest.raises(ValueError, match=r"y: .* too small for its type in sample 0 at level 0"):
                rec.dataset()
            return
        for name in ("S", "S_stderr", "chi", "binder"):
            expected = plain.dataset()[name]
            np.testing.assert_allclose(
                rec.dataset()[name], expected, rtol=0, atol=1e-5 * np.nanmax(np.abs(expected)), err_msg=name
            )

    @pytest.mark.parametrize("scale", [1e-170, 1e-90, 1e90, 1e170])
    def test_fourth_powers_beyond_float64(self, backend, scale, rng):
        y, _ = backend.array(rng.standard_normal((10, 8, 8)) * scale, "float64")
        rec = fc.Recorder([0.5], shape=(8, 8), device=backend.device)
        if backend.device is None:
            with pytest.raises(OverflowError, match="the range of float64; rescale it"):
                rec.update(0, y)
            assert not rec.state["count"].any()
            return
        rec.update(0, y)
        with pytest.raises(ValueError, match=r"y: .* too large or too small for its type in sample 0 at level 0"):
            rec.dataset()

    def test_fields_about_zero_have_no_offset(self, backend, rng):
        y, _ = backend.array(rng.standard_normal((20, 8, 8)) + 10.0, "float32")
        rec = fc.Recorder([0.5, 0.1], shape=(8, 8), device=backend.device)
        rec.update(0, y)
        rec.update(1, backend.array(np.zeros((20, 8, 8)), "float32")[0])
        assert "offset" not in rec.sums()

    def test_datasets_agree_with_the_host(self, backend, rng):
        y, exact = backend.array(rng.standard_normal((64, 2, 16, 16)), "float32")
        pair = []
        for device, states in ((backend.device, y), (None, exact)):
            rec = fc.Recorder([2.0], shape=(2, 16, 16), gain_shells=(0, 1), blocks=8, binarized=True, device=device)
            rec.update(0, states[:40])
            rec.update(0, states[40:])
            rec.update_gain(0, states[:, 0, 0, :2])
            rec.update_gain(0, exact[:3, 1, 0, :2])  # small arrays from the host, as mode_response returns them
            pair.append(rec.dataset())
        a, b = pair
        assert set(a) == set(b)
        for name in a.data_vars:
            if a[name].dtype.kind == "f" and not name.startswith("xi_"):
                scale = np.nanmax(np.abs(b[name]))
                np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-4 * scale, err_msg=name)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("shape", [(2, 16, 16), (2, 6, 5)])
    def test_what_is_not_finite_is_named_and_in_no_sum(self, backend, value, shape, rng, tmp_path):
        y = rng.standard_normal((50, *shape))
        bad = y.copy()
        bad[31, 1, 2, 3] = bad[44, 0, 0, 0] = value
        rec = fc.Recorder([3.0, 1.0], shape=shape, blocks=4, binarized=True, device=backend.device)
        rec.update(1, backend.array(y, "float32")[0])
        before = state_of(rec)
        if backend.device is None:
            with pytest.raises(ValueError, match="in the field at index 31"):
                rec.update(1, bad)
            for name, values in state_of(rec).items():
                np.testing.assert_array_equal(values, before[name])
            return
        rec.update(1, backend.array(bad, "float32")[0])
        other = fc.Recorder([3.0, 1.0], shape=shape, blocks=4, binarized=True, device=backend.device)
        reads = (
            rec.check, rec.dataset, lambda: rec.save(tmp_path / "x"), lambda: rec.merge(other), lambda: other.merge(rec)
        )  # fmt: skip
        for read in reads:
            with pytest.raises(ValueError, match=r"y: .* in sample 81 at level 1 \(s = 1\)"):
                read()
        good = fc.Recorder([3.0, 1.0], shape=shape, blocks=4, binarized=True, device=backend.device)
        good.update(1, backend.array(y, "float32")[0])
        good.update(1, backend.array(bad[:31], "float32")[0])
        good.update(1, backend.array(bad[32:44], "float32")[0], sample=50 + 32)
        good.update(1, backend.array(bad[45:], "float32")[0], sample=50 + 45)
        for name, values in state_of(rec).items():
            scale = np.abs(values).max(initial=1.0)
            np.testing.assert_allclose(values, state_of(good)[name], rtol=0, atol=1e-12 * scale, err_msg=name)

    def test_gains_that_are_not_finite_are_named(self, backend):
        rec = fc.Recorder([3.0, 1.0], shape=(8, 8), gain_shells=(0, 1), device=backend.device)
        gain = np.ones((9, 2))
        gain[4, 1] = np.nan
        with pytest.raises(ValueError, match="gain: NaN in the field at index 4"):
            rec.update_gain(0, gain)
        if backend.device is not None:
            rec.update_gain(0, backend.array(gain, "float32")[0])
            with pytest.raises(ValueError, match=r"gain: .* in sample 4 at level 0 \(s = 3\)"):
                rec.dataset()

    def test_files_and_merging_cross_devices(self, backend, rng, tmp_path):
        y, exact = backend.array(rng.standard_normal((30, 8, 8)), "float64")
        options = {"levels": [2.0, 1.0], "shape": (8, 8), "blocks": 5}
        a, b = fc.Recorder(**options, device=backend.device), fc.Recorder(**options)
        whole = fc.Recorder(**options)
        a.update(0, y[:20])
        b.update(0, exact[20:], sample=20)
        whole.update(0, exact[:20])
        whole.update(0, exact[20:])
        a.save(tmp_path / "state")
        twin = fc.Recorder.load(tmp_path / "state", device=backend.device)
        host_twin = fc.Recorder.load(tmp_path / "state")
        assert twin.device == backend.device
        assert host_twin.device is None
        for rec in (twin, host_twin):
            for name, values in state_of(rec).items():
                np.testing.assert_array_equal(values, state_of(a)[name])
        twin.update(0, y[20:])
        a.merge(b)
        host_twin.merge(b)
        for rec in (twin, a, host_twin):
            for name, values in state_of(rec).items():
                np.testing.assert_allclose(values, state_of(whole)[name], rtol=1e-11, atol=1e-11, err_msg=name)


def cross_products(low, rec):
    """Re phi_a^ phi_b^* / N, averaged over each whole shell, from amplitudes (n, C, low modes)."""
    grid = rec.grid
    index = np.array([grid.mode_index(k) for k in rec.low])
    shell, weight = grid.shell_of_mode[index], grid.half_weights[index]
    whole = [k for k in range(len(grid.shell_k)) if round(weight[shell == k].sum()) == grid.shell_modes[k]]
    products = np.real(low[:, :, None] * np.conj(low[:, None])) * weight / grid.sites
    whole = [k for i, k in enumerate(whole) if k == i]
    return np.stack([products[..., shell == k].sum(axis=-1) / grid.shell_modes[k] for k in whole], axis=1)


def sums_of(y, rec, first):
    """What a recorder keeps of float64 samples (n, C, lattice) that begin with number ``first``, from numpy's FFT."""
    n, C = y.shape[:2]
    grid = rec.grid
    block = (first + np.arange(n)) % rec.blocks
    axes = tuple(range(2, y.ndim))

    def core_order(half):
        return np.moveaxis(half, -1, 2).reshape(n, C, -1)

    def by_block(values):
        return np.stack([values[block == b].sum(axis=0) for b in range(rec.blocks)])

    def orbit_sums(half):
        flat = np.abs(half) ** 2 * grid.half_weights / grid.sites
        order = np.argsort(grid.orbit_of_mode, kind="stable")
        starts = np.searchsorted(grid.orbit_of_mode[order], np.arange(len(grid.orbit_k)))
        return np.add.reduceat(flat[..., order], starts, axis=-1)

    half = core_order(np.fft.rfftn(y, axes=axes))
    sign = np.where(y >= 0, 1.0, -1.0)
    m = y.mean(axis=axes)
    low = half[..., [grid.mode_index(k) for k in rec.low]]
    along = half[..., [grid.mode_index(k) for k in grid.axis_wavenumbers]]
    several = {"cross": by_block(cross_products(low, rec))} if C > 1 else {}
    return several | {
        "count": by_block(np.ones(n, np.int64)),
        "power": by_block(orbit_sums(half)),
        "low": by_block(np.stack([low.real, low.imag], axis=-1)),
        "first": by_block(np.abs(along) ** 2 / grid.sites),
        "moments": by_block(np.stack([m, np.abs(m), m**2, m**4], axis=-1)),
        "field": y.sum(axis=0).reshape(C, -1),
        "sign_power": by_block(orbit_sums(core_order(np.fft.rfftn(sign, axes=axes)))),
        "sign_field": sign.sum(axis=0).reshape(C, -1),
    }
