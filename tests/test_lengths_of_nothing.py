"""What does not fluctuate by more than the rounding of its type has no length; what fluctuates by little has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._edge import arrays as _arrays

TYPES = [np.float16, np.float32, np.float64]


def copies(dtype, n=10, mean=0.0):
    """One field, n times: a seed that was reset."""
    field = mean + np.random.default_rng(0).standard_normal((1, 16, 16))
    return np.repeat(field.astype(dtype), n, axis=0)


NOTHING = {
    "copies": copies,
    "copies on a mean of 1000": lambda dtype: copies(dtype, mean=1000.0),
    "a constant of 0.1": lambda dtype: np.full((10, 8, 8), 0.1, dtype),
    "many of them": lambda dtype: np.full((5000, 4, 4), 0.1, dtype),
    "zeros": lambda dtype: np.zeros((10, 8, 8), dtype),
    "noise below the last digit": lambda dtype: (
        1000.0 + 0.1 * np.finfo(dtype).eps * np.random.default_rng(1).standard_normal((10, 8, 8))
    ).astype(dtype),
}


def nothing(found):
    return bool(np.isnan(found.value) and np.isnan(found.stderr) and found.flags == ("no_fluctuation",))


@pytest.mark.parametrize("method", fc.METHODS)
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("name", NOTHING)
def test_no_method_has_a_length(name, periodic, method):
    for dtype in TYPES:
        y = NOTHING[name](dtype)
        assert nothing(fc.correlation_length(y, method=method, periodic=periodic)), dtype
        assert nothing(fc.correlation_length(torch.from_numpy(y), method=method, periodic=periodic)), dtype


@pytest.mark.parametrize("method", fc.METHODS)
def test_lists_half_tensors_and_channels(method):
    y = copies(np.float32)
    assert nothing(fc.correlation_length(list(y), method=method))
    assert nothing(fc.correlation_length(torch.from_numpy(y).bfloat16(), method=method))
    field = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16).sample_data(10)
    found = fc.correlation_length(np.stack([y, field], axis=1), method=method)
    assert np.isnan(found.value[0])
    assert "no_fluctuation" in found.flags
    assert found.value[1] == pytest.approx(fc.correlation_length(field, method=method).value, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("method", fc.METHODS)
@pytest.mark.parametrize("periodic", [True, False])
def test_where_a_tensor_is_measured_on_its_device(method, periodic, monkeypatch):
    monkeypatch.setattr(_arrays, "TENSOR_DEVICES", ["cpu"])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        y = torch.from_numpy(copies(np.float64, mean=3.0)).to(dtype)
        assert nothing(fc.correlation_length(y, method=method, periodic=periodic)), dtype
    field = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16).sample_data(40)
    here = fc.correlation_length(torch.from_numpy(field), method=method, periodic=periodic)
    monkeypatch.undo()
    host = fc.correlation_length(field, method=method, periodic=periodic)
    assert here.value == pytest.approx(host.value, rel=1e-6, nan_ok=True)
    assert here.stderr == pytest.approx(host.stderr, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("method", ["ornstein_zernike", "efold", "integral", "binarized"])
@pytest.mark.parametrize("periodic", [True, False])
def test_constants_less_their_own_mean(method, periodic):
    y = np.full((10, 8, 8), 0.1) * np.arange(1, 11)[:, None, None]
    assert nothing(fc.correlation_length(y, method=method, center="sample", periodic=periodic))


def test_fields_that_change_their_sign_by_rounding_alone():
    y = copies(np.float64)
    y[:, ::2] = 0.0
    y += 1e-17 * np.random.default_rng(2).standard_normal(y.shape)
    assert nothing(fc.correlation_length(y, method="binarized"))
    rec = fc.Recorder([1.0], (16, 16), binarized=True)
    rec.update(0, y)
    assert rec.dataset().xi_binarized_flags.values.tolist() == ["no_fluctuation"]


@pytest.mark.parametrize("dtype", TYPES)
def test_in_the_dataset_of_a_recorder(dtype, tmp_path):
    y = copies(dtype)
    one, other = (fc.Recorder([2.0, 1.0], (16, 16), binarized=True) for _ in range(2))
    for rec, part in ((one, y[:6]), (other, y[6:])):
        for i in range(2):
            rec.update(i, part, denoised=part)
    one.merge(other)
    one.save(tmp_path / "state")
    for rec in (one, fc.Recorder.load(tmp_path / "state")):
        ds = rec.dataset(fc.METHODS)
        for method in fc.METHODS:
            for name in (f"xi_{method}", f"xi_{method}_denoised"):
                assert np.isnan(ds[name]).all(), name
                assert np.isnan(ds[f"{name}_stderr"]).all(), name
                assert (ds[f"{name}_flags"] == "no_fluctuation").all(), name
    stored = fc.analyze(y)
    assert str(stored.xi_efold_flags.values) == "no_fluctuation"


SMALL = {
    "1e-6 on a mean of 1e6": (1e6, 1e-6, np.float64),  # 9000 units in the last place
    "1e-4 on structure of 1e6": (1e6 * np.random.default_rng(3).standard_normal((24, 24)), 1e-4, np.float64),
    "0.01 on a mean of 1e4": (1e4, 0.01, np.float32),  # 10 units
    "0.005 on a mean of 1": (1.0, 0.005, np.float16),  # 5 units
    "1e-60": (0.0, 1e-60, np.float64),
    "1e60": (0.0, 1e60, np.float64),
}


@pytest.mark.parametrize("method", [m for m in fc.METHODS if m != "binarized"])
@pytest.mark.parametrize("name", SMALL)
def test_a_small_fluctuation_on_a_large_mean_keeps_its_length(name, method):
    mean, scale, dtype = SMALL[name]
    field = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=24).sample_data(200, seed=1)
    whole = fc.correlation_length(field, method=method)
    found = fc.correlation_length((mean + scale * field).astype(dtype), method=method)
    # The rounding of the data is white noise of ulp^2/12: 1 % of the variance at 5 units, 3 of them in C(0).
    assert found.value == pytest.approx(whole.value, rel=0.03)
    assert "no_fluctuation" not in found.flags


def test_uniform_fluctuations_are_longer_than_the_field(rng):
    y = np.ones((20, 8, 8)) * rng.standard_normal((20, 1, 1))
    for method in ("ornstein_zernike", "second_moment"):
        found = fc.correlation_length(y, method=method)
        assert np.isnan(found.value)
        assert found.flags == ("unbounded",)


def test_the_shape_of_a_correlation_of_nothing_is_nan():
    for y in (copies(np.float64), np.full((10, 8, 8), 0.1)):
        for periodic in (True, False):
            assert np.isnan(fc.autocorrelation(y, normalize=True, periodic=periodic).C).all()
    assert (fc.structure_factor(copies(np.float64)).S == 0).all()
