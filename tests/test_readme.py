"""The Python in the README and in docs/ runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fastcrit as fc

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


LINE = r"^\| (.*?) \| `(fc\.diffusion\.from_diffusers\(net, .*?)` \|"
NETWORKS = re.findall(LINE, (ROOT / "docs/own-model.md").read_text(), flags=re.MULTILINE)
# What the table calls what a network is told.
TOLD = {
    "encoder_hidden_states": "e", "encoder_attention_mask": "mask", "pooled_projections": "pooled",
    "text_embeds": "pooled", "time_ids": "ids", "guidance": "w",
}  # fmt: skip


@pytest.mark.parametrize(("classes", "line"), NETWORKS, ids=[classes for classes, _ in NETWORKS])
@pytest.mark.filterwarnings("ignore:.*does not accept.*|.*incorrect type.*|.*config attributes.*")
def test_a_line_of_the_table_of_networks_wraps_a_small_one_of_the_class(classes, line):
    pytest.importorskip("diffusers")
    from tests.test_network_classes import CASES, built, states

    for name in re.findall(r"`(\w+)`", classes):
        case = f"{name} of SDXL" if "SDXL" in classes else name
        given = {TOLD[key]: value for key, value in CASES[case].conditioning.items()}
        given |= {"net": built(case), "scheduler": CASES[case].scheduler(), "shape": CASES[case].shape}
        D = eval(line, {"fc": fc} | given)
        y = states(case)
        assert D(y, 1.0, 0 if D.classes else None).shape == y.shape


def test_the_table_of_networks_has_every_class():
    pytest.importorskip("torch")
    from fastcrit.diffusion.network_classes import TABLE

    named = {name for classes, _ in NETWORKS for name in re.findall(r"`(\w+)`", classes)}
    assert named == {name for row in TABLE for name in row.names}


def test_figures_are_there():
    for path in (README, *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"(?:\]\(|src=\")([^):\"]+\.(?:png|svg|md))[)\"]", path.read_text()):
            assert (path.parent / link).is_file(), f"{path.name}: {link}"
