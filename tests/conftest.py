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


@pytest.fixture
def threads():
    """A setter of the number of threads, undone after the test."""
    before = _core.num_threads()
    yield _core.set_num_threads
    _core.set_num_threads(before)
