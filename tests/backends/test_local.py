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
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    CheckpointStore,
    KeepAll,
    ObjectExistsError,
    ObjectNotFoundError,
)
from input_checkpoint.backends.local import LocalBackend
from tests.support.planted_files import PlantedFilesContract

NOBODY = 65534
DAY = 24 * 3600

WRITE_FOREVER = """
import hashlib, os, sys
from input_checkpoint.backends.local import LocalBackend
from tests.support.planted_files import PlantedFilesContract

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
    NAME = f".{'0123456789abcdef' * 2}.aside"

    FOLDERS = ("", "probe", "packs/main/[0-9]+")

    @pytest.fixture(autouse=True)
    def _made(self, backend) -> None:
        backend.put("packs/main/1/made", b"data")
        backend.put("packs/main/2/made", b"data")

    def plant(self, path: Path, age: float = 9 * DAY) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
        return path

    @pytest.mark.parametrize(
        ("age", "stays"), [(0, True), (DAY - 600, True), (DAY + 600, False), (9 * DAY, False)]
    )
    def test_those_that_are_older_than_a_day_are_removed(self, folder, backend, age, stays):
        file = self.plant(folder / "packs/main/1" / self.NAME, age)
        backend.remove_leftovers(self.FOLDERS)
        assert file.exists() is stays

    def test_one_beside_the_folders_is_removed_too(self, folder, backend):
        file = self.plant(folder / self.NAME)
        backend.remove_leftovers(self.FOLDERS)
        assert not file.exists()

    def test_a_folder_that_becomes_empty_is_removed_too(self, folder, backend):
        self.plant(folder / "packs/main/3" / self.NAME)
        backend.remove_leftovers(self.FOLDERS)
        assert not (folder / "packs/main/3").exists()

    def test_they_stay_if_the_local_clock_is_ahead(self, folder, backend, monkeypatch):
        file = self.plant(folder / "packs/main/1" / self.NAME, DAY - 600)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 9 * DAY)
        backend.remove_leftovers(self.FOLDERS)
        assert file.exists()

    def test_writing_and_deleting_remove_none(self, folder, backend):
        files = [self.plant(folder / place / self.NAME) for place in ("", "packs", "packs/main/1")]
        backend.put("packs/main/1/put", b"data")
        backend.create("packs/main/1/created", b"data")
        backend.delete(["packs/main/1/put"])
        assert all(file.exists() for file in files)

    def test_opening_reading_and_listing_remove_none(self, folder):
        places = ["", "packs", "packs/main/1"]
        files = [self.plant(folder / place / self.NAME) for place in places]
        backend = LocalBackend(str(folder))
        assert backend.get("packs/main/1/made") == b"data"
        assert len(list(backend.list())) == 2
        with pytest.raises(ObjectNotFoundError):
            backend.get("packs/main/1/missing")
        backend.delete(["packs/main/1/missing"])
        assert all(file.exists() for file in files)

    def test_a_prune_of_a_store_removes_them_and_reading_does_not(self, tmp_path):
        store = CheckpointStore.open(tmp_path / "run", create=True)
        run = store.begin_run("main")
        run.save(10, [])
        lineage = "packs/main/00000001"
        files = [self.plant(tmp_path / "run" / place / self.NAME) for place in ("", "probe", lineage)]
        reader = CheckpointStore.open(tmp_path / "run")
        reader.checkpoints()
        reader.verify()
        reader.prune(KeepAll(), dry_run=True)
        assert all(file.exists() for file in files)
        run.prune(KeepAll())
        assert not any(file.exists() for file in files)

    def test_a_prune_leaves_those_in_folders_that_a_store_does_not_have(self, tmp_path):
        store = CheckpointStore.open(tmp_path / "run", create=True)
        store.begin_run("main").save(10, [])
        places = ("photos", "packs", "packs/main", "packs/main/photos", "packs/main/00000001/photos")
        files = [self.plant(tmp_path / "run" / place / self.NAME) for place in places]
        store.prune(KeepAll())
        assert all(file.exists() for file in files)

    @pytest.mark.parametrize(
        "name",
        [
            ".aside",
            ".aside/thesis.tex",
            "0123456789abcdef0123456789abcdef",
            ".0123456789abcdef0123456789abcde.aside",
            ".0123456789abcdef0123456789abcdef0.aside",
            ".0123456789ABCDEF0123456789ABCDEF.aside",
            ".0123456789abcdef0123456789abcdef.aside.txt",
            ".nfs0001",
        ],
    )
    def test_a_file_with_another_name_stays_however_old_it_is(self, folder, backend, name):
        files = [self.plant(folder / place / name) for place in ("", "packs", "packs/main/1")]
        backend.remove_leftovers(self.FOLDERS)
        assert all(file.exists() for file in files)

    @pytest.mark.parametrize("link", ["probe", "packs/main/3"])
    def test_a_file_behind_a_link_stays(self, tmp_path, folder, backend, link):
        file = self.plant(tmp_path / "theirs" / self.NAME)
        (folder / link).symlink_to(file.parent)
        backend.remove_leftovers(self.FOLDERS)
        assert file.exists()

    def test_a_link_and_a_folder_with_such_a_name_stay(self, tmp_path, folder, backend):
        target = self.plant(tmp_path / "theirs")
        (folder / self.NAME).symlink_to(target)
        os.utime(folder / self.NAME, (0, 0), follow_symlinks=False)
        (folder / "packs/main/1" / self.NAME).mkdir()
        os.utime(folder / "packs/main/1" / self.NAME, (0, 0))
        backend.remove_leftovers(self.FOLDERS)
        assert target.exists()
        assert (folder / self.NAME).is_symlink()
        assert (folder / "packs/main/1" / self.NAME).is_dir()

    def test_one_that_cannot_be_removed_is_no_error(self, folder, backend, monkeypatch):
        files = [self.plant(folder / "packs/main" / n / self.NAME) for n in ("1", "2")]
        unlink = os.unlink
        refusals = iter([PermissionError(errno.EACCES, "no")])

        def refuse_once(path, **folder):
            for refusal in refusals:
                raise refusal
            unlink(path, **folder)

        monkeypatch.setattr(os, "unlink", refuse_once)
        backend.remove_leftovers(self.FOLDERS)
        assert sum(file.exists() for file in files) == 1

    def test_they_are_not_listed(self, folder, backend):
        self.plant(folder / "packs/main/1" / self.NAME, 0)
        self.plant(folder / self.NAME, 0)
        assert [info.key for info in backend.list()] == ["packs/main/1/made", "packs/main/2/made"]

    def test_a_write_leaves_none_behind(self, folder, backend):
        backend.put("packs/main/1/put", b"data")
        backend.create("packs/main/1/created", b"data")
        assert sorted(os.listdir(folder / "packs/main/1")) == ["created", "made", "put"]
        assert os.listdir(folder) == ["packs"]

    def test_a_refused_create_leaves_none_behind(self, folder, backend):
        with pytest.raises(ObjectExistsError):
            backend.create("packs/main/1/made", b"data")
        assert os.listdir(folder / "packs/main/1") == ["made"]

    def test_a_failed_write_leaves_none_behind(self, folder, backend, monkeypatch):
        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(BackendError, match="Free some space"):
            backend.put("packs/main/1/key", b"data")
        assert os.listdir(folder / "packs/main/1") == ["made"]

    @pytest.mark.parametrize("write", ["create", "put"])
    @pytest.mark.parametrize("key", ["key", "a/b/key"])
    def test_a_file_gets_its_name_within_one_folder(self, backend, monkeypatch, write, key):
        """Some file systems, such as BeeGFS, link only within one folder."""
        used = []

        def within_one_folder(real):
            def call(source, target, *, src_dir_fd, dst_dir_fd, **options):
                if src_dir_fd != dst_dir_fd or "/" in source + target:
                    raise OSError(errno.EXDEV, "Invalid cross-device link")
                used.append(target)
                real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **options)

            return call

        for name in ("link", "replace"):
            monkeypatch.setattr(os, name, within_one_folder(getattr(os, name)))
        getattr(backend, write)(key, b"data")
        assert len(used) == 1
        assert backend.get(key) == b"data"

    def test_an_object_may_have_the_longest_name_that_the_file_system_allows(self, backend):
        backend.create("x" * 255, b"data")
        assert backend.get("x" * 255) == b"data"

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


class TestPlantedFiles(PlantedFilesContract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "store").mkdir()
        return tmp_path / "store"
