"""Whatever else lies in the place of a store, it is there afterwards."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings

from input_checkpoint import (
    Backend,
    BackendError,
    CheckpointStore,
    CorruptCheckpointError,
    InputCheckpointError,
    KeepLast,
)
from input_checkpoint.backends.commit_lock import CommitLockBackend
from input_checkpoint.backends.generic import GenericBackend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from tests.support.foreign import (
    NEARLY_OURS,
    THREE_DAYS,
    check_files_stay,
    check_objects_stay,
    copy,
    empty_folder,
    files,
    foreign_names,
    obstacles,
    open_store,
    plant_file,
    prune_from_elsewhere,
    read,
    resume_and_prune,
)
from tests.support.operations import outcome
from tests.support.planted_files import KINDS
from tests.support.stores import loaded, save


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "replaced",
    ["format.json", "lineages/**/*.json", "checkpoints/**/*030.manifest", "packs/**/*.pack", "pins/**/*"],
)
def test_nothing_waits_for_what_has_replaced_an_object_and_errors_are_our_own(replaced, kind):
    with new_folder() as root:
        store = open_store(lambda: LocalBackend(str(root)))
        *_, newest = save(store.begin_run("main"), 10, 20, 30)
        store.pin(newest)
        path = max(root.glob(replaced))
        path.unlink()
        theirs = root.with_name("theirs")
        theirs.mkdir()
        (theirs / "file").write_bytes(b"theirs")
        KINDS[kind](path, theirs)
        before = path.lstat()
        for action in (read, load, resume_and_prune, prune_from_elsewhere, copy):
            error = outcome(
                lambda action=action: action(open_store(lambda: LocalBackend(str(root)))), within=60
            )
            assert error is None or isinstance(error, InputCheckpointError)
        if kind != "folder":  # an empty folder is removed with the last object in it
            assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
        assert files(theirs) == {"file": b"theirs"}


def load(store: CheckpointStore) -> None:
    for ref in store.history("main"):
        loaded(store, ref)


def test_a_checkpoint_whose_pack_is_a_named_pipe_is_reported_like_one_without_it():
    with new_folder() as root:
        store = open_store(lambda: LocalBackend(str(root)))
        save(store.begin_run("main"), 10)
        (pack,) = root.glob("packs/**/*.pack")
        pack.unlink()
        os.mkfifo(pack)
        with pytest.raises(CorruptCheckpointError, match=r"\.pack"):
            load(store)
        assert "missing" in str(store.verify().problems)


def test_a_link_to_another_disk_in_place_of_a_folder_is_an_error_that_says_what_to_do():
    with new_folder() as root:
        store = open_store(lambda: LocalBackend(str(root)))
        save(store.begin_run("main"), 10)
        (root / "packs").rename(root.with_name("other-disk"))
        (root / "packs").symlink_to(root.with_name("other-disk"))
        for use in (load, prune_from_elsewhere, resume_and_prune):
            with pytest.raises(BackendError, match=r"packs is a symbolic link.*bind mount"):
                use(store)


def test_a_store_behind_a_link_works():
    with new_folder() as root:
        (root.with_name("other-disk") / "run").mkdir(parents=True)
        root.symlink_to(root.with_name("other-disk") / "run")
        store = open_store(lambda: LocalBackend(str(root)))
        save(store.begin_run("main"), 10, 20)
        store.prune(KeepLast(1))
        assert [info.step for info in open_store(lambda: LocalBackend(str(root))).checkpoints()] == [20]
        assert root.is_symlink()
