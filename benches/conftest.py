"""Threads of every benchmark, and what the page says about the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

import fastcrit as fc
from benches.batches import THREADS

PACKAGES = ("numpy", "scipy", "torch", "pyfftw", "powerbox", "pysteps", "xrft", "xarray", "pytest-benchmark")


@pytest.fixture(autouse=True)
def same_number_of_threads():
    fc.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)


def pytest_benchmark_update_machine_info(config, machine_info):
    fc.set_num_threads(THREADS)
    machine_info["fastcrit"] = {
        "core": fc.core_info(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "compiler": compiler(Path(config.rootpath)),
        "mkl": torch.backends.mkl.is_available(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "command": " ".join(
            [f"{name}={os.environ[name]}" for name in ("OMP_WAIT_POLICY", "GLIBC_TUNABLES") if name in os.environ]
            + [shlex.join(["python", "-m", "pytest", *config.invocation_params.args])]
        ),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def compiler(root: Path) -> dict[str, str]:
    """Compiler and flags of the kernels by instruction set, from the build directory of the installed core."""
    builds = sorted(root.glob("build/cp*/compile_commands.json"), key=lambda path: path.stat().st_mtime)
    if not builds:
        return {}
    found = {}
    for source in builds[-1].parent.glob("CMakeFiles/*/CMakeCXXCompiler.cmake"):
        settings = dict(re.findall(r'set\((CMAKE_CXX_COMPILER_(?:ID|VERSION)) "([^"]+)"\)', source.read_text()))
        found["compiler"] = " ".join(settings.values())
    for entry in json.loads(builds[-1].read_text()):
        if isa := re.search(r"-DFASTCRIT_ISA=(\w+)", entry["command"]):
            flags = re.findall(r"(?<= )-(?:O|f|m|std)\S+", entry["command"])
            found[isa.group(1)] = " ".join(dict.fromkeys(flags))
    return found
