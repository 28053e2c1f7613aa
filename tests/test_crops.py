"""Fields cut from larger ones have the lengths of these, within errors; the expected power of a crop by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._estimates.crops import crop_form
from fastcrit._kernels.lattice import lattice

XI, SIDE, WHOLE, SAMPLES = 4.0, 32, 96, 1500


@pytest.fixture(scope="module")
def model():
    return fc.theory.GaussianTheory.ornstein_zernike(xi=XI, lattice=WHOLE)


@pytest.fixture(scope="module")
def crops(model):
    return np.ascontiguousarray(model.sample_data(SAMPLES, seed=7)[:, 5 : 5 + SIDE, 20 : 20 + SIDE])


def true_lengths(model):
    """What each estimator reads off the correlation of the larger field itself."""
    from fastcrit._estimates.lags import FROM_CORRELATION

    C = np.fft.ifftn(model.spectrum).real
    n = np.minimum(np.arange(WHOLE), WHOLE - np.arange(WHOLE))
    distance = np.hypot(n[:, None], n).ravel()
    sign = 2 / np.pi * np.arcsin(C / C[0, 0])  # of a Gaussian field
    shell = np.rint(distance).astype(int)
    inside = range(SIDE // 2 + 1)
    r = np.array([distance[shell == j].mean() for j in inside])
    found = {"ornstein_zernike": XI, "second_moment": XI}
    for method, one in FROM_CORRELATION.items():
        values = (sign if method == "binarized" else C).ravel()
        found[method] = one(r, np.array([values[shell == j].mean() for j in inside]))
    return found


@pytest.mark.parametrize("method", fc.METHODS)
def test_a_crop_has_the_length_of_the_field_it_was_cut_from(method, crops, model):
    truth = true_lengths(model)[method]
    found = fc.correlation_length(crops, method=method, periodic=False)
    assert found.value == pytest.approx(truth, abs=4 * found.stderr)
    assert found.stderr < 0.12 * truth


@pytest.mark.parametrize("method", ["ornstein_zernike", "efold", "integral", "binarized"])
def test_taken_for_a_torus_it_is_too_short(method, crops, model):
    found = fc.correlation_length(crops, method=method)
    assert found.value < true_lengths(model)[method] - 4 * found.stderr


def test_the_interval_covers_the_length_of_the_larger_field():
    # 60 repetitions at 95 %: a binomial count of 57 +- 1.7; on a torus it covers none of them.
    model = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=48)
    covered = 0
    for seed in range(60):
        crop = model.sample_data(128, seed=seed)[:, :16, :16]
        low, high = fc.correlation_length(crop, periodic=False).interval()
        covered += low <= 2.0 <= high
    assert 51 <= covered <= 60


@pytest.mark.parametrize("shape", [(12, 16), (15,), (9, 7, 8)])
def test_the_expected_power_is_that_of_the_larger_lattice(shape):
    # E|phi^|^2 / N by its definition: the sum over lags of C(r) times the share of pairs that the crop has.
    grid, form = lattice(shape), crop_form(shape)
    k2 = sum(np.meshgrid(*[4 * np.sin(np.pi * np.arange(4 * s) / (4 * s)) ** 2 for s in shape], indexing="ij"))
    lags = np.ix_(*[np.arange(1 - s, s) for s in shape])
    share = np.prod(np.broadcast_arrays(*[1 - np.abs(r) / s for r, s in zip(lags, shape, strict=True)]), axis=0)
    for log_q in (-5.0, 0.3, 3.1):
        C = np.fft.ifftn(1 / (1 + np.exp(log_q) * k2)).real
        folded = np.zeros(shape)
        np.add.at(folded, tuple(r % s for r, s in zip(lags, shape, strict=True)), C[lags] * share)
        half = np.moveaxis(np.fft.fftn(folded).real[..., : shape[-1] // 2 + 1], -1, 0).ravel()
        power, slope, curvature = (x[0] for x in form(np.array([[log_q]])))
        np.testing.assert_allclose(power[grid.orbit_of_mode], half, rtol=5e-5)  # the spline's step
        step = 1e-3
        up, down = (form(np.array([[log_q + d]]))[0][0] for d in (step, -step))
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(curvature, (up - 2 * power + down) / step**2, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("ndim", [1, 3])
def test_in_one_and_three_dimensions(ndim):
    whole, side, n = {1: (256, 40, 3000), 3: (30, 10, 200)}[ndim]
    model = fc.theory.GaussianTheory.ornstein_zernike(xi=1.5, lattice=whole, ndim=ndim)
    crop = model.sample_data(n, seed=4)[(slice(None), *[slice(side)] * ndim)]
    found = fc.correlation_length(crop, ndim=ndim, periodic=False)
    assert found.value == pytest.approx(1.5, abs=4 * found.stderr)


@pytest.mark.parametrize("method", fc.METHODS)
def test_tensors_channels_spacing_and_noise(method, crops):
    few = crops[:100]
    one = fc.correlation_length(few, method=method, periodic=False, spacing=0.5)
    both = fc.correlation_length(
        torch.from_numpy(np.stack([few, 2 * few], axis=1)).float(), method=method, periodic=False, spacing=0.5
    )
    np.testing.assert_allclose(both.value, [one.value] * 2, rtol=1e-4)
    np.testing.assert_allclose(both.stderr, [one.stderr] * 2, rtol=1e-2)


@pytest.mark.parametrize("background", [2.25, "free"])
def test_with_white_noise_added(background, crops, rng):
    noisy = crops + 1.5 * rng.standard_normal(crops.shape)
    found = fc.correlation_length(noisy, background=background, periodic=False)
    assert found.value == pytest.approx(XI, abs=4 * found.stderr)


def test_a_structure_factor_will_do_where_power_is_enough(crops):
    S = fc.structure_factor(crops[:200])
    for method in ("ornstein_zernike", "second_moment"):
        a, b = (fc.correlation_length(x, method=method, periodic=False) for x in (crops[:200], S))
        assert a.value == pytest.approx(b.value, rel=1e-9)
    with pytest.raises(ValueError, match="field_or_S: method='efold' needs the fields themselves with periodic=False"):
        fc.correlation_length(S, method="efold", periodic=False)


def test_a_recorder_and_stored_fields(crops):
    rec = fc.Recorder([1.0], (SIDE, SIDE), low_modes=SIDE // 2, binarized=True)
    rec.update(0, crops[:300], denoised=crops[:300])
    ds = rec.dataset(periodic=False)
    names = [n for n in ds if n.startswith("xi_") and not n.endswith(("_stderr", "_jackknife", "_flags"))]
    assert sorted(names) == sorted(f"xi_{m}{d}" for m in fc._estimates.dataset.OF_CROPS for d in ("", "_denoised"))
    direct = fc.correlation_length(crops[:300], periodic=False, k_max=rec.k_max)
    assert float(ds.xi_ornstein_zernike_denoised[0]) == pytest.approx(direct.value, rel=1e-6)
    stored = fc.analyze(crops[:300], periodic=False, low_modes=SIDE // 2)
    assert float(stored.xi_ornstein_zernike) == pytest.approx(direct.value, rel=1e-6)
    with pytest.raises(ValueError, match=r"lengths: 'efold' of crops .* correlation_length\(fields, method='efold'"):
        rec.dataset(["efold"], periodic=False)


def test_a_length_beyond_the_crop_is_unbounded(rng):
    uniform = np.ones((50, 8, 8)) * rng.standard_normal((50, 1, 1))
    for method in ("ornstein_zernike", "second_moment"):
        found = fc.correlation_length(uniform, method=method, periodic=False)
        assert np.isnan(found.value)
        assert found.flags == ("unbounded",)
