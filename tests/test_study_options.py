"""A study's options are said once, in its fields: checks and commands follow, and its docstring describes them all."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, dataclass, field, fields

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fastcrit import studies
from fastcrit.cli import app
from fastcrit.cli.config_file import with_config_file
from fastcrit.cli.studies import command_of
from fastcrit.studies.command import Command
from fastcrit.studies.options import check_options, described, option
from fastcrit.studies.shared.spans import number_of_chunks, span

# Arguments without which a study is refused.
NEEDED = {"imagenet": {"diffusers": "model"}, "guidance": {"run_path": "run"}}


def parameters(docstring):
    """Names that a numpydoc section of parameters describes."""
    section = re.search(r"\nParameters\n-+\n(.*?)(\n\n\w+\n-+\n|$)", inspect.cleandoc(docstring), flags=re.DOTALL)[1]
    heads = re.findall(r"^(\w[\w, ]*)(?: : .*)?$", section, flags=re.MULTILINE)
    return [name.strip() for head in heads for name in head.split(",")]


def commands():
    return typer.main.get_command(app).commands["study"]


class TestEveryStudy:
    def test_is_exported_and_a_command(self):
        assert {command.study.__name__ for command in studies.COMMANDS.values()} == set(studies.__all__)
        assert commands().list_commands(None) == list(studies.COMMANDS)
        assert commands().get_command(None, "nothing") is None

    @pytest.mark.parametrize("name", studies.COMMANDS)
    def test_describes_its_fields_and_nothing_else(self, name):
        study = studies.COMMANDS[name].study
        assert sorted(parameters(study.__doc__)) == sorted(each.name for each in fields(study))

    @pytest.mark.parametrize("name", studies.COMMANDS)
    def test_has_an_option_for_each_field_with_help(self, name):
        known = {p.name: p for p in commands().get_command(None, name).params}
        for each in described(studies.COMMANDS[name].study):
            of_field = known.pop("run" if each.name == "run_path" else each.name, None)
            assert (of_field is None) == (not each.option.help), each.name
            if of_field is not None:
                assert of_field.help == each.option.help
                assert of_field.required == (each.default is MISSING)
                wanted = None if each.default is MISSING or each.option.several else each.default
                given = of_field.default
                assert getattr(given, "value", given) == wanted, each.name
        assert set(known) <= {"out", "resume", "device", "chunks", "dask", "config", "dump_config", "help"}

    @pytest.mark.parametrize("name", studies.COMMANDS)
    def test_refuses_what_its_fields_say(self, name):
        study, needed = studies.COMMANDS[name].study, NEEDED.get(name, {})
        study(**needed)
        seen = 0
        for each in described(study):
            wrong = []
            if each.option.lowest is not None:
                # Of imagenet's batch 0 means another one.
                wrong += [each.option.lowest - 1 - (each.name == "batch"), 2.5, True, 2**64]
            if each.option.choices:
                wrong += ["nothing", 3]
            if each.kind is float:
                wrong += ["1", np.nan, np.inf]
            for value in wrong:
                with pytest.raises(ValueError, match=rf"^{each.name}: expected "):
                    study(**{**needed, **({"guidance_weight": 2.0} if name == "imagenet" else {}), each.name: value})
            seen += bool(wrong)
        assert seen

    @pytest.mark.parametrize("name", studies.COMMANDS)
    def test_keeps_plain_numbers_that_json_holds(self, name):
        study, needed = studies.COMMANDS[name].study, NEEDED.get(name, {})
        plain = study(**needed)
        given = {
            each.name: np.int64(getattr(plain, each.name))
            for each in described(study)
            if each.option.lowest is not None and getattr(plain, each.name) is not None
        }
        again = study(**{**needed, **given})
        assert again == plain
        json.dumps(vars(again))


class TestNewStudy:
    """What a study of somebody else's needs to become a command: fields, a run, a table."""

    @dataclass(frozen=True)
    class Own:
        size: int = field(metadata=option("Side.", lowest=2))
        kind: str = field(default="a-b", metadata=option("Which.", choices=("a-b", "c")))
        slow: bool = field(default=False, metadata=option("Take time."))
        inner: int = field(default=1, metadata=option(lowest=1))

        def __post_init__(self):
            check_options(self)

        def run(self, out, *, resume=False, progress=False):
            return {"study": self, "resume": resume}

    def test_has_a_command(self, tmp_path):
        made = Command(self.Own, "Do something.", lambda ds: f"{ds['study']} {ds['resume']}")
        own = typer.Typer()
        own.command()(with_config_file(command_of(made)))
        out = f"--out={tmp_path / 'run'}"
        done = CliRunner().invoke(own, [out, "--size=3", "--kind=c", "--slow", "--resume"])
        assert done.exit_code == 0, done.output
        assert f"{self.Own(3, 'c', True)} True" in done.output
        assert f"dataset, figures and this table: {tmp_path / 'run'}" in done.output
        for wrong in (["--kind=b", "--size=3"], ["--inner=2", "--size=3"], ["--device=cpu", "--size=3"], []):
            assert CliRunner().invoke(own, [out, *wrong]).exit_code == 2
        assert str(CliRunner().invoke(own, [out, "--size=1"]).exception) == (
            "size: expected an integer of at least 2, got 1"
        )


def test_spans_hold_every_sample_once():
    for samples, chunk in ((1, 4), (8, 4), (9, 4), (11, 1)):
        spans = [span(c, samples, chunk) for c in range(number_of_chunks(samples, chunk))]
        assert [j for each in spans for j in each] == list(range(samples))
        assert all(0 < len(each) <= chunk for each in spans)
