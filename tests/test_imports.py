"""The package's own imports: no circles, storeys, torch where it is said, files that are read at a glance."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastcrit"
# Modules that import torch when they are loaded; all others load it in a function that needs it.
WITH_TORCH = (
    "_kernels.cuda",
    "_kernels.device",
    "_kernels.device_record",
    "_kernels.torch_kernels",
    "_kernels.torch_record",
    "_kernels.torch_recording",
)
# Each may import those before it, and what has no storey: the compiled core and names of errors.
STOREYS = ("_edge", "_kernels", "_estimates")
BELOW = {"fastcrit._core", "fastcrit.errors"}


def modules():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(tree, *, late):
    """Modules that a file imports, under TYPE_CHECKING too; with ``late`` also those that its functions import."""

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            if late or not inside:
                if isinstance(child, ast.Import):
                    yield from (name.name for name in child.names)
                elif isinstance(child, ast.ImportFrom):
                    for name in child.names:
                        full = f"{child.module}.{name.name}"
                        yield full if full in MODULES or full == "fastcrit._core" else str(child.module)
            yield from visit(child, inside or isinstance(child, (ast.FunctionDef, ast.Lambda)))

    return set(visit(tree, False))


@pytest.mark.parametrize("late", [False, True])
def test_there_are_no_circles(late):
    graph = {
        name: imported(ast.parse(path.read_text()), late=late) & MODULES.keys() - {name}
        for name, path in MODULES.items()
    }
    # Raises CycleError, which names the circle.
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("storey", range(len(STOREYS)))
def test_imports_go_down(storey):
    below = {f"fastcrit.{name}" for name in STOREYS[: storey + 1]}
    for name, path in MODULES.items():
        if name.split(".")[1:2] == [STOREYS[storey]]:
            for other in imported(ast.parse(path.read_text()), late=True):
                if other.partition(".")[0] == "fastcrit" and other not in BELOW:
                    assert ".".join(other.split(".")[:2]) in below, (name, other)


def test_torch_is_imported_where_the_contributors_page_says():
    allowed = {f"fastcrit.{name}" for name in WITH_TORCH}
    for name, path in MODULES.items():
        loads = any(m == "torch" or m.startswith("torch.") for m in at_load(ast.parse(path.read_text())))
        if not name.startswith("fastcrit.diffusion"):
            assert not loads or name in allowed, name
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{name.replace('.', '/')}`" in text for name in WITH_TORCH)


def at_load(tree):
    """As `imported`, but what only type checkers read."""
    kept = [
        node for node in tree.body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]  # fmt: skip
    return imported(ast.Module(kept, []), late=False)


def test_no_file_is_longer_than_its_room():
    """The limit is 400 lines; what is known to be longer does not grow."""
    known: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        assert len(path.read_text().splitlines()) <= known.get(name, 400), name
