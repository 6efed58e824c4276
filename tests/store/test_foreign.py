"""Whatever else lies in the place of a store, it is there afterwards."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings

from input_checkpoint import Backend
from input_checkpoint.backends.commit_lock import CommitLockBackend
from input_checkpoint.backends.generic import GenericBackend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from tests.support.foreign import (
    NEARLY_OURS,
    THREE_DAYS,
    check_files_stay,
    check_objects_stay,
    empty_folder,
    files,
    foreign_names,
    obstacles,
    plant_file,
)
from tests.support.planted_files import KINDS


def open_generic(root: Path) -> Backend:
    """The generic backend on local files, which can only commit with a lock."""
    locks = MemoryBackend(f"memory://locks-of{root}")
    root.mkdir(exist_ok=True)
    return CommitLockBackend(GenericBackend(f"generic://{root}", LocalFileSystem(), str(root)), locks)


@contextmanager
def new_folder() -> Iterator[Path]:
    root = empty_folder()
    try:
        yield root
    finally:
        shutil.rmtree(root.parent)


OPEN = {"local": lambda root: LocalBackend(str(root)), "generic": open_generic}
on_files = pytest.mark.parametrize("opened", OPEN.values(), ids=OPEN.keys())


@on_files
def test_files_with_names_that_are_nearly_ours_stay(opened):
    with new_folder() as root:
        check_objects_stay(
            lambda: opened(root),
            lambda name, data: plant_file(root, name, data),
            lambda: files(root),
            NEARLY_OURS,
        )


@on_files
@settings(max_examples=15)
@given(names=foreign_names)
def test_foreign_files_stay(opened, names):
    with new_folder() as root:
        check_objects_stay(
            lambda: opened(root), lambda name, data: plant_file(root, name, data), lambda: files(root), names
        )


@settings(max_examples=60)
@given(names=foreign_names, found=obstacles)
def test_foreign_links_and_special_files_stay(names, found):
    with new_folder() as root:
        check_files_stay(root, lambda: LocalBackend(str(root)), names, found)


@pytest.mark.parametrize("path", ["probe", "saves/main", "packs/main/00000001", ".aside", "lineages"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("device", "folder")])
def test_anything_in_place_of_a_folder_stays(path, kind):
    with new_folder() as root:
        check_files_stay(root, lambda: LocalBackend(str(root)), NEARLY_OURS, {path: kind})


@pytest.mark.parametrize(
    "names", [NEARLY_OURS, ["saves/main/", "saves/", "packs//main", "probe/../probe/a", ""]]
)
def test_objects_in_memory_stay(names):
    backend = MemoryBackend(f"memory://{uuid.uuid4().hex}")
    check_memory(backend, names)


@settings(max_examples=30)
@given(names=foreign_names)
def test_foreign_objects_in_memory_stay(names):
    check_memory(MemoryBackend(f"memory://{uuid.uuid4().hex}"), names)


def check_memory(backend: MemoryBackend, names) -> None:
    def plant(name: str, data: bytes) -> None:
        backend._objects[name] = (data, time.time() - THREE_DAYS)

    def stored() -> dict[str, object]:
        return {name: data for name, (data, _) in backend._objects.items()}

    check_objects_stay(lambda: MemoryBackend(backend.uri), plant, stored, names)
