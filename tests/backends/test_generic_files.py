"""The generic backend on a filesystem with files: what is not a file is no object."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from input_checkpoint import BackendError, ObjectNotFoundError
from input_checkpoint.backends.generic import GenericBackend
from tests.support.operations import outcome
from tests.support.planted_files import KINDS, SPECIAL, WITHIN


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").write_bytes(b"theirs")
    return tmp_path / "theirs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "store/a").mkdir(parents=True)
    return tmp_path / "store"


@pytest.fixture
def backend(folder: Path) -> GenericBackend:
    return GenericBackend(f"generic://{folder}", LocalFileSystem(), str(folder))


@pytest.mark.parametrize("kind", [*SPECIAL, "link to a file", "link to a folder"])
@pytest.mark.parametrize("end", [None, 4])
def test_what_is_not_a_file_cannot_be_read_or_replaced(backend, folder, theirs, kind, end):
    KINDS[kind](folder / "a/object", theirs)
    assert isinstance(outcome(lambda: backend.get("a/object", 0, end), WITHIN), ObjectNotFoundError)
    assert isinstance(outcome(lambda: backend.put("a/object", b"data"), WITHIN), BackendError)
    assert os.listdir(theirs) == ["file"]
    assert (theirs / "file").read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_file_is_not_listed(backend, folder, theirs, kind):
    KINDS[kind](folder / "a/object", theirs)
    (folder / "a/other").write_bytes(b"data")
    assert [info.key for info in backend.list()] == ["a/other"]
