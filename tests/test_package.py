"""What the package promises as a whole: a light import, safety under fork and threads, choice of instruction set."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastcrit as fc


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_import_loads_neither_torch_nor_numba_nor_plotting():
    done = python(
        "import sys, fastcrit as fc\n"
        "fc.patch.Dictionary.binary(); fc.theory.pitchfork(4); fc.Recorder([1.0], shape=(8, 8))\n"
        "print([m for m in ('torch', 'numba', 'matplotlib', 'zarr', 'sklearn', 'pooch', 'typer') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_everything_named_is_there():
    for name in fc.__all__:
        assert getattr(fc, name) is not None
        assert name in dir(fc)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fc.nothing  # noqa: B018 (the look-up is what is tested)


def test_versions_agree():
    from importlib.metadata import version

    assert fc.__version__ == version("fastcrit") == fc.core_info()["version"]


def test_the_environment_chooses_instruction_set_and_threads():
    code = "import fastcrit as fc; i = fc.core_info(); print(i['instruction_set'], i['threads'])"
    assert python(code, FASTCRIT_ISA="baseline", FASTCRIT_NUM_THREADS="3").stdout.split() == ["baseline", "3"]
    refused = python("import fastcrit as fc; fc.core_info()", FASTCRIT_NUM_THREADS="many")
    assert "ValueError: FASTCRIT_NUM_THREADS: expected 1 to 4096, got 'many'" in refused.stderr
    refused = python("import fastcrit as fc; fc.core_info()", FASTCRIT_ISA="mmx")
    assert "instruction set: 'mmx' is not available here; expected one of" in refused.stderr


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_a_bad_number_of_threads(threads):
    with pytest.raises(ValueError, match="threads: expected 1 to 4096, got"):
        fc.set_num_threads(threads)


def test_several_python_threads_at_once(rng, threads):
    threads(2)
    fields = [rng.standard_normal((50, 16, 3 * n + 5)) for n in range(12)]
    alone = [fc.power_spectrum(f).power for f in fields]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(10):
            for a, b in zip(alone, pool.map(lambda f: fc.power_spectrum(f).power, fields), strict=True):
                np.testing.assert_array_equal(a, b)


def _in_child(seed):
    field = np.random.default_rng(seed).standard_normal((200, 16, 16))
    return fc.power_spectrum(field).power


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_fork(threads):
    threads(2)
    expected = _in_child(3)  # the parent's pool is running by now
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for found in pool.map(_in_child, [3, 3, 3, 3]):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(_in_child(3), expected)


def test_the_gil_is_released(rng):
    import threading

    field = rng.standard_normal((4000, 64, 64)).astype(np.float32)
    fc.set_num_threads(fc.core_info()["threads"])
    ticks, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            ticks[0] += 1

    counter = threading.Thread(target=count)
    from fastcrit import _core

    spectrometer = _core.Spectrometer([64, 64])
    before_switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    counter.start()
    before = ticks[0]
    for _ in range(5):
        spectrometer.power(field, "shells")
    during = ticks[0] - before
    stop.set()
    counter.join()
    sys.setswitchinterval(before_switch)
    # Holding the GIL, the counter could only run between the five calls: a switch interval each.
    assert during > 1000
