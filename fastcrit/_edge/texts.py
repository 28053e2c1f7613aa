"""Texts that users hand over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def different_texts(texts: Any, name: str) -> tuple[str, ...]:
    """A sequence of texts, none of them blank and no two the same.

    Examples
    --------
    >>> from fastcrit._edge.texts import different_texts
    >>> different_texts(["a cat", "a dog", "a cat"], "prompts")
    Traceback (most recent call last):
    ValueError: prompts: expected different ones, got 'a cat' as number 0 and 2
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise TypeError(f"{name}: expected a list of texts, got {texts!r}")
    if not texts:
        raise ValueError(f"{name}: expected one at least, got none")
    seen: dict[str, int] = {}
    for j, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}: expected texts, got {text!r}")
        if not text.strip():
            raise ValueError(f"{name}: expected texts, got an empty one; no label is what stands for no prompt")
        if text in seen:
            raise ValueError(f"{name}: expected different ones, got {text!r} as number {seen[text]} and {j}")
        seen[text] = j
    return tuple(texts)
