"""What the import contracts in pyproject.toml cannot say: which of our modules a plugin may import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC_FOR_PLUGINS = (
    "input_checkpoint.backends",
    "input_checkpoint.errors",
    "input_checkpoint.parallel",
    "input_checkpoint.testing",
)
PLUGIN_MODULES = sorted(ROOT.glob("backends/*/src/**/*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: a relative import"
            yield node.module


def is_allowed(module: str) -> bool:
    if module.split(".")[0] != "input_checkpoint":
        return True
    return any(module == public or module.startswith(f"{public}.") for public in PUBLIC_FOR_PLUGINS)


@pytest.mark.parametrize("path", PLUGIN_MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_plugin_imports_only_what_is_for_plugins(path: Path) -> None:
    assert [module for module in imported_modules(path) if not is_allowed(module)] == []


def test_every_plugin_is_checked() -> None:
    assert {path.relative_to(ROOT).parts[1] for path in PLUGIN_MODULES} == {"azure", "gcs", "s3", "sftp"}
