"""The shared test class on a CUDA device, and what only a device can show: no waiting, streams, graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._kernels.cuda import CudaSpectrometer
from fastcrit._kernels.device import TorchSpectrometer, cuda_kernels_for
from tests.spectra_contract import Backend, PublicContract, RecorderContract, SpectraContract, in_use, state_of

DEVICE = torch.device("cuda", 0)

# torch calls its check for waiting a prototype that may miss some.
pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")


IMPLEMENTATIONS = {"torch": Backend(DEVICE, TorchSpectrometer)}
if cuda_kernels_for(DEVICE):
    IMPLEMENTATIONS["CUDA kernels"] = Backend(DEVICE, CudaSpectrometer)


@pytest.fixture(params=IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def backend(request, monkeypatch):
    with in_use(request.param, monkeypatch) as backend:
        yield backend


class TestSpectra(SpectraContract):
    pass


class TestPublic(PublicContract):
    pass


class TestRecorder(RecorderContract):
    pass


@pytest.fixture
def no_waiting():
    """From when it is called, torch raises where it would wait for the device."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def made(shape, **options):
    return fc.Recorder([2.0, 1.0], shape=shape, blocks=8, binarized=True, gain_shells=(0, 1), device=DEVICE, **options)


class TestDevice:
    @pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 20), (2, 22, 20)])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
    def test_updating_never_waits(self, backend, shape, dtype, rng, no_waiting):
        rec = made(shape)
        y, _ = backend.array(rng.standard_normal((20, *shape)), dtype)
        gain = torch.ones((20, 2), device=DEVICE)
        rec.update(0, y)
        no_waiting()
        rec.update(0, y[:13])
        rec.update(1, y.transpose(0, 1).contiguous().transpose(0, 1))
        rec(0, 2.0, y, None)
        rec.update_gain(0, gain)
        torch.cuda.set_sync_debug_mode("default")
        assert rec.dataset().n_samples.values.tolist() == [53, 20]

    @pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 20), (2, 22, 20)])
    def test_updates_are_launched_while_the_device_is_busy(self, backend, shape, rng):
        rec = made(shape)
        y, _ = backend.array(rng.standard_normal((20, *shape)), "float32")
        rec.update(0, y)
        torch.cuda.synchronize()
        done = torch.cuda.Event()
        torch.cuda._sleep(10**9)  # cycles: about half a second
        for _ in range(3):
            rec.update(0, y)
        done.record()
        assert not done.query()  # the calls are over and the device is not
        assert int(rec.state["count"].sum()) == 80

    @pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 20), (2, 22, 20)])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_captured_update_replays(self, backend, shape, dtype, rng):
        values = rng.standard_normal((4, 16, *shape))
        rec, eager = made(shape), made(shape)
        static, _ = backend.array(values[0], dtype)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            rec.update(0, static, sample=0)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rec.update(0, static, sample=0)
        for batch in values[1:]:
            static.copy_(backend.array(batch, dtype)[0])
            graph.replay()
        for batch in values:  # 16 samples fill the 8 blocks evenly, so that sample numbers do not matter
            eager.update(0, backend.array(batch, dtype)[0])
        for name, found in state_of(rec).items():
            np.testing.assert_array_equal(found, state_of(eager)[name], err_msg=name)

    def test_a_spectrum_checked_later_never_waits_and_can_be_captured(self, backend, rng, no_waiting):
        fields, _ = backend.array(rng.standard_normal((8, 3, 16, 16)), "float32")
        expected = fc.power_spectrum(2.0 * fields).power
        no_waiting()
        fc.power_spectrum(fields, check="deferred")
        torch.cuda.set_sync_debug_mode("default")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            fc.power_spectrum(fields, check="deferred")
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            spectrum = fc.power_spectrum(fields, check="deferred")
        fields.mul_(2.0)
        graph.replay()
        spectrum.check()
        torch.testing.assert_close(spectrum.power, expected, rtol=1e-6, atol=1e-6)
        fields[3, 1, 2, 2] = torch.nan
        graph.replay()
        with pytest.raises(ValueError, match=r"NaN in the field at index \(3, 1\)"):
            spectrum.check()

    def test_work_is_on_the_current_stream(self, backend, rng):
        y = rng.standard_normal((64, 16, 16))
        fields, _ = backend.array(y, "float32")
        expected = state_of_update(fields)
        side = torch.cuda.Stream()
        later = torch.zeros_like(fields)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(10**8)
            later.copy_(fields)
            found = state_of_update(later)  # on another stream it would read zeros
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)

    def test_memory_does_not_grow(self, backend, rng):
        rec = made((3, 16, 16))
        y, _ = backend.array(rng.standard_normal((64, 3, 16, 16)), "float32")
        rec.update(0, y)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(50):
            rec.update(0, y)
        assert torch.cuda.memory_allocated() == before

    def test_a_host_recorder_refuses_states_on_the_device(self):
        with pytest.raises(
            ValueError, match="y: this recorder is on the host, got a tensor on cuda:0; make the recorder"
        ):
            fc.Recorder([1.0], shape=(8, 8)).update(0, torch.zeros((3, 8, 8), device=DEVICE))
        with pytest.raises(
            ValueError, match="y: this recorder is on cuda:0, expected a tensor there, got a tensor on cpu"
        ):
            fc.Recorder([1.0], shape=(8, 8), device="cuda").update(0, torch.zeros(3, 8, 8))
        with pytest.raises(ValueError, match=r"device: torch sees .* CUDA devices here, got 'cuda:99'"):
            fc.Recorder([1.0], shape=(8, 8), device="cuda:99")

    def test_gaussian_fields_have_the_length_they_were_made_with(self, backend):
        fields = fc.theory.GaussianTheory.ornstein_zernike(xi=3.0, lattice=64).sample_data(2000, seed=1)
        found = fc.correlation_length(torch.from_numpy(fields).to(DEVICE, torch.float32))
        assert abs(found.value - 3.0) < 4 * found.stderr


def state_of_update(fields):
    rec = fc.Recorder([1.0], shape=tuple(fields.shape[1:]), blocks=4, device=DEVICE)
    rec.update(0, fields)
    return state_of(rec)


def test_the_kernels_are_among_them():
    if not cuda_kernels_for(DEVICE):
        pytest.skip("this core was built without CUDA kernels: only the torch implementation was tested")
