"""``--config FILE.toml`` and ``--dump-config`` for every study: options from a file, and a file from options."""

from __future__ import annotations

import functools
import inspect
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# These say what to do with a run, not what it is.
_NOT_IN_A_FILE = ("config", "dump_config", "resume")


def with_config_file(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose options can come from a TOML file, those on the command line winning over the file's.

    The file's keys are the options' names, with hyphens or underscores; a key that is no option is an error.
    """

    @functools.wraps(command)
    def run(*, config: Path | None, dump_config: bool, **options: Any) -> None:
        for name, value in options.items():
            for number in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise ValueError(f"{name}: expected a finite number, got {number!r}")
        if dump_config:
            print(_toml(options), end="")
        else:
            command(**options)

    signature = inspect.signature(command, eval_str=True)
    parameters = [*signature.parameters.values(), *inspect.signature(_options, eval_str=True).parameters.values()]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _read(context: typer.Context, file: Path | None) -> Path | None:
    """Make the file's values the command's defaults."""
    if file is None:
        return None
    try:
        content = tomllib.loads(file.read_text())
    except ValueError as error:  # not TOML, or not even text
        raise ValueError(f"config: {file} is not TOML ({error})") from error
    options: dict[str, Any] = {str(p.name): p for p in context.command.params if p.name not in _NOT_IN_A_FILE}
    if unknown := [key for key in content if key.replace("-", "_") not in options]:
        raise ValueError(f"config: {file} has unknown keys {', '.join(unknown)}; expected some of {', '.join(options)}")
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        option = options[key.replace("-", "_")]
        several = option.multiple or option.nargs != 1
        if isinstance(value, dict) or isinstance(value, list) != several:
            raise ValueError(f"config: {key}: expected {'a list' if several else 'one value'}, got {value!r}")
        # As text, which is what options are parsed from: 3.7 or true is then no integer here either.
        defaults[option.name] = [str(v) for v in value] if several else str(value)
    context.default_map = defaults
    return file


def _dump(context: typer.Context, dump: bool) -> bool:
    """A dump needs no folder to write to."""
    for parameter in context.command.params if dump else ():
        parameter.required = False
    return dump


def _options(
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with options, by their names; those on the command line win.",
            callback=_read, is_eager=True, metavar="FILE", exists=True, dir_okay=False,
        ),
    ] = None,
    dump_config: Annotated[
        bool,
        typer.Option(
            "--dump-config", help="Print the options as TOML for --config, and run nothing.",
            callback=_dump, is_eager=True,
        ),
    ] = False,
) -> None:  # fmt: skip
    """What every command with a configuration file takes."""


def _toml(values: dict[str, Any]) -> str:
    """An option a line; those without a value are left out, since TOML has no null."""
    return "".join(
        # JSON's strings, numbers, booleans and lists are TOML's.
        f"{name} = {json.dumps(value, ensure_ascii=False, default=_plain)}\n"
        for name, value in values.items()
        if value is not None and name not in _NOT_IN_A_FILE
    )


def _plain(value: Any) -> Any:
    return getattr(value, "value", str(value))  # of an enumeration, or a path
