"""The reference has every public name."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import fastcrit as fc

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def named(name):
    """The object of a dotted name; modules that the package loads late are imported."""
    owner, _, last = name.rpartition(".")
    if not owner:
        return fc
    parent = named(owner)
    return getattr(parent, last) if hasattr(parent, last) else import_module(name)


def entries():
    """What the pages show: objects by identity, and every public member of a module that is shown whole."""
    shown = []
    for page in REFERENCE.glob("*.md"):
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text() + "\n", flags=re.MULTILINE):
            found = named(name)
            shown.append(found)
            if inspect.ismodule(found):
                listed = re.search(r"members: \[(.*)\]", options)
                names = listed[1].split(", ") if listed else found.__all__ if "members: true" in options else dir(found)
                shown += [getattr(found, member) for member in names if not member.startswith("_")]
    return shown


@pytest.mark.parametrize(
    "module",
    [fc, fc.alignment, fc.data, fc.diffusion, fc.patch, fc.plot, fc.store, fc.studies, fc.theory],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_in_the_reference(module):
    shown = entries()
    missing = [
        name
        for name in module.__all__
        if callable(public := getattr(module, name)) and not any(public is one for one in shown)
    ]
    assert missing == []
