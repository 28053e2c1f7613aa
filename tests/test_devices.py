"""The shared test class on this machine's processor, and what recorders on a device promise besides."""

from __future__ import annotations

import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastcrit as fc
from fastcrit import _core
from fastcrit._edge import arrays as _arrays
from fastcrit._estimates.rounding import resolution, rounding_power
from fastcrit._kernels.cuda import CudaSpectrometer
from fastcrit._kernels.device import TorchSpectrometer
from tests.spectra_contract import (
    Backend,
    PublicContract,
    RecorderContract,
    SpectraContract,
    in_use,
    kernels_on_the_host,
    state_of,
)

CPU = torch.device("cpu")


IMPLEMENTATIONS = {"core": Backend(None), "torch": Backend(CPU, TorchSpectrometer)}
if kernels_on_the_host():
    IMPLEMENTATIONS["CUDA kernels on the processor"] = Backend(CPU, CudaSpectrometer)


@pytest.fixture(params=IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def backend(request, monkeypatch):
    with in_use(request.param, monkeypatch) as backend:
        yield backend


@pytest.fixture(params=list(IMPLEMENTATIONS)[1:])
def device_backend(request, monkeypatch):
    """Those of tensors."""
    with in_use(IMPLEMENTATIONS[request.param], monkeypatch) as backend:
        yield backend


def test_the_kernels_are_among_them():
    if not kernels_on_the_host():
        pytest.skip("this core has no CUDA kernels for the processor: build it with FASTCRIT_CUDA=host")


@pytest.fixture
def torch_backend(monkeypatch):
    with in_use(Backend(CPU, TorchSpectrometer), monkeypatch) as backend:
        yield backend


class TestSpectra(SpectraContract):
    pass


class TestPublic(PublicContract):
    pass


class TestRecorder(RecorderContract):
    pass


# What makes the host wait for a device, as torch's dispatcher sees it ...
WAITS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique2", "_unique2"}
# ... and as a caller writes it, where on a CPU tensor nothing needs dispatching.
METHODS = ("item", "cpu", "tolist", "numpy", "nonzero", "is_nonzero", "__bool__", "__int__", "__float__", "__index__",
           "__array__", "equal", "allclose", "unique", "masked_select")  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that would wait for a device, or move data between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.__name__.split(".")[0] not in WAITS, f"{func} waits for the device"
        before = {x.device.type for x in args if isinstance(x, torch.Tensor) and x.dim() > 0}
        result = func(*args, **(kwargs or {}))
        index = [x for x in (args[1] if func.__name__.startswith("index.") else []) if x is not None]
        assert not any(x.dtype == torch.bool for x in index), f"{func} with a mask waits for the device"
        if isinstance(result, torch.Tensor):
            assert before <= {result.device.type}, f"{func} copies from {before} to {result.device}"
        return result


@contextmanager
def nothing_is_read():
    """Neither through the dispatcher nor by a method of a tensor."""

    def forbidden(name):
        def method(*arguments, **options):
            raise AssertionError(f"Tensor.{name}() waits for the device")

        return method

    with pytest.MonkeyPatch.context() as patch, NoWaiting():
        for name in METHODS:
            patch.setattr(torch.Tensor, name, forbidden(name))
        yield


class Counting(TorchDispatchMode):
    """What torch does in a call: allocations, launches, waits."""

    ALLOCATE = frozenset(
        ("empty", "full", "zeros", "arange", "clone", "cat", "_to_copy", "empty_strided", "scalar_tensor")
    )
    VIEWS = frozenset(
        ("view", "_unsafe_view", "slice", "select", "alias", "detach", "split", "as_strided", "unsqueeze",
         "_reshape_alias", "unbind")
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.allocations = self.launches = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        self.waits += name in WAITS
        self.allocations += name in self.ALLOCATE
        self.launches += name not in self.VIEWS | WAITS | {"empty", "empty_strided"}
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not kernels_on_the_host(), reason="this core has no CUDA kernels for the processor")
class TestLaunches:
    """What one call costs a device once tables are there: (launches, allocations, waits)."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(16, 16), (12, 10)])
    def test_of_a_call(self, shape, dtype, rng, monkeypatch):
        with in_use(IMPLEMENTATIONS["CUDA kernels on the processor"], monkeypatch):
            y = torch.from_numpy(rng.standard_normal((64, 3, *shape))).to(dtype)
            plain, signs = (fc.Recorder([1.0], shape=(3, *shape), binarized=b, device="cpu") for b in (False, True))
            assert self.cost(lambda: fc.power_spectrum(y)) == (1, 1, 1)
            assert self.cost(lambda: fc.power_spectrum(y, check="deferred")) == (2, 2, 0)
            for center, launches in (("ensemble", 3), ("sample", 3), ("none", 2)):
                assert self.cost(lambda center=center: fc.structure_factor(y, center=center)) == (launches, 3, 1)
            assert self.cost(lambda: plain.update(0, y)) == (2, 1, 0)
            assert self.cost(lambda: signs.update(0, y)) == (3, 1, 0)
            many = torch.from_numpy(rng.standard_normal((600, 3, *shape))).to(dtype)
            assert self.cost(lambda: plain.update(0, many)) == (3, 1, 0)  # the sums of pieces are added up
            assert self.cost(lambda: fc.structure_factor(many)) == (3, 3, 1)

    @staticmethod
    def cost(call):
        call()
        before = _core.cuda_launches()
        with pytest.MonkeyPatch.context() as patch, Counting() as counted:
            patch.setattr(CudaSpectrometer, "wait", lambda self: setattr(counted, "waits", counted.waits + 1))
            call()
        return counted.launches + _core.cuda_launches() - before, counted.allocations, counted.waits


@pytest.mark.skipif(not kernels_on_the_host(), reason="this core has no CUDA kernels for the processor")
class TestAveragesInThreeLaunches:
    """`structure_factor` by the kernels that average over samples, beside the core's of the same values in float64."""

    @pytest.fixture(autouse=True)
    def _kernels(self, monkeypatch):
        with in_use(IMPLEMENTATIONS["CUDA kernels on the processor"], monkeypatch):
            yield

    @staticmethod
    def launches(call):
        before = _core.cuda_launches()
        return call(), _core.cuda_launches() - before

    @pytest.mark.parametrize("center", ["ensemble", "sample", "none"])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize(
        ("shape", "samples"),
        [((16, 16), 40), ((3, 32, 32), 33), ((2, 3, 12, 10), 7), ((30, 14), 3), ((6, 9), 2), ((3, 10, 7), 300)],
    )
    def test_the_numbers_are_those_of_the_core(self, shape, samples, dtype, center, rng):
        y = rng.standard_normal((samples, *shape)) + 2.0 * rng.standard_normal(shape)
        fields, exact = Backend(CPU).array(y, dtype)
        for corners in (False, True):
            options = {"center": center, "corners": corners, "blocks": 7}
            found, launches = self.launches(lambda options=options: fc.structure_factor(fields, **options))
            assert launches == (2 if center == "none" else 3)
            expected = fc.structure_factor(exact, **options)
            assert found.S.shape == found.stderr.shape == expected.S.shape
            assert found.n_samples == samples
            # As everywhere relative to the mean power of the fields (see TOLERANCE in spectra_contract.py).
            atol = 2e-5 * np.mean(exact**2)
            for name in ("S", "stderr", "k", "counts"):
                np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=atol)
            twin = pickle.loads(pickle.dumps(found))
            np.testing.assert_array_equal(twin.S, found.S)
            for modes in (found.modes, twin.modes):
                assert modes.center == center
                np.testing.assert_array_equal(modes.counts, expected.modes.counts)
                # Sums over the samples of a block.
                for name in ("power", "first"):
                    np.testing.assert_allclose(
                        getattr(modes, name), getattr(expected.modes, name), rtol=0, atol=atol * modes.counts.max()
                    )
                spacing = resolution(fields, fields)
                rounding = rounding_power(fields, int(np.prod(shape[:-2])), center, spacing)
                np.testing.assert_allclose(modes.rounding, rounding, rtol=1e-5)

    @pytest.mark.parametrize("shape", [(3, 16, 16), (3, 12, 10)])
    def test_views_and_fields_that_begin_anywhere(self, shape, rng):
        y = torch.from_numpy(rng.standard_normal((20, 2, *shape)).astype(np.float32))
        odd = torch.cat([torch.zeros(1), y.flatten()])[1:].reshape(y.shape)
        expected = fc.structure_factor(y)
        for view in (y.transpose(0, 1).contiguous().transpose(0, 1), odd):
            found, launches = self.launches(lambda view=view: fc.structure_factor(view))
            assert launches == 3
            np.testing.assert_array_equal(found.S, expected.S)
            np.testing.assert_array_equal(found.stderr, expected.stderr)

    @pytest.mark.parametrize("shape", [(3, 16, 16), (12, 10)])
    def test_the_same_bits_every_time(self, shape, rng):
        y = torch.from_numpy(rng.standard_normal((300, *shape)).astype(np.float32))
        a, b = fc.structure_factor(y), fc.structure_factor(y)
        for name in ("S", "stderr"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for name in ("power", "first", "rounding"):
            np.testing.assert_array_equal(getattr(a.modes, name), getattr(b.modes, name))

    @pytest.mark.parametrize("center", ["ensemble", "sample"])
    def test_a_mean_of_many_standard_deviations_costs_no_digit(self, center, rng):
        y = (rng.standard_normal((24, 2, 16, 16)) + 100.0).astype(np.float32)
        found, launches = self.launches(lambda: fc.structure_factor(torch.from_numpy(y), center=center))
        assert launches == 3
        expected = fc.structure_factor(y.astype(np.float64), center=center)
        # Relative to the mean power, 1: the mean is taken out in float64.
        np.testing.assert_allclose(found.S, expected.S, rtol=0, atol=2e-5)
        np.testing.assert_allclose(found.stderr, expected.stderr, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("center", ["ensemble", "sample"])
    @pytest.mark.parametrize(
        "change", [lambda y: y + 1e4, lambda y: 1e-20 * y, lambda y: 1e25 * y, lambda y: 1.0 + 1e-6 * y]
    )
    def test_fields_that_want_more_care_get_it(self, change, center, rng):
        """Means that float32 rounds, squares beyond its range, and what is hardly more than its rounding."""
        y = change(rng.standard_normal((24, 2, 16, 16))).astype(np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CudaSpectrometer, "averages", lambda *arguments: None)
            careful = fc.structure_factor(torch.from_numpy(y), center=center)
        found = fc.structure_factor(torch.from_numpy(y), center=center)
        exact = fc.structure_factor(y.astype(np.float64), center=center)
        scale = np.abs(exact.S).max()
        np.testing.assert_allclose(careful.S / scale, exact.S / scale, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.S / scale, exact.S / scale, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.stderr / scale, exact.stderr / scale, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.modes.rounding, careful.modes.rounding, rtol=1e-5)

    def test_errors_are_those_of_the_host(self, rng):
        y = rng.standard_normal((9, 2, 16, 16)).astype(np.float32)
        for options, rows in (({"center": "mean"}, 9), ({"blocks": 1}, 9), ({}, 1)):
            messages = []
            for fields in (y[:rows], torch.from_numpy(y[:rows])):
                with pytest.raises(ValueError, match=r"center|blocks|samples") as error:
                    fc.structure_factor(fields, **options)
                messages.append(str(error.value))
            assert messages[0] == messages[1]
        y[5, 1, 3, 2] = np.nan
        for center in ("ensemble", "sample", "none"):
            with pytest.raises(ValueError, match="field: NaN in the field at index 5"):
                fc.structure_factor(torch.from_numpy(y), center=center)

    def test_lengths_of_it_are_those_of_the_fields(self, rng):
        y = rng.standard_normal((200, 16, 16))
        y = (y + np.roll(y, 1, -1) + np.roll(y, 1, -2)).astype(np.float32)
        found = fc.correlation_length(fc.structure_factor(torch.from_numpy(y)))
        expected = fc.correlation_length(fc.structure_factor(y))
        # The fit converges to about 1e-6 of the length, from sums that differ by float32's rounding.
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-4)
        np.testing.assert_allclose(found.stderr, expected.stderr, rtol=1e-3)


class TestUpdatingNeverWaits:
    @pytest.mark.parametrize("shape", [(3, 16, 16), (12, 10), (2, 5, 4, 3)])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int16"])
    def test_no_synchronising_call(self, device_backend, shape, dtype, rng):
        rec, y, gain = self.prepared(shape, dtype, device_backend, rng)
        strided = y.transpose(0, 1).contiguous().transpose(0, 1)
        with nothing_is_read():
            for n in (len(y), 3):
                rec.update(0, y[:n])
                rec.update(1, strided[:n], sample=17)
                rec(0, 2.0, y[:n], None)
                rec.update_gain(0, gain[:n])
        assert rec.state["count"].sum() == 3 * (len(y) + 3)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
    def test_it_runs_where_nothing_can_be_read(self, dtype, rng, monkeypatch):
        # Tensors on "meta" have no data: whatever needs a value, or copies one, is an error.
        meta = torch.device("meta")
        with in_use(Backend(meta, TorchSpectrometer), monkeypatch) as backend:
            rec, y, gain = self.prepared((3, 16, 16), dtype, backend, rng)
            with NoWaiting():
                rec.update(0, y)
                rec.update_gain(0, gain)
                fc.Recorder.__call__(rec, 0, 2.0, y, None)
            with pytest.raises((NotImplementedError, RuntimeError)):
                rec.dataset()

    def test_the_interception_catches_what_it_should(self):
        x = torch.arange(4.0)
        reads = [
            lambda: x.sum().item(), lambda: x.cpu(), lambda: x.tolist(), lambda: bool(x[0]), lambda: x.numpy(),
            lambda: torch.nonzero(x), lambda: x[x > 1], lambda: x.nonzero(), lambda: float(x[1]),
        ]  # fmt: skip
        for read in reads:
            with nothing_is_read(), pytest.raises(AssertionError, match="waits for the device"):
                read()
        with NoWaiting(), pytest.raises(AssertionError, match="copies from"):
            torch.ones(3).to("meta")

    @staticmethod
    def prepared(shape, dtype, backend, rng):
        rec = fc.Recorder(
            [2.0, 1.0], shape=shape, ndim=len(shape) - (len(shape) > 2), blocks=8, binarized=True, gain_shells=(0, 1),
            device=backend.device,
        )  # fmt: skip
        y, _ = backend.array(rng.standard_normal((20, *shape)), "float32") if dtype != "int16" else (None, None)
        y = torch.zeros((20, *shape), dtype=torch.int16) if y is None else y.to(getattr(torch, dtype))
        gain = torch.zeros((20, 2), device=backend.device)
        rec.update(0, y)  # tables of the lattice are made once
        rec = fc.Recorder(**rec.config(), device=rec.device)
        return rec, y, gain


class TestWhereThingsAre:
    @pytest.mark.parametrize("function", [fc.power_spectrum, fc.structure_factor, fc.autocorrelation])
    def test_meta_tensors_are_refused_by_name(self, function):
        with pytest.raises(ValueError, match=r"field: expected a numpy array or a tensor on the CPU or a CUDA .* meta"):
            function(torch.ones(3, 4, 4, device="meta"))

    @pytest.mark.parametrize("method", ["ornstein_zernike", "second_moment", "binarized"])
    def test_lengths_of_meta_tensors_are_refused_by_name(self, method):
        with pytest.raises(ValueError, match=r"field_or_S: expected a numpy array or a tensor on the CPU .* meta"):
            fc.correlation_length(torch.ones(3, 4, 4, device="meta"), method=method)

    @pytest.mark.parametrize(
        ("device", "message"),
        [
            ("meta", "device: expected a CUDA device, or None for the host, got 'meta'"),
            ("mps", "device: expected a CUDA device, or None for the host, got 'mps'"),
            ("gpu", "device: expected a torch device, such as 'cuda', got 'gpu'"),
            (3.5, "device: expected a torch device, such as 'cuda', got 3.5"),
        ],
    )
    def test_recorders_elsewhere_are_refused(self, device, message):
        with pytest.raises(ValueError, match=message):
            fc.Recorder([1.0], shape=(8, 8), device=device)

    def test_a_recorder_on_cuda_without_one(self, monkeypatch, tmp_path):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        for device in ("cuda", "cuda:1", torch.device("cuda")):
            with pytest.raises(ValueError, match="device: torch sees no CUDA device here, got 'cuda"):
                fc.Recorder([1.0], shape=(8, 8), device=device)
        fc.Recorder([1.0], shape=(8, 8)).save(tmp_path / "x")
        with pytest.raises(ValueError, match="device: torch sees no CUDA device here"):
            fc.Recorder.load(tmp_path / "x", device="cuda")

    def test_cpu_is_the_host(self, rng):
        y = rng.standard_normal((20, 8, 8))
        a, b = fc.Recorder([1.0], shape=(8, 8), device="cpu"), fc.Recorder([1.0], shape=(8, 8))
        for rec in (a, b):
            rec.update(0, torch.from_numpy(y))
        assert a.device is None
        for name, values in a.state.items():
            assert isinstance(values, np.ndarray)
            np.testing.assert_array_equal(values, b.state[name])

    def test_states_elsewhere_are_refused(self, torch_backend):
        rec = fc.Recorder([1.0], shape=(8, 8), device="cpu")
        with pytest.raises(
            ValueError, match="y: this recorder is on cpu, expected a tensor there, got an array on the"
        ):
            rec.update(0, np.zeros((3, 8, 8)))
        with pytest.raises(
            ValueError, match="y: this recorder is on cpu, expected a tensor there, got a tensor on meta"
        ):
            rec.update(0, torch.zeros((3, 8, 8), device="meta"))
        _arrays.TENSOR_DEVICES[:] = ["cuda"]
        rec = fc.Recorder([1.0], shape=(8, 8))
        with pytest.raises(
            ValueError, match="y: this recorder is on the host, got a tensor on meta; make the recorder"
        ):
            rec.update(0, torch.zeros((3, 8, 8), device="meta"))

    def test_pickles_and_name(self, torch_backend, rng):
        rec = fc.Recorder([1.0], shape=(8, 8), device="cpu")
        rec.update(0, torch.from_numpy(rng.standard_normal((20, 8, 8))))
        twin = pickle.loads(pickle.dumps(rec))
        twin.update(0, torch.zeros(5, 8, 8))
        assert int(twin.state["count"].sum()) == 25
        assert int(rec.state["count"].sum()) == 20
        assert repr(rec) == "<Recorder on cpu: 1 levels of 8 x 8 states, up to 20 samples a level>"

    def test_sample_numbers_leave_room_for_those_of_fields(self, device_backend):
        rec = fc.Recorder([1.0], shape=(3, 8, 8), device="cpu")
        rec.update(0, torch.full((2, 3, 8, 8), torch.nan), sample=2**62 // 3 - 1)
        with pytest.raises(ValueError, match=f"in sample {2**62 // 3 - 1} at level 0"):
            rec.check()
        with pytest.raises(ValueError, match="sample: expected the number of the batch's first sample"):
            rec.update(0, torch.zeros((2, 3, 8, 8)), sample=2**62 // 3)

    def test_batches_larger_than_a_piece(self, device_backend, rng, monkeypatch):
        y = torch.from_numpy(rng.standard_normal((50, 3, 12, 10)).astype(np.float32))
        recs = [fc.Recorder([1.0], shape=(3, 12, 10), blocks=7, binarized=True, device="cpu") for _ in range(2)]
        fields = [y[:, 0].clone() for _ in recs]
        found = []
        for rec, field, size in zip(recs, fields, (2**30, 3 * 120 * 4 * 4), strict=True):
            for module in ("torch_record", "torch_recording"):
                monkeypatch.setattr(f"fastcrit._kernels.{module}.PIECE_BYTES", size)
            rec.update(0, y, sample=2)
            found.append([fc.power_spectrum(field).power, fc.structure_factor(field).S, fc.autocorrelation(field).C])
        for name, values in state_of(recs[0]).items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(state_of(recs[1])[name], values, rtol=0, atol=1e-6 * scale, err_msg=name)
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)

    def test_a_sampler_gives_its_states_to_a_recorder_on_its_device(self, device_backend):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8)
        D, levels = fc.diffusion.from_gaussian(theory), [4.0, 1.0, 0.5]
        pair = [fc.Recorder(levels, shape=(8, 8), blocks=4, device=device) for device in ("cpu", None)]
        assert pair[0].device == CPU
        for rec in pair:
            fc.diffusion.sample(D, n_samples=10, levels=levels, seed=1, recorder=rec, batch_size=4)
        for name, values in state_of(pair[0]).items():
            np.testing.assert_allclose(values, state_of(pair[1])[name], rtol=0, atol=1e-5 * np.abs(values).max())
