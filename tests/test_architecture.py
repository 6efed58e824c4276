"""Imports point one way: faces, writer, iterators, store, backend. The store needs no TensorFlow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "input_checkpoint"

LAYERS = ("backend", "store", "iterators", "writer", "faces")
"""From below. A module may import from its own layer and from those below."""

OF_THE_STORE = "store"
"""The layer of every module that is not listed."""

BACKEND = {
    "backend",
    "backends_builtin",
    "commit_lock",
    "errors",
    "probing",
    "retrying",
    "testing",
}
ITERATORS = {"iterators"}
WRITER = {"background_prune", "writer"}
FACES = {
    "cli",
    "hook",
    "hook_settings",
    "keras",
    "manager",
    "model_checkpoints",
    "resume",
    "resumption",
    "schedule",
}
WITH_TENSORFLOW = {"hook", "iterators", "keras", "manager", "model_checkpoints"}


def modules(folder: Path) -> dict[str, Path]:
    """The modules below a folder, by their dotted names."""
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
    }


OURS = {
    name[len(PACKAGE) + 1 :]: path
    for name, path in modules(ROOT / "src").items()
    # The package itself holds the public names, from every layer.
    if name != PACKAGE
}
PLUGINS = {
    name: path for folder in sorted(ROOT.glob("backends/*/src")) for name, path in modules(folder).items()
}


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports anywhere, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # What is imported from a package can be a name in it, or a module of its own.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_ours(name: str) -> str:
    """The first part of a name below our package, or nothing."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == PACKAGE else ""


def layer(module: str) -> str:
    room = module.split(".")[0]
    for name, members in (
        ("backend", BACKEND),
        ("iterators", ITERATORS),
        ("writer", WRITER),
        ("faces", FACES),
    ):
        if room in members:
            return name
    return OF_THE_STORE


@pytest.mark.parametrize("module", OURS)
def test_imports_point_one_way(module: str) -> None:
    rank = LAYERS.index(layer(module))
    rooms = {of_ours(name) for name in imported(OURS[module])} & {name.split(".")[0] for name in OURS}
    assert [room for room in sorted(rooms) if LAYERS.index(layer(room)) > rank] == []


@pytest.mark.parametrize("module", [name for name in OURS if name not in WITH_TENSORFLOW])
def test_only_faces_and_iterators_import_tensorflow(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(OURS[module])}
    assert not roots & {"tensorflow", "keras"}


@pytest.mark.parametrize("module", sorted(WITH_TENSORFLOW))
def test_no_module_of_the_store_is_excused(module: str) -> None:
    assert layer(module) in ("iterators", "faces")


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plugin_knows_backends_only(module: str) -> None:
    rooms = {of_ours(name) for name in imported(PLUGINS[module])} - {""}
    assert rooms <= BACKEND
