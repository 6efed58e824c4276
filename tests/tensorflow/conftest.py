"""Fixtures for the tests of the hooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hooked_training import Steps
from tests.support.training import shuffled_ids, uninterrupted


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory."""
    return tmp_path / "model"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the input is saved."""
    return tmp_path / "store"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """What 80 uninterrupted steps are trained on."""
    return uninterrupted(shuffled_ids, 80, tmp_path_factory.mktemp("reference"))
