from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

# Another build of the compiled core to test, such as one with the CUDA kernels for the processor.
if folder := os.environ.get("FASTCRIT_TEST_CORE"):
    (extension,) = Path(folder).glob("_core.*.so")
    spec = importlib.util.spec_from_file_location("fastcrit._core", extension)
    sys.modules["fastcrit._core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["fastcrit._core"])

from fastcrit import _core, plot  # after the choice of the core


@pytest.fixture
def rng(request):
    """Fresh numbers for every test, the same ones every time it runs."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture
def no_figures(monkeypatch):
    """Runs of studies draw nothing, which takes longer than small runs."""
    monkeypatch.setattr(plot, "save_figures", lambda ds, folder: [])


@pytest.fixture(params=_core.available_instruction_sets())
def instruction_set(request):
    """The test runs once with every instruction set that this processor has."""
    before = _core.instruction_set()
    _core.use_instruction_set(request.param)
    yield request.param
    _core.use_instruction_set(before)


@pytest.fixture(params=["fields in the lanes", "lines in the lanes"])
def layout(request):
    """The test runs once with small fields side by side and once with every field transformed alone."""
    _core.set_largest_block(-1 if request.param.startswith("fields") else 0)
    yield request.param
    _core.set_largest_block(-1)


@pytest.fixture
def threads():
    """A setter of the number of threads, undone after the test."""
    before = _core.num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)
