"""The Python in the README and in docs/ runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


CASES = [(path, i) for path in (README, *sorted((ROOT / "docs").glob("*.md"))) for i in range(len(blocks(path)))]


@pytest.mark.parametrize(("path", "block"), CASES, ids=[f"{path.name}-{i}" for path, i in CASES])
def test_block_runs(path, block, capsys):
    exec(compile(blocks(path)[block], f"{path.name}, block {block}", "exec"), {})
    printed = capsys.readouterr().out
    if path == README and block == 0:
        assert printed.startswith("5.0")
        assert "3.258" in printed
        assert "softening" in printed


def test_figures_are_there():
    for path in (README, *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^):]+\.(?:png|svg|md))\)", path.read_text()):
            assert (path.parent / link).is_file(), f"{path.name}: {link}"
