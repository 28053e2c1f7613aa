"""What sums of k = 0 are about: how it is chosen, and that about different offsets they are the same sums."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import fastcrit as fc
from fastcrit._edge.statefile import write_state
from fastcrit._kernels.offset import about, added, offset_of

NAMES = ("S", "S_stderr", "chi", "chi_stderr", "m", "abs_m", "binder", "cross_spectrum")


class TestChoice:
    def test_it_is_coarse_and_near_a_mean_that_outweighs_the_scatter(self, rng):
        noise = rng.standard_normal((3, 256))
        for mean in (100.0, 1e4, -1e6, 1e9):
            c = offset_of(noise + mean)
            # A multiple of 8 or 16 standard deviations, which are 1 to a few per cent.
            assert (np.abs(c - mean) <= 8 + 0.2).all()
            assert (c % 8 == 0).all()

    @pytest.mark.parametrize("mean", [0.0, 0.3, -5.0, 50.0])
    def test_it_is_zero_where_the_scatter_is_not_small(self, mean, rng):
        assert (offset_of(rng.standard_normal((3, 256)) + mean) == 0).all()

    def test_of_a_constant_it_is_nearly_the_constant(self):
        c = offset_of(np.array([[0.1] * 9, [0.0] * 9, [-7e8] * 9]))
        np.testing.assert_allclose(c, [0.1, 0.0, -7e8], rtol=2.0**-36)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
    def test_what_is_not_finite_has_none(self, bad):
        fields = np.full((1, 9), 3.0)
        fields[0, ::2] = bad
        assert offset_of(fields) == 0


def recorder(y, blocks=6):
    rec = fc.Recorder([0.5], shape=y.shape[1:], blocks=blocks)
    rec.update(0, y)
    return rec


class TestSums:
    @pytest.mark.parametrize("shape", [(2, 8, 8), (3, 5, 1), (1, 6, 4)])
    def test_about_another_offset_they_are_those_of_fields_recorded_about_it(self, shape, rng):
        y = rng.standard_normal((40, *shape)) + 500.0
        first = recorder(y)
        old = first.sums()["offset"]
        new = old + rng.integers(-3, 4, old.shape) * 8.0
        second = fc.Recorder([0.5], shape=shape, blocks=6)
        second._record.offsets[""][...] = new
        second.state["count"][0, 0] = 1  # samples are there: the offset stays
        second.update(0, y)
        second.state["count"][0, 0] -= 1
        moved = first.state | about(first.state, old, new, shape[1:])
        for name, values in second.state.items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(moved[name], values, rtol=0, atol=1e-11 * scale, err_msg=name)

    def test_a_tree_of_blocks_is_the_whole(self, rng):
        y = rng.standard_normal((64, 2, 8, 8)) * np.linspace(1, 5, 64)[:, None, None, None] + 1e6
        parts = []
        for begin in range(0, 64, 16):
            part = fc.Recorder([0.5], shape=(2, 8, 8), blocks=6)
            part.update(0, y[begin : begin + 16], sample=begin)
            parts.append(part.sums())
        whole = fc.Recorder([0.5], shape=(2, 8, 8), blocks=6)
        whole.set_sums(added([added(parts[:2], (8, 8)), added(parts[2:], (8, 8))], (8, 8)))
        found, expected = whole.dataset(), recorder(y).dataset()
        for name in NAMES:
            scale = np.nanmax(np.abs(expected[name]))
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-8 * scale, err_msg=name)

    @pytest.mark.parametrize("block_bytes", [1 << 12, 1 << 26])
    def test_analyze_in_blocks(self, block_bytes, rng):
        noise = rng.standard_normal((60, 12, 10))
        data = xr.DataArray(noise + 1e6, dims=("sample", "y", "x"))
        ds = fc.analyze(data, block_bytes=block_bytes)
        exact = data.values - 1e6
        np.testing.assert_allclose(ds.chi, 120 * exact.mean(axis=(1, 2)).var(), rtol=1e-8)
        np.testing.assert_allclose(ds.S, fc.structure_factor(exact).S, rtol=1e-8)

    def test_files_of_older_versions_have_none(self, rng, tmp_path):
        rec = recorder(rng.standard_normal((20, 2, 8, 8)))
        counters = {"next": rec._record.next, "next_gain": rec._record.next_gain}
        write_state(tmp_path / "rec", "fastcrit.recorder", 2, rec.config(), {**rec.state, **counters})
        xr.testing.assert_identical(fc.Recorder.load(tmp_path / "rec").dataset(), rec.dataset())

    def test_a_refused_batch_fixes_nothing(self, rng):
        y = rng.standard_normal((20, 2, 8, 8))
        rec = fc.Recorder([0.5], shape=(2, 8, 8), blocks=6)
        bad = y + 1e6
        bad[3, 1, 2, 2] = np.nan
        with pytest.raises(ValueError, match="NaN in the field at index 3"):
            rec.update(0, bad)
        rec.update(0, y, sample=0)
        xr.testing.assert_identical(rec.dataset(), recorder(y).dataset())
