"""What a call costs on the host by itself: fastcrit's kernels do nothing, torch's are those of the processor.

Needs a core with the kernels compiled for the processor: FASTCRIT_TEST_CORE=build/core/python.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from tests import conftest  # noqa: F401 - takes the core that FASTCRIT_TEST_CORE names

import torch  # isort: skip

import fastcrit as fc  # isort: skip
from fastcrit import _core  # isort: skip
from fastcrit._edge import arrays  # isort: skip


def microseconds(call: Callable[[], object], rounds: int = 2000) -> float:
    """Median of a call."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times)


def main() -> None:
    """Print a table."""
    if not getattr(_core, "cuda_host", False):
        sys.exit("launching: this core has no kernels for the processor; see the module's docstring")
    torch.set_num_threads(1)
    arrays.TENSOR_DEVICES.append("cpu")
    y = torch.randn(64, 3, 64, 64)
    recorder = fc.Recorder([1.0], shape=(3, 64, 64), device="cpu")
    calls: dict[str, Callable[[], object]] = {
        "power_spectrum": lambda: fc.power_spectrum(y),
        "power_spectrum, deferred": lambda: fc.power_spectrum(y, check="deferred"),
        "structure_factor": lambda: fc.structure_factor(y),
        "Recorder.update": lambda: recorder.update(0, y),
    }
    for call in calls.values():
        call()
    _core.set_cuda_idle(True)
    for name, call in calls.items():
        before = _core.cuda_launches()
        call()
        launches = _core.cuda_launches() - before
        print(f"{name:26s} {microseconds(call):7.1f} us, {launches} launches of its own")


if __name__ == "__main__":
    main()
