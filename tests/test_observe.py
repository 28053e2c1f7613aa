"""The recorder: its numbers against spectra of the whole array, exact merging, files, and refusals."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
import xarray as xr

import fastcrit as fc
from fastcrit._estimates.dataset import Recorded, _centred
from tests.oracles.spectra import shell_average, wavevectors
from tests.spectra_contract import sums_of

LEVELS = [5.0, 2.0, 0.5]


def states(rng, n=40, shape=(2, 12, 10), level=1.0):
    """Correlated states with a mean pattern, so that centring matters."""
    x = rng.standard_normal((n, *shape))
    return level * x + np.roll(x, 1, axis=-1) + np.linspace(0, 3, shape[-1])


def recorded(rng, batches=(40,), **options):
    options = {"blocks": 8, "low_modes": 3, **options}
    rec = fc.Recorder(LEVELS, shape=(2, 12, 10), **options)
    all_states = []
    for i, s in enumerate(LEVELS):
        y = states(rng, sum(batches), level=s)
        begin = 0
        for n in batches:
            rec.update(i, y[begin : begin + n])
            begin += n
        all_states.append(y)
    return rec, all_states


class TestNumbers:
    def test_structure_factor_and_correlation_are_those_of_the_whole_array(self, rng):
        rec, ys = recorded(rng)
        ds = rec.dataset()
        assert ds.S.dims == ("level", "channel", "k")
        for i, y in enumerate(ys):
            S = fc.structure_factor(y)
            np.testing.assert_allclose(ds.S[i], S.S, rtol=1e-10)
            np.testing.assert_allclose(ds.k, S.k)
            C = fc.autocorrelation(y)
            np.testing.assert_allclose(ds.C[i], C.C, rtol=1e-9, atol=1e-12)

    def test_lengths_are_those_of_the_fields_with_the_known_background(self, rng):
        rec, ys = recorded(rng, low_modes=6)
        ds = rec.dataset(lengths=("ornstein_zernike", "second_moment", "efold", "integral"))
        for i, (y, s) in enumerate(zip(ys, LEVELS, strict=True)):
            for method in ("ornstein_zernike", "second_moment", "efold", "integral"):
                k_max = rec.k_max if method == "ornstein_zernike" else None
                one = fc.correlation_length(y, method=method, background=s**2, blocks=8, k_max=k_max)
                np.testing.assert_allclose(ds[f"xi_{method}"][i], one.value, rtol=1e-6, equal_nan=True)

    def test_leaving_a_block_out_removes_its_samples_exactly(self, rng):
        rec, ys = recorded(rng, low_modes=6)  # all modes of this lattice are kept one by one
        used = rec.state["count"][0] > 0
        recorded_sums = Recorded(rec.levels, 1.0, 1.0, rec.k_max, rec.has_channels, rec._record)
        for i, y in enumerate(ys):
            modes = _centred(recorded_sums, i, used)
            replicates = modes.mean_and_replicates(modes.power)[1:]
            for b in range(8):
                # The mean that is removed stays that of all samples, as in structure_factor.
                rest = np.delete(y - y.mean(axis=0), np.arange(b, 40, 8), axis=0)
                S = fc.structure_factor(rest, center="none", corners=True).S * 40 / 39
                found = rec.grid.to_shells(replicates[b] * rec.grid.orbit_modes) / rec.grid.shell_modes
                np.testing.assert_allclose(found, S, rtol=1e-9)

    def test_moments(self, rng):
        rec, ys = recorded(rng)
        ds = rec.dataset()
        for i, y in enumerate(ys):
            m = y.mean(axis=(-1, -2))
            np.testing.assert_allclose(ds.m[i], m.mean(0), rtol=1e-9)
            np.testing.assert_allclose(ds.abs_m[i], np.abs(m).mean(0), rtol=1e-9)
            np.testing.assert_allclose(ds.chi[i], 120 * ((m**2).mean(0) - np.abs(m).mean(0) ** 2), rtol=1e-8)
            np.testing.assert_allclose(ds.binder[i], 1 - (m**4).mean(0) / (3 * (m**2).mean(0) ** 2), rtol=1e-8)

    def test_binarized_length(self, rng):
        rec, ys = recorded(rng, binarized=True)
        ds = rec.dataset()
        for i, y in enumerate(ys):
            one = fc.correlation_length(y, method="binarized", blocks=8)
            np.testing.assert_allclose(ds.xi_binarized[i], one.value, rtol=1e-4)

    def test_gains_softening_and_equilibrium_length(self, rng):
        rec = fc.Recorder([4.0, 1.0], shape=(16, 16), gain_shells=(0, 1, 2), blocks=4, data_std=0.5)
        gain = 0.3 + 0.1 * rng.random((12, 3)) - 0.1 * np.arange(3)
        for i in range(2):
            rec.update(i, states(rng, 12, (16, 16)))
            rec.update_gain(i, gain)
        ds = rec.dataset()
        np.testing.assert_allclose(ds.gain_on_trajectories[0], gain.mean(0))
        # |lambda| = (1 - g)/sigma^2, sigma^2 = s'^2/(1 + s'^2) with s' = s/data_std.
        scaled = np.array([8.0, 2.0])
        np.testing.assert_allclose(ds.softening, (1 - gain.mean(0)) * ((1 + scaled**2) / scaled**2)[:, None])
        blocks = np.stack([np.delete(gain, np.arange(b, 12, 4), axis=0).mean(0) for b in range(4)])
        error = np.sqrt(3 / 4 * ((blocks - blocks.mean(0)) ** 2).sum(0))
        np.testing.assert_allclose(ds.gain_on_trajectories_stderr[0], error, rtol=1e-9)
        k2 = shell_average((4 * np.sin(wavevectors((16, 16)) / 2) ** 2).sum(axis=-1))[1][:3]
        np.testing.assert_allclose(ds.xi_eq[0], fc.dispersion_length(k2, gain.mean(0), error), rtol=1e-9)

    def test_states_without_channels_and_in_other_dimensions(self, rng):
        for shape, ndim in (((30,), 1), ((2, 30), 1), ((6, 5, 4), 3), ((9, 8), 2)):
            rec = fc.Recorder([1.0], shape=shape, ndim=ndim)
            y = rng.standard_normal((50, *shape))
            rec.update(0, y)
            S = fc.structure_factor(y, ndim=ndim).S
            np.testing.assert_allclose(rec.dataset().S[0], S, rtol=1e-9)

    def test_torch_states_and_half_precision(self, rng):
        y = states(rng).astype(np.float16)
        a = fc.Recorder([1.0], shape=(2, 12, 10))
        b = fc.Recorder([1.0], shape=(2, 12, 10))
        a.update(0, y.astype(np.float32))
        b.update(0, torch.from_numpy(y))
        xr.testing.assert_identical(a.dataset(), b.dataset())

    @pytest.mark.parametrize("mean", [1.0, 100.0, 1000.0])
    def test_a_large_mean_costs_float32_nothing_at_k_zero(self, mean, rng):
        y = (rng.standard_normal((100, 48, 48)) + mean).astype(np.float32)
        rec = fc.Recorder([0.1], shape=(48, 48))
        rec.update(0, y)
        exact = fc.structure_factor(y.astype(np.float64)).S
        ds = rec.dataset()
        # The states themselves are rounded to 6e-8 of the mean; the transform adds as much in every mode.
        np.testing.assert_allclose(ds.S[0, 0], exact[0], rtol=1e-6 * max(1.0, mean))
        np.testing.assert_allclose(ds.S[0, 1:], exact[1:], rtol=1e-5 * max(1.0, mean))

    def test_units_and_names(self, rng):
        ds = recorded(rng, spacing=0.25)[0].dataset()
        assert ds.k.attrs["units"] == "rad/length"
        assert ds.xi_efold.attrs["units"] == "length"
        assert ds.S.attrs["long_name"]
        np.testing.assert_allclose(ds.r[1:3] / 0.25, recorded(rng)[0].dataset().r[1:3])


class TestMerging:
    def test_any_split_and_order_gives_the_same_dataset(self, rng):
        y = [states(rng, 40, level=s) for s in LEVELS]
        whole = fc.Recorder(LEVELS, shape=(2, 12, 10), blocks=8)
        parts = [fc.Recorder(LEVELS, shape=(2, 12, 10), blocks=8) for _ in range(3)]
        cuts = [(0, 13), (13, 21), (21, 40)]
        for i in range(3):
            whole.update(i, y[i])
            for part, (a, b) in zip(parts, cuts, strict=True):
                part.update(i, y[i][a:b], sample=a)
        merged = fc.Recorder(LEVELS, shape=(2, 12, 10), blocks=8)
        for part in (parts[2], parts[0], parts[1]):
            merged.merge(part)
        a, b = whole.dataset(), merged.dataset()
        np.testing.assert_array_equal(a.n_samples, b.n_samples)
        for name in a.data_vars:
            if a[name].dtype.kind == "f":
                # Sums in another order differ by rounding; roots and differences amplify it somewhat.
                np.testing.assert_allclose(a[name], b[name], rtol=1e-8, atol=1e-10, err_msg=name)

    def test_a_given_layout_has_the_same_bits(self, rng):
        y = states(rng)
        pair = []
        for _ in range(2):
            left, right = (fc.Recorder([1.0], shape=(2, 12, 10)) for _ in range(2))
            left.update(0, y[:15])
            right.update(0, y[15:], sample=15)
            left.merge(right)
            pair.append(left.dataset())
        xr.testing.assert_identical(*pair)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_sums_of_a_long_batch(self, dtype, rng, threads, layout, instruction_set):
        n, shape, blocks = 3001, (3, 12, 10), 7  # many spans, none of which is a multiple of the blocks
        y = states(rng, n, shape).astype(dtype)
        rec = fc.Recorder([1.0], shape=shape, blocks=blocks, low_modes=3, binarized=True)
        made = []
        for count in (1, 2, 5):
            threads(count)
            rec = fc.Recorder(**rec.config(), device=rec.device)
            rec.update(0, y, sample=4)
            made.append({name: values.copy() for name, values in rec.state.items()})
        for name, values in made[0].items():  # thread count changes no bit
            for other in made[1:]:
                np.testing.assert_array_equal(other[name], values)

        expected = sums_of(y.astype(np.float64), rec, first=4)
        # Sums of 429 samples a block, each right to a few eps of the field's own scale.
        tolerance = 1e-5 if dtype == np.float32 else 1e-12
        assert set(expected) == set(made[0])
        for name, values in expected.items():
            np.testing.assert_allclose(made[0][name][0], values, rtol=0, atol=tolerance * np.abs(values).max())

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            ({"levels": [5.0, 1.0]}, "levels"),
            ({"shape": (2, 10, 12)}, "shape"),
            ({"blocks": 4}, "blocks"),
            ({"spacing": 2.0}, "spacing"),
            ({"gain_shells": (0, 1)}, "gain_shells"),
            ({"binarized": True}, "binarized"),
            ({"denoised": False}, "denoised"),
        ],
    )
    def test_recorders_that_differ_are_refused_by_name(self, options, what):
        base = {"levels": LEVELS, "shape": (2, 12, 10)}
        with pytest.raises(ValueError, match=f"merge: recorders differ in {what}"):
            fc.Recorder(**base).merge(fc.Recorder(**{**base, **options}))

    def test_itself_is_refused(self):
        rec = fc.Recorder(LEVELS, shape=(4, 4))
        with pytest.raises(ValueError, match="merge: a recorder cannot be merged with itself"):
            rec.merge(rec)

    def test_pickles_and_copies_are_independent(self, rng):
        rec, ys = recorded(rng)
        twin = pickle.loads(pickle.dumps(rec))
        xr.testing.assert_identical(twin.dataset(), rec.dataset())
        twin.update(0, ys[0])
        assert twin.dataset().n_samples[0] == 2 * rec.dataset().n_samples[0]
        assert repr(rec) == "<Recorder: 3 levels of 2 x 12 x 10 states, up to 40 samples a level>"

    def test_something_else_is_refused(self):
        with pytest.raises(TypeError, match="merge: expected a Recorder, got Dataset"):
            fc.Recorder(LEVELS, shape=(4, 4)).merge(xr.Dataset())

    def test_memory_does_not_grow_with_samples(self, rng):
        rec = fc.Recorder([1.0], shape=(32, 32))
        y = rng.standard_normal((256, 32, 32)).astype(np.float32)
        rec.update(0, y)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            rec.update(0, y)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 64 << 10


class TestFiles:
    def test_a_saved_recorder_comes_back_and_goes_on(self, rng, tmp_path):
        y = states(rng)
        a = fc.Recorder(LEVELS, shape=(2, 12, 10), binarized=True, gain_shells=(0, 1))
        a.update(0, y[:21])
        a.update_gain(0, rng.random((21, 2)))
        a.save(tmp_path / "state")
        b = fc.Recorder.load(tmp_path / "state")
        for rec in (a, b):
            rec.update(0, y[21:])
        xr.testing.assert_identical(a.dataset(), b.dataset())

    def test_a_truncated_file_is_refused_by_name(self, rng, tmp_path):
        rec, _ = recorded(rng)
        path = tmp_path / "state.safetensors"
        rec.save(path)
        content = path.read_bytes()
        for cut in (0, 5, 100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:cut])
            with pytest.raises(fc.FileFormatError, match=r"state\.safetensors: damaged"):
                fc.Recorder.load(path)

    def test_a_changed_byte_is_refused_by_name(self, rng, tmp_path):
        rec, _ = recorded(rng)
        path = tmp_path / "state.safetensors"
        rec.save(path)
        content = bytearray(path.read_bytes())
        for at in (len(content) // 3, len(content) - 9):
            changed = content.copy()
            changed[at] ^= 0x10
            path.write_bytes(changed)
            with pytest.raises(fc.FileFormatError, match=r"state\.safetensors: damaged"):
                fc.Recorder.load(path)

    def test_a_sum_that_an_older_file_lacks_is_unknown_where_its_samples_are(self, rng):
        rec, _ = recorded(rng)
        kept = {name: values for name, values in rec.sums().items() if not name.startswith("denoised_")}
        older = {name: values for name, values in kept.items() if name not in ("first", "cross", "eps")}
        other = fc.Recorder(**rec.config())
        other.set_sums(older)
        for name, values in other.state.items():
            assert np.isnan(values).all() if name in ("first", "cross") else np.array_equal(values, kept[name]), name

    def test_a_foreign_file_and_another_version(self, tmp_path):
        from fastcrit._edge.statefile import write_state

        path = tmp_path / "x"
        path.write_text("hello")
        with pytest.raises(fc.FileFormatError, match=r"x: damaged, or not a fastcrit.recorder"):
            fc.Recorder.load(path)
        with pytest.raises(FileExistsError, match=r"x: exists and is not a fastcrit.recorder file; it is left"):
            fc.Recorder([1.0], shape=(8, 8)).save(path)
        assert path.read_text() == "hello"
        path.unlink()
        write_state(path, "weights", 1, {}, {"a": np.zeros(3)})
        with pytest.raises(fc.FileFormatError, match=r"x: not a fastcrit.recorder file \(format 'weights'\)"):
            fc.Recorder.load(path)
        path.unlink()
        write_state(path, "fastcrit.recorder", 99, {}, {"a": np.zeros(3)})
        with pytest.raises(fc.FileFormatError, match=r"x: fastcrit.recorder version 99; this fastcrit reads version 1"):
            fc.Recorder.load(path)
        with pytest.raises(FileNotFoundError, match="nothing: no such file"):
            fc.Recorder.load(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="no such folder does not exist"):
            fc.Recorder([1.0], shape=(8, 8)).save(tmp_path / "no such folder" / "x")


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"levels": [1.0, 2.0]}, ValueError, "levels: expected strictly decreasing noise levels, got 1.0 then 2.0"),
            ({"levels": [1.0, 1.0]}, ValueError, "levels: expected strictly decreasing"),
            ({"levels": [1.0, -2.0]}, ValueError, "levels: expected positive noise levels, got -2.0"),
            ({"levels": [np.nan]}, ValueError, "levels: expected finite numbers, got nan"),
            ({"levels": []}, ValueError, "levels: expected a non-empty sequence"),
            ({"levels": "high"}, TypeError, "levels: expected a sequence of numbers, got str"),
            ({"shape": (4,)}, ValueError, r"shape: expected ndim=2 positive sides, .* got \(4,\)"),
            ({"shape": 4}, TypeError, "shape: expected the shape of one state"),
            ({"shape": (0, 4)}, ValueError, "shape: expected ndim=2 positive sides"),
            ({"blocks": 1}, ValueError, "blocks: expected an integer of at least 2, got 1"),
            ({"spacing": -1}, ValueError, "spacing: expected a positive number, got -1"),
            ({"data_std": 0.0}, ValueError, "data_std: expected a positive number, got 0.0"),
            ({"gain_shells": (1, 0)}, ValueError, "gain_shells: expected ascending shells below"),
            ({"gain_shells": (99,)}, ValueError, "gain_shells: expected ascending shells below"),
        ],
    )
    def test_at_construction(self, options, error, message):
        with pytest.raises(error, match=message):
            fc.Recorder(**{"levels": [2.0, 1.0], "shape": (8, 8), **options})

    def test_at_update(self, rng):
        rec = fc.Recorder([2.0, 1.0], shape=(8, 8), gain_shells=(0,))
        with pytest.raises(ValueError, match=r"y: expected states of shape \(batch, \*\(8, 8\)\), got \(5, 8, 9\)"):
            rec.update(0, np.zeros((5, 8, 9)))
        with pytest.raises(ValueError, match="y: empty batch"):
            rec.update(0, np.zeros((0, 8, 8)))
        with pytest.raises(ValueError, match="i: expected a level index from 0 to 1, got 2"):
            rec.update(2, np.zeros((5, 8, 8)))
        with pytest.raises(TypeError, match="y: expected real values, got complex"):
            rec.update(0, np.zeros((5, 8, 8), complex))
        with pytest.raises(ValueError, match="sample: expected the number of the batch's first sample"):
            rec.update(0, np.zeros((5, 8, 8)), sample=-1)
        with pytest.raises(ValueError, match=r"gain: expected shape \(batch, 1\), got \(5, 2\)"):
            rec.update_gain(0, np.zeros((5, 2)))
        with pytest.raises(ValueError, match="gain: NaN in the field at index 3"):
            rec.update_gain(0, np.where(np.arange(5) == 3, np.nan, 0.0)[:, None])
        with pytest.raises(ValueError, match=r"levels: this recorder has 1 at index 1, the sampler 0.5"):
            rec(1, 0.5, np.zeros((5, 8, 8)), None)
        with pytest.raises(ValueError, match="made without gain_shells"):
            fc.Recorder([1.0], shape=(8, 8)).update_gain(0, np.zeros((5, 1)))

    @pytest.mark.parametrize("n", [20, 40_000])
    def test_nan_is_named_and_nothing_of_the_batch_is_kept(self, n, rng):
        rec = fc.Recorder([1.0], shape=(8, 8))
        rec.update(0, rng.standard_normal((10, 8, 8)))
        before = rec.dataset()
        bad = rng.standard_normal((n, 8, 8)).astype(np.float32)
        bad[n - 3, 1, 1] = np.inf
        with pytest.raises(ValueError, match=f"y: infinite value in the field at index {n - 3}"):
            rec.update(0, bad)
        xr.testing.assert_identical(rec.dataset(), before)
        assert rec._record.next[0] == 10

    def test_an_interrupt_leaves_the_recorder_as_it_was(self, rng, monkeypatch):
        from fastcrit._kernels import host as _sums
        from fastcrit._kernels.record import HostRecord

        rec = fc.Recorder([1.0], shape=(8, 8))
        rec.update(0, rng.standard_normal((10, 8, 8)))
        before, calls, add = rec.dataset(), [], HostRecord._add

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            add(*arguments)

        monkeypatch.setattr(_sums, "CHUNK_BYTES", 1)  # 64 samples at a time
        monkeypatch.setattr(HostRecord, "_add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rec.update(0, rng.standard_normal((300, 16, 8))[:, ::2])
        xr.testing.assert_identical(rec.dataset(), before)
        assert rec._record.next[0] == 10

    def test_the_levels_are_its_own(self):
        levels = np.array([2.0, 1.0])
        rec = fc.Recorder(levels, shape=(8, 8))
        levels *= 3
        assert rec.levels.tolist() == [2.0, 1.0]

    @pytest.mark.parametrize("shape", [(3,), (2,), (1, 2), (1, 1), (16, 64), (1, 16)])
    def test_small_and_long_lattices(self, shape, rng):
        rec = fc.Recorder([1.0], shape=shape, ndim=len(shape), gain_shells=(0,))
        rec.update(0, rng.standard_normal((20, *shape)))
        ds = rec.dataset()
        assert ds.k[0] == 0
        assert ds.counts[0] == 1
        assert np.isfinite(ds.S).all()

    def test_one_sample_at_a_level(self, rng):
        rec = fc.Recorder([1.0], shape=(8, 8))
        rec.update(0, rng.standard_normal((1, 8, 8)))
        with pytest.raises(ValueError, match=r"level 0 \(s = 1\) has a single sample"):
            rec.dataset()

    def test_levels_without_samples_are_nan(self, rng):
        rec = fc.Recorder([2.0, 1.0], shape=(8, 8))
        rec.update(1, rng.standard_normal((10, 8, 8)))
        ds = rec.dataset()
        assert np.isnan(ds.S[0]).all()
        assert np.isfinite(ds.S[1]).all()
        assert ds.xi_efold_flags[0] == "no_samples"

    def test_unknown_lengths(self, rng):
        rec, _ = recorded(rng)
        with pytest.raises(ValueError, match="lengths: expected one of"):
            rec.dataset(lengths=("width",))
        with pytest.raises(ValueError, match="lengths: 'binarized' needs a recorder made with binarized=True"):
            rec.dataset(lengths=("binarized",))


def test_sample_numbers_beyond_the_last_are_refused_and_merging_stays_below_it():
    a, b = (fc.Recorder([1.0], shape=(8, 8)) for _ in range(2))
    y = np.ones((3, 8, 8))
    for rec in (a, b):
        rec.update(0, y[:1], sample=2**62 - 1)
        with pytest.raises(ValueError, match="sample: expected the number"):
            rec.update(0, y)
        assert rec.state["count"].sum() == 1
    a.merge(b)
    a.update(0, y)
    assert a.state["count"].sum() == 5
