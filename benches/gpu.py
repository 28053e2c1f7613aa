"""Time of spectra and recording on a CUDA device, against plain torch and against reading the batch once.

Run by `make bench-gpu`; needs a device, fastcrit, numpy, scipy and torch. Prints a table; the last line says what to
report.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch

import fastcrit as fc
from fastcrit._kernels import device as torch_spectra
from fastcrit._kernels.device import DeviceSums, TorchSpectrometer, cuda_kernels_for
from fastcrit._kernels.lattice import lattice

SIDES = (32, 64, 96, 128, 224, 256)
DTYPES = (torch.float32, torch.bfloat16)
# Much more than any cache holds, and the batch that a sampler of 64 RGB images gives.
SITES = 1 << 26
SAMPLER = (64, 3)


class PlainTorch:
    """The pipeline that one would write: rfft2, square, and a sum by shell."""

    def __init__(self, side: int, device: torch.device) -> None:
        grid = lattice((side, side))
        keep = grid.kept_shells(False)
        half = side // 2 + 1
        shell = torch.from_numpy(grid.shell_of_mode.reshape(half, side).T.copy().reshape(-1)).to(device)
        weight = torch.from_numpy(grid.half_weights.reshape(half, side).T.copy().reshape(-1)).to(device)
        counts = torch.from_numpy(grid.shell_modes).to(device)
        self.side, self.shells, self.keep = side, len(grid.shell_modes), keep
        self.shell = shell
        self.weight = weight.float() / side**2
        self.counts = counts.float()
        self.matrix = torch.zeros(len(shell), keep, device=device)
        inside = shell < keep
        self.matrix[inside.nonzero()[:, 0], shell[inside]] = (weight[inside] / counts[shell[inside]] / side**2).float()

    def _power(self, fields: torch.Tensor) -> torch.Tensor:
        half = torch.fft.rfft2(fields.reshape(-1, self.side, self.side).float())
        return (half.real.square() + half.imag.square()).flatten(1)

    def matmul(self, fields: torch.Tensor) -> torch.Tensor:
        return self._power(fields) @ self.matrix

    def index_add(self, fields: torch.Tensor) -> torch.Tensor:
        power = self._power(fields) * self.weight
        return (power.new_zeros(len(power), self.shells).index_add_(1, self.shell, power) / self.counts)[:, : self.keep]


def by_torch(fields: torch.Tensor) -> torch.Tensor:
    """`power_spectrum` without the CUDA kernels."""
    return torch_power[fields.shape[-1]].shell_power(
        fields.reshape(-1, *fields.shape[-2:]), lattice(tuple(fields.shape[-2:])).kept_shells(False), None, None, ()
    )


torch_power: dict[int, DeviceSums] = {}


def recorder(fields: torch.Tensor, kind: Callable[..., TorchSpectrometer] | None = None) -> Callable[[], None]:
    """A call that records the batch; by ``kind`` of spectrometer instead of the best."""
    rec = fc.Recorder([1.0], shape=tuple(fields.shape[1:]), device=fields.device)
    if kind is not None:
        record = rec._record
        record._spectrometer = kind(tuple(fields.shape[-2:]), fields.device)
        record._spectrometer.prepare(record.layout)
    return lambda: rec.update(0, fields, sample=0)


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The replay of a CUDA graph of ``call``."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call on the device's clock, from before its first launch to its end; taken in turns."""
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(fields: torch.Tensor, rounds: int) -> tuple[dict[str, float], str]:
    """Seconds of every way to the spectra of a batch (samples, channels, side, side); a word on CUDA graphs."""
    side = fields.shape[-1]
    plain = PlainTorch(side, fields.device)
    sums = DeviceSums(lattice((side, side)), fields.device)
    sums.spectrometer = TorchSpectrometer((side, side), fields.device)
    torch_power[side] = sums
    reference = plain.matmul(fields[:8])
    kept = fc.power_spectrum(fields).power.reshape(-1, reference.shape[-1])
    torch.testing.assert_close(kept[: len(reference)], reference, rtol=2e-3, atol=1e-4)  # TF32 would be within this
    update = recorder(fields)
    calls: dict[str, Callable[[], object]] = {
        "read once": lambda: fields.sum(dtype=torch.float32),
        "copy": lambda: fields.clone(),
        "plain, matmul": lambda: plain.matmul(fields),
        "plain, index_add": lambda: plain.index_add(fields),
        "power_spectrum": lambda: fc.power_spectrum(fields),
        "power, deferred": lambda: fc.power_spectrum(fields, check="deferred"),
        "update": update,
    }
    if cuda_kernels_for(fields.device):
        calls["power, no kernels"] = lambda: by_torch(fields)
        calls["update, no kernels"] = recorder(fields, TorchSpectrometer)
    try:
        calls["power, graph"] = captured(calls["power, deferred"])
        calls["update, graph"] = captured(update)
        graph = "captured and replayed"
    except RuntimeError as error:  # reported in the table's last lines
        torch.cuda.synchronize()
        graph = f"NOT captured: {error}"
    return interleaved(calls, rounds), graph


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each (default: 30)")
    rounds = parser.parse_args().rounds
    if not torch.cuda.is_available():
        sys.exit("bench-gpu: torch sees no CUDA device here; nothing measured")
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    kernels = "CUDA kernels" if cuda_kernels_for(device) else "torch implementation (the core has no CUDA kernels)"
    print(f"device    {torch.cuda.get_device_name(device)}, sm_{major}{minor}")
    print(f"versions  fastcrit {fc.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    print(f"fastcrit  {kernels}")
    print(
        f"medians of {rounds} interleaved measurements, CUDA events; milliseconds a batch, and times the first column"
    )
    print(
        "read once: the sum of the batch, at the GB/s given. copy: read and written. plain: rfft2, |.|^2 in float32 and"
    )
    print("a sum by shell. deferred: NaN and Inf named later. update: Recorder.update with everything that it keeps.")
    print("graph: a replay.\n")
    graphs = set()
    failed = False
    generator = torch.Generator(device).manual_seed(0)
    for dtype in DTYPES:
        for side in SIDES:
            for shape in ((SITES // (3 * side**2), 3), SAMPLER):
                fields = torch.randn((*shape, side, side), generator=generator, device=device).to(dtype)
                name = f"{str(dtype).removeprefix('torch.')} {shape[0]} x {shape[1]} x {side} x {side}"
                try:
                    seconds, graph = measure(fields, rounds)
                except Exception as error:
                    print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
                    failed = True
                    continue
                graphs.add(graph)
                read = seconds["read once"]
                print(f"{name}: {fields.nbytes / read / 1e9:.0f} GB/s", flush=True)
                for call, value in seconds.items():
                    print(f"    {call:20s} {value * 1e3:9.4f} ms  {value / read:7.2f} x")
                torch_power.clear()
                torch_spectra.spectrometer.cache_clear()
                del fields
    print("\nRecorder.update under torch.cuda.graph: " + "; ".join(sorted(graphs)))
    print("report: this whole output, and whether `make test-gpu` passed on the same machine")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
