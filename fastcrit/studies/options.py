"""What a field of a study's configuration may be, said once: it is checked here, and the command line reads it.

A field has its type and default as any dataclass's, and `option` as its metadata for the rest.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from fastcrit._edge.arrays import check_choice, check_integer, check_seed, check_threads

# (value, name of the field) to what is kept; raises for what is refused.
Check = Callable[[Any, str], Any]

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What a field says beside its type and default; see `option`."""

    help: str = ""
    lowest: int | None = None
    choices: tuple[str, ...] = ()
    check: Check | None = None
    path: bool = False
    flags: tuple[str, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class Described:
    """A field of a configuration.

    Attributes
    ----------
    name : str
    kind : type
        Of its values but None: bool, int, float, str or tuple[..].
    optional : bool
        Whether None is one.
    default : object
        MISSING where there is none.
    option : Option
    """

    name: str
    kind: Any
    optional: bool
    default: Any
    option: Option


# Fields that came later, and their defaults: a run that was begun before goes on.
_NEW = {"locality": False}


def option(
    help: str = "",  # noqa: A002 (as every parser of command lines calls it)
    *,
    lowest: int | None = None,
    choices: tuple[str, ...] = (),
    check: Check | None = None,
    path: bool = False,
    flags: tuple[str, ...] = (),
    several: bool = False,
) -> dict[str, Option]:
    """Metadata of a field.

    Parameters
    ----------
    help : str
        What the command line says of it; a field without is no option there.
    lowest : int, optional
        Makes it an integer of at least this, and below 2^64 unless ``check`` knows better.
    choices : tuple of str
        What it is one of.
    check : callable
        (value, name) to what is kept, after the other checks.
    path : bool
        On the command line a path.
    flags : tuple of str
        On the command line, where they are not made of the name.
    several : bool
        On the command line it may be given several times, for a run each.

    Examples
    --------
    >>> from dataclasses import dataclass, field
    >>> from fastcrit.studies.options import check_options, option
    >>> @dataclass(frozen=True)
    ... class Plan:
    ...     samples: int = field(default=8, metadata=option("Trajectories.", lowest=3))
    ...     def __post_init__(self):
    ...         check_options(self)
    >>> Plan(2)
    Traceback (most recent call last):
    ValueError: samples: expected an integer of at least 3, got 2
    """
    return {_KEY: Option(help, lowest, choices, check, path, flags, several)}


def check_options(config: Any) -> None:
    """Check every field of a frozen dataclass as its `option` says, and keep what the checks make of it.

    Raises
    ------
    ValueError, TypeError
        Names the field, what was expected and what came.
    """
    kind: Any = type(config)
    for each in described(kind):
        value, wanted = getattr(config, each.name), each.option
        if value is None and each.optional:
            continue
        if wanted.choices:
            check_choice(value, wanted.choices, each.name)
        if wanted.lowest is not None:
            value = check_integer(value, each.name, wanted.lowest)
            if wanted.check is None and value >= 2**64:
                raise ValueError(f"{each.name}: expected an integer below 2^64, got {value!r}")
        if wanted.check is not None:
            value = wanted.check(value, each.name)
        object.__setattr__(config, each.name, value)


def without_what_is_new(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the fields that runs were begun without, where they have their defaults still."""
    return {name: value for name, value in config.items() if name not in _NEW or value != _NEW[name]}


def check_falling(high: float, low: float) -> None:
    """ValueError unless the first noise level is above the last."""
    if not high > low:
        raise ValueError(f"high, low: expected high > low, got {high} and {low}")


@cache
def described(config: type) -> tuple[Described, ...]:
    """Every field of a configuration, in order."""
    hints = get_type_hints(config)
    found = []
    for field in fields(config):
        kind, optional = hints[field.name], False
        if get_origin(kind) is types.UnionType:
            (kind,) = (each for each in get_args(kind) if each is not types.NoneType)
            optional = True
        found.append(Described(field.name, kind, optional, field.default, field.metadata.get(_KEY, Option())))
    return tuple(found)


def seed(value: int, name: str) -> int:
    """A seed of torch's samplers."""
    check_seed(value)
    return value


def threads(value: int, name: str) -> int:
    """Threads of torch."""
    check_threads(value)
    return value
