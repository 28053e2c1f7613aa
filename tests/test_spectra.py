"""Spectra against direct sums, third-party transforms, identities and null cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import fft as scipy_fft
from scipy import signal

import fastcrit as fc
from fastcrit import _core
from tests.oracles import spectra as oracle

# An FFT's rounding error grows as eps sqrt(log n), a direct sum's (prime sides) as eps sqrt(n); n < 100 here.
TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 2e-5}


def random_shapes(count, seed):
    """Shapes in 1 to 3 dimensions, odd and prime sides included, up to about 2000 sites."""
    rng = np.random.default_rng(seed)
    shapes = []
    while len(shapes) < count:
        ndim = int(rng.integers(1, 4))
        shape = tuple(int(n) for n in rng.integers(1, (200, 45, 13)[ndim - 1] + 1, size=ndim))
        shapes.append(shape)
    return shapes


class TestPowerSpectrum:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_agrees_with_the_direct_transform_on_200_random_shapes(self, dtype, instruction_set, layout):
        seed = 1 + 2 * (dtype == np.float64)
        rng = np.random.default_rng(seed)
        worst = 0.0
        for shape in random_shapes(200, seed):
            field = rng.standard_normal(shape).astype(dtype)
            k, power, counts = oracle.power_spectrum(field, corners=True)
            found = fc.power_spectrum(field, ndim=len(shape), corners=True)
            assert found.power.dtype == dtype
            np.testing.assert_allclose(found.k, k, rtol=1e-13, atol=1e-13)
            np.testing.assert_array_equal(found.counts, counts)
            mean_power = np.mean(field.astype(np.float64) ** 2)
            worst = max(worst, np.abs(found.power - power).max() / mean_power)
        assert worst <= TOLERANCE[np.dtype(dtype)]

    @pytest.mark.parametrize("shape", [(1009,), (2 * 1009,), (101, 3), (53, 106), (2, 59, 2), (10_007,)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_large_prime_sides_agree_with_scipy(self, shape, dtype, rng, layout):
        # A convolution takes two transforms of more than twice the length: errors of a few eps, as for any length.
        field = rng.standard_normal(shape).astype(dtype)
        full = np.abs(scipy_fft.fftn(field.astype(np.float64))) ** 2 / np.prod(shape)
        power = oracle.shell_average(full)[1]
        found = fc.power_spectrum(field, ndim=len(shape)).power
        assert np.abs(found - power[: len(found)]).max() <= TOLERANCE[np.dtype(dtype)] * power.max()

    @pytest.mark.parametrize("shape", [(64,), (17,), (12, 20), (9, 9), (32, 32), (4, 6, 8)])
    def test_agrees_with_scipy_and_leaves_out_the_corners(self, shape, rng):
        field = rng.standard_normal((3, *shape))
        axes = tuple(range(1, 1 + len(shape)))
        full = np.abs(scipy_fft.fftn(field, axes=axes)) ** 2 / np.prod(shape)
        found = fc.power_spectrum(field, ndim=len(shape))
        for j in range(3):
            k, power, counts = oracle.shell_average(full[j])
            np.testing.assert_allclose(found.power[j], power, rtol=1e-11)
            np.testing.assert_allclose(found.k, k)
            np.testing.assert_array_equal(found.counts, counts)

    @pytest.mark.parametrize("shape", [(30,), (15, 15), (8, 12), (5, 6, 7)])
    def test_parseval_with_corners(self, shape, rng):
        field = rng.standard_normal((4, *shape))
        s = fc.power_spectrum(field, ndim=len(shape), corners=True)
        np.testing.assert_allclose((s.power * s.counts).sum(-1), (field.reshape(4, -1) ** 2).sum(-1), rtol=1e-12)

    def test_a_plane_wave_lands_in_its_shell(self):
        x, y = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
        wave = 3.0 * np.cos(2 * np.pi * (3 * x + 4 * y) / 32)
        s = fc.power_spectrum(wave)
        # Two modes of amplitude 3 N / 2 share N A^2 / 4 each.
        expected = np.zeros_like(s.power)
        expected[5] = 2 * 32**2 * 9 / 4 / s.counts[5]
        np.testing.assert_allclose(s.power, expected, atol=1e-10)

    @pytest.mark.parametrize("shape", [(16, 64), (2, 64), (1, 64), (8, 1, 40)])
    def test_k_zero_is_alone_in_its_shell_on_long_lattices(self, shape):
        s = fc.power_spectrum(np.full(shape, 2.0), ndim=len(shape))
        assert (s.k[0], s.counts[0]) == (0.0, 1)
        np.testing.assert_allclose(s.power[0], 4.0 * np.prod(shape))
        np.testing.assert_allclose(s.power[1:], 0.0, atol=1e-12)
        assert len(s.k) > 1

    def test_white_noise_is_flat(self, rng):
        noise = rng.normal(scale=1.5, size=(4000, 21, 21))
        s = fc.power_spectrum(noise)
        # Power of a mode is exponential: relative error sqrt(2 / (samples * modes)) with k and -k being one.
        error = 2.25 * np.sqrt(2.0 / (4000 * s.counts))
        assert (np.abs(s.power.mean(0) - 2.25) < 5 * error).all()

    @pytest.mark.parametrize("dtype", ["float16", "uint8", "int16", "bool"])
    def test_small_types_are_computed_in_float32(self, dtype, rng):
        field = (rng.random((2, 9, 10)) * 2).astype(dtype)
        s = fc.power_spectrum(field)
        assert s.power.dtype == np.float32
        np.testing.assert_allclose(s.power, fc.power_spectrum(field.astype(np.float64)).power, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "longdouble"])
    def test_wide_types_are_computed_in_float64(self, dtype, rng):
        assert fc.power_spectrum((rng.random((2, 9, 10)) * 100).astype(dtype)).power.dtype == np.float64

    def test_views_that_are_not_contiguous(self, rng):
        base = rng.standard_normal((24, 18, 10))
        view = base[::2, ::-1, 1::3].transpose(2, 0, 1)
        np.testing.assert_array_equal(fc.power_spectrum(view).power, fc.power_spectrum(view.copy()).power)

    def test_foreign_byte_order(self, rng):
        field = rng.standard_normal((2, 8, 8))
        np.testing.assert_array_equal(fc.power_spectrum(field.astype(">f8")).power, fc.power_spectrum(field).power)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8])
    def test_torch_in_torch_out(self, dtype, rng):
        field = torch.from_numpy(rng.standard_normal((2, 3, 8, 10)) * 3).to(dtype)
        s = fc.power_spectrum(field.transpose(-1, -2))
        assert isinstance(s.power, torch.Tensor)
        assert s.power.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        reference = fc.power_spectrum(field.double().numpy().swapaxes(-1, -2))
        np.testing.assert_allclose(s.power.numpy(), reference.power, rtol=1e-4, atol=1e-5)

    def test_a_tensor_that_requires_grad(self):
        assert fc.power_spectrum(torch.ones(4, 4, requires_grad=True)).power[0] == 16

    def test_spacing_rescales_k_alone(self, rng):
        field = rng.standard_normal((8, 8))
        a, b = fc.power_spectrum(field), fc.power_spectrum(field, spacing=0.5)
        np.testing.assert_allclose(b.k, 2 * a.k)
        np.testing.assert_array_equal(b.power, a.power)

    def test_detrending_removes_what_it_says(self, rng):
        y, x = np.meshgrid(np.arange(12), np.arange(15), indexing="ij")
        noise = rng.standard_normal((12, 15))
        tilted = noise + 4 + 0.3 * x - 2 * y
        linear = fc.power_spectrum(tilted, detrend="linear")
        np.testing.assert_allclose(
            linear.power, fc.power_spectrum(noise, detrend="linear").power, rtol=1e-9, atol=1e-12
        )
        assert fc.power_spectrum(tilted, detrend="constant").power[0] < 1e-20

    def test_a_window_keeps_the_level_of_white_noise(self, rng):
        noise = rng.standard_normal((3000, 16, 16))
        s = fc.power_spectrum(noise, window="hann")
        # Windowed modes are correlated over a few neighbours, which at most quadruples the variance.
        assert (np.abs(s.power.mean(0) - 1) < 5 * 2 * np.sqrt(2 / (3000 * s.counts))).all()
        taper = signal.get_window("hann", 16)
        taper2 = taper[:, None] * taper[None]
        np.testing.assert_allclose(
            fc.power_spectrum(noise[0] * taper2 / np.sqrt(np.mean(taper2**2))).power, s.power[0], rtol=1e-9
        )

    def test_thread_count_and_batch_change_no_bit(self, rng, threads, instruction_set, layout):
        field = rng.standard_normal((70, 12, 14)).astype(np.float32)
        threads(1)
        one = fc.power_spectrum(field).power
        threads(2)
        np.testing.assert_array_equal(fc.power_spectrum(field).power, one)
        np.testing.assert_array_equal(np.concatenate([fc.power_spectrum(f[None]).power for f in field]), one)

    @pytest.mark.parametrize(
        ("field", "options", "error", "message"),
        [
            (np.ones((4, 4), complex), {}, TypeError, "field: expected real values, got complex"),
            (np.array([["a", "b"]]), {}, TypeError, "field: expected real numbers, got dtype <U1"),
            (np.array([[None, 1]]), {}, TypeError, "field: expected real numbers, got dtype object"),
            (np.ma.masked_greater(np.eye(3), 0.5), {}, TypeError, "field: expected an array without a mask"),
            (np.ones(4), {}, ValueError, r"field: expected shape .* with ndim=2, got shape \(4,\)"),
            (np.ones((0, 4, 4)), {}, ValueError, r"field: empty array of shape \(0, 4, 4\)"),
            (np.ones((4, 4)), {"ndim": 4}, ValueError, "ndim: expected 1, 2 or 3, got 4"),
            (np.ones((4, 4)), {"spacing": -1.0}, ValueError, "spacing: expected a positive number, got -1.0"),
            (np.ones((4, 4)), {"spacing": np.nan}, ValueError, "spacing: expected a positive number, got nan"),
            (
                np.ones((4, 4)),
                {"detrend": "cubic"},
                ValueError,
                "detrend: expected one of 'constant', 'linear', got 'cubic'",
            ),
            (
                torch.ones(4, 4, device="meta"),
                {},
                ValueError,
                "field: expected a numpy array or a tensor on the CPU or a CUDA .* on meta",
            ),
        ],
    )
    def test_bad_input_is_named(self, field, options, error, message):
        with pytest.raises(error, match=message):
            fc.power_spectrum(field, **options)

    @pytest.mark.parametrize(
        ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite value"), (-np.inf, "infinite value")]
    )
    def test_the_field_with_nan_or_inf_is_named(self, value, word):
        field = np.zeros((300, 5, 4, 4), np.float32)
        field[217, 3, 1, 2] = value
        with pytest.raises(ValueError, match=rf"field: {word} in the field at index \(217, 3\)"):
            fc.power_spectrum(field)

    def test_power_beyond_the_dtype_is_an_error(self):
        with pytest.raises(OverflowError, match="exceeds the range of float32"):
            fc.power_spectrum(np.full((4, 4), 1e30, np.float32))


class TestStructureFactor:
    def test_removes_the_ensemble_mean_and_keeps_parseval(self, rng):
        pattern = rng.standard_normal((10, 14)) * 5
        field = rng.standard_normal((50, 10, 14)) + pattern
        s = fc.structure_factor(field, corners=True)
        np.testing.assert_allclose((s.S * s.counts).sum(), field.var(axis=0, ddof=1).sum(), rtol=1e-12)
        assert s.n_samples == 50

    @pytest.mark.parametrize("center", ["ensemble", "sample", "none"])
    def test_agrees_with_the_definition(self, center, rng):
        field = rng.standard_normal((7, 2, 9, 6)) + 1.0
        s = fc.structure_factor(field, center=center)
        shift = {"ensemble": field.mean(0), "sample": field.mean((-1, -2), keepdims=True), "none": 0.0}[center]
        centred = field - shift
        unbiased = 7 / 6 if center == "ensemble" else 1.0
        for c in range(2):
            power = np.stack([oracle.power_spectrum(x)[1] for x in centred[:, c]])
            np.testing.assert_allclose(s.S[c], power.mean(0) * unbiased, rtol=1e-11, atol=1e-12)
            error = power.std(0, ddof=1) / np.sqrt(7) * unbiased  # of what S is
            np.testing.assert_allclose(s.stderr[c], error, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("mean", [0.0, 1e4])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_threads_and_views_change_no_bit(self, mean, dtype, rng, threads):
        """About a mean that float32 does not hold as well, which is subtracted in two steps."""
        field = (rng.standard_normal((37, 2, 11, 26)) + mean * rng.standard_normal((11, 26))).astype(dtype)
        threads(1)
        one = fc.structure_factor(field)
        for count, view in ((3, field), (2, np.asfortranarray(field)), (1, np.repeat(field, 2, axis=0)[::2])):
            threads(count)
            again = fc.structure_factor(view)
            np.testing.assert_array_equal(again.S, one.S)
            np.testing.assert_array_equal(again.stderr, one.stderr)

    def test_a_constant_has_s0_equal_to_n_c_squared_uncentred(self):
        s = fc.structure_factor(np.full((3, 6, 7), 1.5), center="none")
        np.testing.assert_allclose(s.S[0], 42 * 2.25)
        np.testing.assert_allclose(s.S[1:], 0.0, atol=1e-12)

    def test_error_bars_are_those_of_repetition(self, rng):
        values = np.array([fc.structure_factor(rng.standard_normal((64, 8, 8))).S[2] for _ in range(300)])
        one = fc.structure_factor(rng.standard_normal((64, 8, 8))).stderr[2]
        # A standard deviation of 300 values is known to 4 %, one error bar of 64 samples to about 15 %.
        assert 0.6 < one / values.std() < 1.6

    def test_torch_in_torch_out(self, rng):
        s = fc.structure_factor(torch.from_numpy(rng.standard_normal((5, 3, 8, 8))).float())
        assert isinstance(s.S, torch.Tensor)
        assert s.S.shape == (3, 5)

    @pytest.mark.parametrize("n", [0, 1])
    def test_too_few_samples(self, n):
        with pytest.raises(ValueError, match=r"field: (empty array|center='ensemble' needs at least 2 samples)"):
            fc.structure_factor(np.zeros((n, 4, 4)))

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="center: expected one of 'ensemble', 'sample', 'none', got 'mean'"):
            fc.structure_factor(np.zeros((3, 4, 4)), center="mean")
        with pytest.raises(ValueError, match="blocks: expected an integer of at least 2, got 1"):
            fc.structure_factor(np.zeros((3, 4, 4)), blocks=1)
        with pytest.raises(ValueError, match="field: NaN in the field at index 2"):
            fc.structure_factor(np.where(np.arange(3)[:, None, None] == 2, np.nan, np.zeros((3, 4, 4))), center="none")
        with pytest.raises(ValueError, match="field: NaN in the field at index 2"):
            fc.structure_factor(np.where(np.arange(3)[:, None, None] == 2, np.nan, np.zeros((3, 4, 4))))


class TestAutocorrelation:
    @pytest.mark.parametrize("shape", [(16,), (9,), (8, 8), (7, 10), (4, 5, 6)])
    @pytest.mark.parametrize("periodic", [True, False])
    def test_agrees_with_summing_over_pairs(self, shape, periodic, rng, instruction_set):
        field = rng.standard_normal((2, *shape))
        found = fc.autocorrelation(field, ndim=len(shape), center="none", periodic=periodic)
        each = [oracle.autocorrelation(x, periodic) for x in field]
        np.testing.assert_allclose(found.r, each[0][0], rtol=1e-12)
        np.testing.assert_allclose(found.C, np.mean([e[1] for e in each], axis=0), rtol=1e-11, atol=1e-12)

    def test_counts_are_lattice_vectors(self):
        c = fc.autocorrelation(np.ones((2, 9, 9)), center="none")
        np.testing.assert_array_equal(c.counts[:2], [1, 8])
        np.testing.assert_allclose(c.C, 1.0)

    def test_white_noise_has_none_beyond_zero(self, rng):
        c = fc.autocorrelation(rng.standard_normal((2000, 16, 16)), normalize=True)
        assert c.C[0] == pytest.approx(1.0)
        assert (np.abs(c.C[1:]) < 5 * c.stderr[1:]).all()

    def test_unbiased_variant_of_an_open_line(self):
        ramp = np.arange(6.0)
        c = fc.autocorrelation(ramp[None], ndim=1, center="none", periodic=False)
        np.testing.assert_allclose(c.C, [np.mean(ramp[: 6 - r] * ramp[r:]) for r in range(4)])

    def test_the_field_with_nan_is_named(self):
        field = np.zeros((5, 6, 6))
        field[3, 0, 0] = np.nan
        with pytest.raises(ValueError, match="field: NaN in the field at index 3"):
            fc.autocorrelation(field, center="none")


def test_modes_of_another_lattice_are_refused_by_the_core():
    theirs = _core.Selection(_core.Spectrometer((6, 4)), [0, 1, 4])
    with pytest.raises(ValueError, match="selected: modes of another lattice"):
        _core.Spectrometer((4, 6)).power(np.zeros((1, 4, 6)), "orbits", None, theirs)


def test_arrays_of_the_record_s_rows_are_all_that_the_core_adds_to():
    core = _core.Spectrometer((4, 6))
    selected = _core.Selection(core, [0, 1, 4])
    sizes = {"blocks": 3, "channels": 2, "orbits": len(core.orbit_k), "selected": 3, "ndim": 2, "sites": 24}
    rows = _core.record_rows()
    state = {
        name: np.zeros([sizes[side] if isinstance(side, str) else side for side in sides], dtype)
        for name, sides, dtype, _ in rows
    }
    fields = np.random.default_rng(0).normal(size=(10, 4, 6))
    assert core.record(fields, 2, 0, selected, 3, state) == 10
    assert all(state[name].any() for name, _, _, kept in rows if kept != "given")
    np.testing.assert_allclose(state["field"], fields.reshape(5, 2, 24).sum(axis=0))

    names = {kept: [name for name, _, _, of in rows if of == kept] for kept in ("always", "signs", "given")}
    for missing in (*names["always"], *names["signs"]):
        with pytest.raises(ValueError, match="state: expected count, power"):
            core.record(fields, 2, 0, selected, 3, {name: state[name] for name in state if name != missing})
    without_signs = {name: state[name] for name in names["always"]}
    assert core.record(fields, 2, 0, selected, 3, without_signs) == 10
