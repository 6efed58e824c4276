"""What the local backend writes has the user's permissions, and a folder that anybody may write is named."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from input_checkpoint import CheckpointStore, IteratorState
from input_checkpoint.backends.local import LocalBackend


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def save(folder: Path) -> None:
    run = CheckpointStore.open(folder, create=True).begin_run("main")
    run.save(10, [IteratorState("Iterator", [(b"key", b"payload" * 500)])])


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077, 0o000])
def test_files_and_folders_have_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        save(tmp_path / "store")
    paths = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    assert len(paths) > 6
    for path in paths:
        whole = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == whole & ~mask, path


def test_a_file_that_is_replaced_is_not_wider_than_the_umask(tmp_path: Path) -> None:
    backend = LocalBackend(str(tmp_path))
    with umask(0o022):
        backend.put("key", b"first")
    with umask(0o077):
        backend.put("key", b"second")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757, 0o702])
def test_a_folder_that_anybody_may_write_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    folder = tmp_path / "it's shared"
    folder.mkdir()
    folder.chmod(mode)
    for _ in range(3):
        LocalBackend(str(folder)).put("key", b"data")
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"Every user of this machine may write to {folder} (mode {mode:o})" in message
    assert message.endswith(f"chmod o-w '{tmp_path}/it'\"'\"'s shared'")


def test_a_folder_that_the_first_write_makes_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = LocalBackend(str(tmp_path / "new" / "store"))
    with umask(0):
        backend.put("a/b", b"data")
    assert f"may write to {tmp_path}/new/store (mode 777)" in caplog.text


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750, 0o775, 0o2775])
def test_a_folder_of_a_user_or_a_group_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    tmp_path.chmod(mode)
    LocalBackend(str(tmp_path)).put("key", b"data")
    assert caplog.text == ""
