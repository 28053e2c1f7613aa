from __future__ import annotations

import numpy as np
import pytest

from fastcrit import _core


@pytest.fixture
def rng(request):
    """Fresh numbers for every test, the same ones every time it runs."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


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
