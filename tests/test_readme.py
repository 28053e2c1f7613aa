"""The README's Python runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_block_runs(block, capsys):
    exec(compile(BLOCKS[block], f"README.md, block {block}", "exec"), {})
    printed = capsys.readouterr().out
    if block == 0:
        assert printed.startswith("5.0")
        assert "3.258" in printed
        assert "softening" in printed


def test_figures_are_there():
    for path in re.findall(r"\]\((docs/[^)]+)\)", README.read_text()):
        assert (README.parent / path).is_file()
