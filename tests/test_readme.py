"""The Python in the README and in docs/ runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def run(path, code, namespace):
    exec(compile(code, path.name, "exec"), namespace)


@pytest.mark.parametrize("block", range(len(blocks(README))))
def test_a_block_of_the_readme_runs_alone(block, capsys):
    run(README, blocks(README)[block], {})
    printed = capsys.readouterr().out
    if block == 0:
        assert printed.startswith("5.0")
        assert "3.258" in printed
        assert "softening" in printed


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_a_page_runs_from_top_to_bottom(path):
    namespace = {}
    for block in blocks(path):
        run(path, block, namespace)


def test_figures_are_there():
    for path in (README, *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"(?:\]\(|src=\")([^):\"]+\.(?:png|svg|md))[)\"]", path.read_text()):
            assert (path.parent / link).is_file(), f"{path.name}: {link}"
