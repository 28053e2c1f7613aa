"""``fastcrit study NAME``: a command for each study, its options made of the fields of the study's configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, MutableMapping
from dataclasses import MISSING
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fastcrit.cli.config_file import with_config_file
from fastcrit.cli.exit_status import resumable

if TYPE_CHECKING:
    from fastcrit.studies.command import Command
    from fastcrit.studies.options import Described


# Arguments of a study's ``run`` that have another name as options.
_OF_RUN = {"dask": "client"}


class Studies(TyperGroup):
    """The commands of the studies, which are loaded when the first of them is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the studies."""
        return list(self._loaded())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a study."""
        return self._loaded().get(cmd_name)

    def _loaded(self) -> MutableMapping[str, Any]:
        if not self.commands:
            from fastcrit.studies import COMMANDS

            studies = typer.Typer()
            for name, study in COMMANDS.items():
                studies.command(name)(with_config_file(command_of(study)))
            made: Any = typer.main.get_command(studies)
            self.commands = made.commands
        return self.commands


def command_of(study: Command) -> Callable[..., None]:
    """What typer makes the command of: a function with the study's options, and those of its run, as parameters."""
    from fastcrit.studies.options import described

    fields = {_name(each): each for each in described(study.study) if each.option.help}
    about_run = _options_of_run(inspect.signature(study.study.run).parameters)

    def run(*, out: Path, **options: Any) -> None:
        values = {each.name: _plain(each, options[name]) for name, each in fields.items()}
        with resumable(out):
            how = {_OF_RUN.get(name, name): options[name] for name in about_run}
            said = study.run(values, out, progress=True, **how)
        if said is not None:
            print(said)

    out = _parameter("out", Path, MISSING, "Folder to make for the run; an existing one is refused without --resume.")
    given = [_of_field(name, each) for name, each in fields.items()]
    signature = inspect.Signature([out, *given, *about_run.values()])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__doc__ = study.about
    return run


def _name(field: Described) -> str:
    """Of the option: the field's, or that of its first flag."""
    return field.option.flags[0].lstrip("-").replace("-", "_") if field.option.flags else field.name


def _plain(field: Described, value: Any) -> Any:
    """The field's value for what typer has made of the option: text of a path, of a choice."""
    if value is not None and field.option.path:
        return str(value)
    return value.value if isinstance(value, Enum) else value


def _of_field(name: str, field: Described) -> inspect.Parameter:
    wanted, default = field.option, field.default
    kind: Any = Path if wanted.path else field.kind
    if wanted.several:
        return _parameter(name, list[str] | None, None, wanted.help, *wanted.flags)
    if wanted.choices:
        enumeration: Any = Enum
        kind = enumeration(name, {choice: choice for choice in wanted.choices}, type=str)
        default = kind(default)
    flags = wanted.flags or ((_flag(name),) if kind is bool else ())
    return _parameter(name, kind | None if field.optional else kind, default, wanted.help, *flags)


def _options_of_run(taken: Any) -> dict[str, inspect.Parameter]:
    """Options that are not of the study but of its running, where its ``run`` takes them."""
    ranks = "As torch names it; cuda: of each rank its own."
    device = ranks if "chunks" in taken else "Where to sample and to measure, as torch names it."
    place = "Folder or URL (s3://.., gs://..) that all ranks see; default: RUN/chunks."
    known = (
        _parameter("device", str, "cpu", device),
        _parameter("chunks", str | None, None, place),
        _parameter("dask", str | None, None, "Address of a Dask scheduler, whose workers make the chunks."),
        _parameter("resume", bool, False, "Go on where a run was stopped; begin where there is none.", _flag("resume")),
    )
    return {each.name: each for each in known if _OF_RUN.get(each.name, each.name) in taken}


def _flag(name: str) -> str:
    """Given alone, or not: typer would make a second one, --no-.., by itself."""
    return f"--{name.replace('_', '-')}"


def _parameter(name: str, kind: Any, default: Any, help: str, *flags: str) -> inspect.Parameter:  # noqa: A002 (typer's)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, typer.Option(*flags, help=help)],
        default=inspect.Parameter.empty if default is MISSING else default,
    )  # fmt: skip
