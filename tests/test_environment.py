"""What surrounds the process: variables that are set to nothing, and interpreters that are not the main one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fastcrit as fc
from fastcrit import data
from fastcrit.studies.shared.ranks import Rank

SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
code = '''
try:
    import fastcrit
except ImportError as error:
    print(str(error))
'''
run = getattr(interpreters, "run_string", None) or interpreters.exec
run(interpreters.create(), code)
"""


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=60,  # what does not return is killed
    )


def test_a_subinterpreter_is_told_instead_of_waiting_for_ever():
    done = python(SUBINTERPRETER)
    assert "main interpreter of a process only, and this is a subinterpreter; use a process instead" in done.stdout, (
        done
    )


@pytest.mark.parametrize("nothing", ["", " ", "\n"])
def test_variables_that_are_set_to_nothing_are_not_set(nothing):
    code = "import fastcrit as fc; i = fc.core_info(); print(i['instruction_set'], i['threads'])"
    done = python(code, FASTCRIT_ISA=nothing, FASTCRIT_NUM_THREADS=nothing)
    assert done.stdout.split() == [fc.core_info()["available"][0], str(len(os.sched_getaffinity(0)))], done.stderr


def test_blanks_around_a_value_are_no_part_of_it():
    code = "import fastcrit as fc; i = fc.core_info(); print(i['instruction_set'], i['threads'])"
    isa = fc.core_info()["available"][-1]
    assert python(code, FASTCRIT_ISA=f" {isa}\n", FASTCRIT_NUM_THREADS=" 3 ").stdout.split() == [isa, "3"]


def test_ranks_and_folders_that_are_set_to_nothing_are_not_set(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "")
    assert Rank.of_environment() == Rank(0, 1, 0)
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "3 ")
    assert Rank.of_environment() == Rank(2, 3, 0)  # torchrun's are empty, Slurm's are not
    # The folder in which the process happens to run is not where the user put data.
    name = "t10k-labels-idx1-ubyte.gz"
    (tmp_path / name).write_bytes(b"not Fashion-MNIST")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "_DEBIAN_FOLDER", tmp_path / "nowhere")
    monkeypatch.setattr(data, "_download", lambda name: f"downloaded {name}")
    for nothing in ("", " "):
        monkeypatch.setenv("FASTCRIT_DATA", nothing)
        assert data._find(name, None) == f"downloaded {name}"
