"""What only the local backend has: crashes, power cuts, temporary files, paths and permissions."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from input_checkpoint import (
    BackendNotFoundError,
    BackendPermissionError,
    CheckpointStore,
    ObjectExistsError,
    ObjectNotFoundError,
)
from input_checkpoint.backends.local import LocalBackend

NOBODY = 65534
DAY = 24 * 3600

WRITE_FOREVER = """
import hashlib, os, sys
from input_checkpoint.backends.local import LocalBackend

backend = LocalBackend(sys.argv[1])
for number in range(10**6):
    body = os.urandom(4096) * 512
    data = hashlib.sha256(body).digest() + body
    backend.create(f"created/{number:06d}", data)
    backend.put("replaced", data)
    print(number, flush=True)
"""


def is_complete(data: bytes) -> bool:
    return data[:32] == hashlib.sha256(data[32:]).digest()


def kill_a_writer(folder: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(random.uniform(0.0, 0.1))
        writer.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def backend(folder: Path) -> LocalBackend:
    return LocalBackend(str(folder))


@pytest.fixture
def no_access(tmp_path: Path) -> Iterator[Path]:
    """A folder without permissions, also if root runs the test."""
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0)
    ids = os.getresuid()
    if os.geteuid() == 0:
        os.setresuid(NOBODY, NOBODY, 0)
    yield locked
    os.setresuid(*ids)
    locked.chmod(0o700)


class TestCrash:
    @pytest.mark.parametrize("round_", range(5))
    def test_a_killed_writer_leaves_no_incomplete_object(self, folder, round_):
        kill_a_writer(folder)
        backend = LocalBackend(str(folder))
        found = [info.key for info in backend.list()]
        assert "created/000000" in found
        assert [key for key in found if not is_complete(backend.get(key))] == []

    def test_the_next_writer_works_after_one_was_killed(self, folder):
        kill_a_writer(folder)
        backend = LocalBackend(str(folder))
        backend.put("replaced", b"by the next")
        with pytest.raises(ObjectExistsError):
            backend.create("created/000000", b"again")
        assert backend.get("replaced") == b"by the next"


class TestPowerCut:
    @pytest.fixture
    def flushed(self, monkeypatch) -> list[int]:
        """The inodes of all files and folders that are flushed to the disk, in order."""
        found: list[int] = []
        fsync = os.fsync

        def record(descriptor: int) -> None:
            found.append(os.fstat(descriptor).st_ino)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", record)
        return found

    def inode(self, path: Path) -> int:
        return path.stat().st_ino

    def test_the_name_of_an_object_is_flushed(self, folder, backend, flushed):
        backend.put("a/key", b"data")
        assert flushed[-1] == self.inode(folder / "a")

    def test_the_name_of_every_new_folder_is_flushed(self, tmp_path, folder, flushed):
        LocalBackend(str(folder / "deep" / "run")).create("a/b/key", b"data")
        places = (tmp_path, folder, folder / "deep", folder / "deep/run", folder / "deep/run/a")
        assert set(map(self.inode, places)) <= set(flushed)

    def test_the_name_of_a_folder_that_another_process_just_made_is_flushed(self, folder, backend, flushed):
        backend.put("other", b"data")
        (folder / "a").mkdir()
        flushed.clear()
        backend.put("a/key", b"data")
        assert self.inode(folder) in flushed

    def test_the_name_of_a_folder_that_is_made_again_is_flushed(self, folder, backend, flushed):
        backend.put("a/key", b"data")
        backend.delete(["a/key"])
        flushed.clear()
        backend.put("a/key", b"data")
        assert self.inode(folder) in flushed

    def test_a_folder_is_flushed_only_once(self, folder, backend, flushed):
        backend.put("a/b/key", b"data")
        flushed.clear()
        backend.put("a/b/other", b"data")
        assert flushed == [self.inode(folder / "a/b/other"), self.inode(folder / "a/b")]

    def test_the_parent_folder_need_not_be_readable(self, tmp_path, folder, monkeypatch):
        real = os.open

        def refuse(path, *args, **kwargs):
            if Path(path) == tmp_path:
                raise PermissionError(errno.EACCES, "no", path)
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
        LocalBackend(str(folder)).put("a/key", b"data")
        assert (folder / "a/key").read_bytes() == b"data"


class TestTemporaryFiles:
    @pytest.fixture
    def temporary(self, folder, backend) -> Path:
        backend.put("made", b"")
        return folder / ".aside"

    def write_file(self, path: Path, age: float) -> Path:
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    @pytest.mark.parametrize(
        ("age", "stays"), [(0, True), (DAY - 600, True), (DAY + 600, False), (9 * DAY, False)]
    )
    def test_opening_removes_those_that_are_older_than_a_day(self, folder, temporary, age, stays):
        file = self.write_file(temporary / "file", age)
        LocalBackend(str(folder))
        assert file.exists() is stays

    def test_they_are_not_listed(self, backend, temporary):
        self.write_file(temporary / "file", 0)
        assert [info.key for info in backend.list()] == ["made"]

    def test_a_write_leaves_none_behind(self, backend, temporary):
        backend.put("put", b"data")
        backend.create("created", b"data")
        assert list(temporary.iterdir()) == []

    def test_a_refused_create_leaves_none_behind(self, backend, temporary):
        with pytest.raises(ObjectExistsError):
            backend.create("made", b"data")
        assert list(temporary.iterdir()) == []

    def test_opening_never_removes_objects(self, folder, backend):
        backend.put("old", b"data")
        os.utime(folder / "old", (0, 0))
        assert LocalBackend(str(folder)).get("old") == b"data"


class TestPaths:
    def test_the_first_write_makes_the_folder(self, folder, backend):
        assert not folder.exists()
        backend.put("deep/below/key", b"data")
        assert (folder / "deep/below/key").read_bytes() == b"data"

    def test_opening_reading_and_listing_make_no_folder(self, tmp_path, backend):
        list(backend.list())
        with pytest.raises(ObjectNotFoundError):
            backend.get("key")
        backend.delete(["key"])
        assert list(tmp_path.iterdir()) == []

    def test_a_tilde_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        LocalBackend("~/run").put("key", b"data")
        assert (tmp_path / "run/key").read_bytes() == b"data"

    def test_a_relative_path_is_resolved_on_opening(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        backend = LocalBackend("run")
        monkeypatch.chdir("/")
        backend.put("key", b"data")
        assert (tmp_path / "run/key").read_bytes() == b"data"

    @pytest.mark.parametrize("host", ["", "localhost"])
    def test_a_file_uri_is_a_path(self, tmp_path, host):
        LocalBackend(f"file://{host}{tmp_path}/with%20space").put("key", b"data")
        assert (tmp_path / "with space/key").read_bytes() == b"data"

    def test_a_file_uri_with_a_host_is_refused(self):
        with pytest.raises(BackendNotFoundError, match=r"file://data/run-7.*three slashes"):
            LocalBackend("file://data/run-7")

    def test_a_path_of_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").write_bytes(b"mine")
        with pytest.raises(BackendNotFoundError, match=f"{tmp_path}/file is a file"):
            LocalBackend(str(tmp_path / "file"))
        assert (tmp_path / "file").read_bytes() == b"mine"

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("/sys/nowhere", BackendPermissionError),
            ("/proc/nowhere", BackendNotFoundError),
            ("/dev/null/nowhere", BackendNotFoundError),
        ],
    )
    def test_a_folder_that_cannot_be_made_is_refused(self, path, error):
        with pytest.raises(error, match=f"cannot (read|write) {path}/format.json"):
            CheckpointStore.open(path, create=True)

    def test_a_name_that_is_too_long_is_refused(self, tmp_path):
        path = str(tmp_path / ("x" * 300))
        with pytest.raises(BackendNotFoundError, match=path):
            LocalBackend(path).put("key", b"data")

    @pytest.mark.parametrize("path", ["", "below"])
    def test_writing_without_permission_is_refused(self, no_access, path):
        with pytest.raises(BackendPermissionError, match=str(no_access)):
            LocalBackend(str(no_access / path)).put("key", b"data")

    @pytest.mark.parametrize("path", ["", "below"])
    def test_reading_without_permission_is_refused(self, no_access, path):
        with pytest.raises(BackendPermissionError, match=str(no_access)):
            LocalBackend(str(no_access / path)).get("key")

    @pytest.mark.parametrize("path", ["", "below"])
    def test_listing_without_permission_is_refused(self, no_access, path):
        with pytest.raises(BackendPermissionError, match=str(no_access)):
            list(LocalBackend(str(no_access / path)).list())

    def test_the_error_of_a_write_carries_uri_and_key(self, backend):
        with pytest.raises(BackendNotFoundError) as raised:
            backend.put("x" * 300, b"data")
        assert (raised.value.uri, raised.value.key) == (backend.uri, "x" * 300)

    def test_the_error_of_a_listing_carries_the_uri_and_no_key(self, backend):
        backend.put("key", b"data")
        with pytest.raises(BackendNotFoundError) as raised:
            list(backend.list("x" * 300 + "/"))
        assert (raised.value.uri, raised.value.key) == (backend.uri, None)

    def test_the_error_names_the_user_who_needs_access(self, tmp_path, no_access):
        with pytest.raises(BackendPermissionError, match=f"uid {os.getuid()}"):
            LocalBackend(str(no_access)).put("key", b"data")


class TestKeysAndFolders:
    @pytest.fixture(autouse=True)
    def _objects(self, backend) -> None:
        backend.put("folder/object", b"data")

    @pytest.mark.parametrize("key", ["folder", "folder/object/below", "folder/other"])
    def test_get_of_a_missing_key_fails(self, backend, key):
        with pytest.raises(ObjectNotFoundError):
            backend.get(key)

    @pytest.mark.parametrize("key", ["folder", "folder/object/below", "folder/other"])
    def test_delete_ignores_a_missing_key(self, backend, key):
        backend.delete([key])
        assert [info.key for info in backend.list()] == ["folder/object"]

    def test_a_key_below_an_object_is_refused(self, backend):
        with pytest.raises(BackendNotFoundError, match="part of this path is a file"):
            backend.put("folder/object/below", b"data")

    def test_deleting_the_last_object_removes_its_folder_but_not_the_root(self, folder, backend):
        backend.delete(["folder/object"])
        assert not (folder / "folder").exists()
        assert folder.exists()

    def test_hidden_files_and_broken_links_are_not_listed(self, folder, backend):
        (folder / ".nfs0001").write_bytes(b"")
        (folder / "dangling").symlink_to(folder / "nowhere")
        assert [info.key for info in backend.list()] == ["folder/object"]

    def test_list_returns_the_time_of_the_last_write(self, backend):
        (info,) = backend.list()
        assert abs(info.modified - time.time()) < 60

    def test_writers_and_deleters_can_share_a_folder(self, backend):
        def create_and_delete(number: int) -> None:
            for _ in range(150):
                backend.create(f"shared/deep/{number}", b"data")
                backend.delete([f"shared/deep/{number}"])

        with ThreadPoolExecutor(4) as workers:
            assert list(workers.map(create_and_delete, range(4))) == [None] * 4

    def test_the_umask_decides_who_can_read_a_file(self, folder, backend):
        umask = os.umask(0o022)
        try:
            backend.put("open", b"data")
        finally:
            os.umask(umask)
        assert stat.S_IMODE((folder / "open").stat().st_mode) == 0o644
