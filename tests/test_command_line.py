"""The command line for scripts and long runs: configuration files, JSON, exit status, Ctrl-C, completion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from typing import ClassVar, get_args

import numpy as np
import pytest

import fastcrit as fc
from fastcrit import store
from fastcrit.cli import app
from fastcrit.studies import COMMANDS, PatchStudy
from fastcrit.studies.options import described

TINY = {"patterns": 0, "lattice": 16, "samples": 20, "levels": 8, "substeps": 2, "solver": "heun"}


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "fastcrit", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def in_process(*arguments):
    return app(list(map(str, arguments)), standalone_mode=False)


class TestConfigurationFile:
    def test_gives_the_options_and_the_command_line_wins(self, tmp_path, capsys):
        lines = [f"{key} = {json.dumps(value)}" for key, value in TINY.items()]
        (tmp_path / "tiny.toml").write_text("\n".join([*lines, f'out = "{tmp_path / "run"}"', "dictionary-seed = 3"]))
        in_process("study", "patch", "--config", tmp_path / "tiny.toml", "--levels", 9)
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config | TINY | {"levels": 9, "dictionary_seed": 3} == config

    @pytest.mark.parametrize("study", ["patch", "fashion-mnist", "guidance"])
    def test_a_dump_is_a_configuration_file(self, study, tmp_path, capsys):
        more = {"patch": ["--solver", "euler"], "fashion-mnist": ["--net", "a", "--net", 'ü "b"'],
                "guidance": ["--interval", 0.5, 2]}[study]  # fmt: skip
        in_process("study", study, "--seed", 5, *more, "--dump-config")
        text = capsys.readouterr().out
        options = tomllib.loads(text)
        assert options["seed"] == 5
        changed = {"patch": {"solver": "euler"}, "fashion-mnist": {"net": ["a", 'ü "b"']},
                   "guidance": {"interval": [0.5, 2.0]}}[study]  # fmt: skip
        assert options | changed == options
        (tmp_path / "dumped.toml").write_text(text)
        in_process("study", study, "--config", tmp_path / "dumped.toml", "--dump-config")
        assert capsys.readouterr().out == text

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("samplez = 3", "has unknown keys samplez; expected some of out, dictionary, patterns"),
            ("resume = true", "has unknown keys resume"),
            ("samples = [3]", r"config: samples: expected one value, got \[3\]"),
            ("[samples]", r"config: samples: expected one value, got \{\}"),
            ("samples = ", "is not TOML"),
        ],
    )
    def test_mistakes_are_named(self, text, message, tmp_path):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            in_process("study", "patch", "--config", tmp_path / "bad.toml", "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_mistakes_end_in_2(self, tmp_path):
        for text, message in (("samples = 3.7", "--samples"), ('net = "a"', "unknown keys net"), ("\xff", "not TOML")):
            (tmp_path / "bad.toml").write_text(text, encoding="latin-1")
            done = command("study", "patch", "--config", tmp_path / "bad.toml", "--out", tmp_path / "run")
            assert done.returncode == 2
            assert message in done.stderr
        assert command("study", "patch", "--config", tmp_path / "none.toml").returncode == 2
        assert command("study", "patch").returncode == 2  # no --out


class TestNumbers:
    """Every option that is a real number: NaN and infinity are refused by its name, before anything is begun."""

    NEEDED: ClassVar = {"patch": [], "fashion-mnist": [], "imagenet": ["--diffusers=x", "--guidance-weight=2"],
              "guidance": ["--of=x"]}  # fmt: skip

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    @pytest.mark.parametrize("name", NEEDED)
    def test_of_studies_are_finite(self, name, value, tmp_path):
        known = described(COMMANDS[name].study)
        real = [each for each in known if each.kind is float or float in get_args(each.kind)]
        assert len(real) >= 2
        for each in real:
            given = [f"--{each.name.replace('_', '-')}", *["0.1"] * (each.kind is not float), value]
            for more in ([], ["--dump-config"]):
                with pytest.raises(ValueError, match=rf"{each.name}: expected a (finite|positive) number, got {value}"):
                    in_process("study", name, *self.NEEDED[name], f"--out={tmp_path / 'run'}", *given, *more)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_of_analyze_are_finite(self, value, tmp_path, rng):
        np.save(tmp_path / "x.npy", rng.normal(size=(2, 5, 8, 8)))
        for options, message in (
            ((f"--spacing={value}", "--levels=2,1"), f"spacing: expected a positive number, got {value}"),
            ((f"--levels={value},1",), f"levels: expected finite numbers, got {value}"),
        ):
            with pytest.raises(ValueError, match=message):
                in_process("analyze", tmp_path / "x.npy", *options, "--dims=level,sample,y,x")


class TestJson:
    def test_of_a_study_has_the_critical_levels(self, tmp_path, capsys):
        ds = PatchStudy(**TINY).run(tmp_path / "run")
        in_process("analyze", tmp_path / "run", "--json")
        found = json.loads(capsys.readouterr().out)
        assert found == json.loads(fc.critical_point(ds).to_json())
        assert set(found) == set(fc.critical.SIGNATURES)

    def test_of_fields_has_the_spectrum_and_every_length(self, tmp_path, rng, capsys):
        fields = rng.standard_normal((20, 2, 12, 12))
        np.save(tmp_path / "fields.npy", fields)
        in_process("analyze", tmp_path / "fields.npy", "--json")

        def refuse(constant):
            raise ValueError(f"{constant} is no JSON")

        found = json.loads(capsys.readouterr().out, parse_constant=refuse)
        S = fc.structure_factor(fields)
        np.testing.assert_allclose(found["S"], S.S.mean(axis=0))
        np.testing.assert_allclose(found["stderr"], S.stderr.mean(axis=0))
        assert (found["samples"], found["lattice"], found["modes"]) == (20, [12, 12], S.counts.tolist())
        assert set(found["lengths"]) == set(fc.METHODS)
        efold = fc.correlation_length(fields, method="efold")
        assert found["lengths"]["efold"]["flags"] == list(efold.flags)
        assert found["lengths"]["efold"]["value"] == pytest.approx(float(np.mean(efold.value)), nan_ok=True)

    def test_of_trajectories_has_every_level(self, tmp_path, rng, capsys):
        levels = [9.0, 6.0, 3.0, 2.0, 1.0]
        y = np.reshape(levels, (5, 1, 1, 1)) * rng.standard_normal((5, 20, 8, 8))
        np.save(tmp_path / "y.npy", y)
        in_process("analyze", tmp_path / "y.npy", "--dims=level,sample,row,column", "--levels=9,6,3,2,1", "--json")
        found = json.loads(capsys.readouterr().out, parse_constant=lambda constant: pytest.fail(constant))
        ds = fc.analyze(y, dims=("level", "sample", "row", "column"), levels=levels)
        assert [row["level"] for row in found["levels"]] == levels
        np.testing.assert_allclose([row["S"] for row in found["levels"]], ds["S"])
        for row, efold in zip(found["levels"], ds["xi_efold"].values, strict=True):
            assert row["lengths"]["xi_efold"]["value"] == (None if np.isnan(efold) else efold)
        assert found["critical"] == json.loads(fc.critical_point(ds).to_json())


class TestStopping:
    def test_ctrl_c_leaves_a_run_that_goes_on(self, tmp_path):
        out = tmp_path / "run"
        options = ["--patterns", 2, "--lattice", 24, "--levels", 12, "--samples", 1000, "--substeps", 2]
        process = subprocess.Popen(
            [sys.executable, "-m", "fastcrit", "study", "patch", "--out", str(out), *map(str, options)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (out / "recorder.safetensors").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert stderr == f"\nstopped: the same command with --resume goes on in {out}\n"
        assert stdout == ""
        done = command("study", "patch", "--out", out, *options, "--resume")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # progress is for terminals
        assert store.load_dataset(out / "dataset.zarr").n_samples.max() == 1000

    def test_before_anything_was_begun_there_is_nothing_to_resume(self, tmp_path, monkeypatch, capsys):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(PatchStudy, "run", stop)
        assert in_process("study", "patch", "--out", tmp_path / "run") == 130
        assert capsys.readouterr().err == "\nstopped: before anything was begun\n"


def test_shells_can_complete_commands():
    words = {"_FASTCRIT_COMPLETE": "complete_bash", "COMP_WORDS": "fastcrit stu", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'fastcrit'; from fastcrit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "study"


def test_help_says_what_exit_status_means():
    assert "2 wrong input" in command("--help").stdout


def test_a_traceback_on_request(tmp_path):
    code = "import sys; sys.argv = ['fastcrit', 'analyze', sys.argv[1]]; from fastcrit.cli import main; main()"
    for value, shown in (("1", True), ("", False)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "none.npy")],
            capture_output=True, text=True, check=False, env={**os.environ, "FASTCRIT_TRACEBACK": value},
        )  # fmt: skip
        assert ("Traceback" in done.stderr) == shown, done.stderr
        assert "none.npy" in done.stderr
