"""Formulas of docstrings, which are reStructuredText, as MathML: any browser shows it without a script."""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert


class Formulas(griffe.Extension):
    """Turns :math:`...` and ``.. math:: ...`` of docstrings into MathML when the reference is built."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object that has one."""
        if obj.docstring is None:
            return
        text = re.sub(r":math:`([^`]+)`", lambda found: convert(_one_line(found[1])), obj.docstring.value)
        obj.docstring.value = re.sub(
            r"\.\. math:: ((?:.+\n)*.+)", lambda found: convert(_one_line(found[1]), display="block"), text
        )


def _one_line(formula: str) -> str:
    return " ".join(formula.split())
