"""The SFTP backend keeps the contract and leaves nothing but objects behind."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Optional

import pytest
from sftp_in_process import FSYNC, HARD_LINK, POSIX_RENAME

from input_checkpoint import ObjectNotFoundError, open_backend
from input_checkpoint.testing import BackendContract
from input_checkpoint_sftp import SftpBackend
from tests.support.planted_files import PlantedFilesContract

DAY = 24 * 3600


class TestSftpBackend(BackendContract):
    """Reads and writes the server's files directly."""

    race_rounds = 5
    listed_keys = 120

    @pytest.fixture
    def backend(self, server, folder_name, backend):
        self.folder = server.data / folder_name
        return backend

    def stored(self, backend, key: str) -> Optional[bytes]:
        path = self.folder / key
        return path.read_bytes() if path.exists() else None

    def plant(self, backend, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def test_both_schemes_open_it(self, backend, server, folder_name):
        backend.put("key", b"data")
        for uri in (server.uri(folder_name), server.uri(folder_name).replace("sftp://", "ssh://")):
            opened = open_backend(uri, server.options())
            assert isinstance(opened, SftpBackend)
            assert opened.get("key") == b"data"
            opened.close()

    def test_a_user_and_port_in_the_uri_are_used(self, backend, server, folder_name):
        backend.put("key", b"data")
        uri = server.uri(folder_name).replace("127.0.0.1", f"trainer@127.0.0.1:{server.port}")
        opened = open_backend(uri, server.options(port=None, username=None))
        assert opened.get("key") == b"data"
        opened.close()

    def test_writes_leave_nothing_but_the_objects(self, backend):
        backend.create("a/created", b"data")
        backend.put("a/put", b"data")
        backend.put("a/put", b"again")
        with pytest.raises(Exception, match="already exists"):
            backend.create("a/created", b"other")
        assert sorted(os.listdir(self.folder / "a")) == ["created", "put"]

    @pytest.mark.parametrize(("write", "naming"), [("create", HARD_LINK), ("put", POSIX_RENAME)])
    def test_data_is_flushed_before_the_file_gets_its_name(self, backend, server, write, naming):
        backend.create("before", b"")  # asks the server for its extensions
        asked = []
        server.script = lambda request, path: asked.append((request, path))
        getattr(backend, write)("key", b"data")
        steps = [(request, path) for request, path in asked if request in ("write", FSYNC, naming)]
        temporary = steps[0][1]
        assert steps[:3] == [("write", temporary), (FSYNC, temporary), (naming, temporary)]
        if write == "create":
            assert steps[3:] == [(FSYNC, str(self.folder))]

    def test_a_key_may_be_as_long_as_the_file_system_allows(self, backend):
        backend.create("k" * 255, b"data")
        assert backend.get("k" * 255) == b"data"

    def test_short_reads_are_continued(self, backend, server):
        server.max_read_bytes = 999
        data = os.urandom(200_000)
        self.plant(backend, "key", data)
        assert backend.get("key") == data
        assert backend.get("key", 1234, 99_999) == data[1234:99_999]

    def test_list_returns_the_time_of_the_last_write(self, backend):
        backend.put("key", b"")
        (info,) = backend.list()
        assert abs(info.modified - (self.folder / "key").stat().st_mtime) <= 1

    def test_list_opens_only_folders_that_can_match(self, backend, server):
        for key in ("runs/1/a", "runs/10/a", "runs/2/a", "other/a"):
            self.plant(backend, key, b"")
        opened_folders = []
        server.script = lambda request, path: opened_folders.append(path) if request == "opendir" else None
        assert [info.key for info in backend.list("runs/1")] == ["runs/1/a", "runs/10/a"]
        runs = self.folder / "runs"
        assert sorted(opened_folders) == [str(runs), str(runs / "1"), str(runs / "10")]

    @pytest.mark.parametrize("prefix", ["../", "/", "a/../../", ".hidden/"])
    def test_list_does_not_leave_the_folder(self, backend, prefix):
        self.plant(backend, "a/key", b"")
        self.plant(backend, ".hidden/key", b"")
        assert list(backend.list(prefix)) == []

    def test_hidden_files_of_other_programs_are_neither_listed_nor_removed(self, backend):
        self.plant(backend, ".theirs", b"")
        self.plant(backend, "key", b"")
        os.utime(self.folder / ".theirs", (1, 1))
        assert [info.key for info in backend.list()] == ["key"]
        assert (self.folder / ".theirs").exists()

    def test_a_folder_is_not_an_object(self, backend):
        self.plant(backend, "folder/key", b"")
        with pytest.raises(ObjectNotFoundError):
            backend.get("folder")
        backend.delete(["folder"])
        assert (self.folder / "folder/key").exists()

    def test_delete_removes_empty_folders_but_not_the_root(self, backend):
        for key in ("a/b/c", "a/b/d", "x/y"):
            self.plant(backend, key, b"")
        backend.delete(["a/b/c", "x/y"])
        assert sorted(os.listdir(self.folder)) == ["a"]
        backend.delete(["a/b/d"])
        assert os.listdir(self.folder) == []

    def test_a_write_makes_its_folder_again_if_it_was_removed_concurrently(self, backend, server):
        removals = iter(range(5))

        def script(request: str, path: str) -> None:
            if request == "open" and (self.folder / "a").exists() and next(removals, None) is not None:
                (self.folder / "a").rmdir()

        server.script = script
        backend.create("a/key", b"data")
        assert next(removals, None) is None
        assert self.stored(backend, "a/key") == b"data"


class TestTemporaryFilesOfCrashedWriters:
    TEMPORARY = f".{'0123456789abcdef' * 2}.aside"

    @pytest.fixture
    def folder(self, server, folder_name):
        folder = server.data / folder_name
        folder.mkdir()
        return folder

    def plant(self, path, age: float) -> None:
        path.write_bytes(b"half")
        then = time.time() - age
        os.utime(path, (then, then))

    FOLDERS = ("", "packs/[0-9]+")

    def test_those_that_are_older_than_a_day_are_removed(self, backend, folder):
        (folder / "packs/1").mkdir(parents=True)
        self.plant(folder / self.TEMPORARY, age=DAY + 60)
        self.plant(folder / "packs/1" / self.TEMPORARY, age=DAY + 60)
        self.plant(folder / "key", age=0)
        backend.remove_leftovers(self.FOLDERS)
        assert os.listdir(folder) == ["key"]

    def test_listing_writing_and_deleting_remove_none(self, backend, folder):
        self.plant(folder / self.TEMPORARY, age=DAY + 60)
        backend.put("key", b"data")
        assert [info.key for info in backend.list()] == ["key"]
        backend.delete(["key"])
        assert os.listdir(folder) == [self.TEMPORARY]

    def test_newer_ones_stay_because_they_may_be_in_use(self, backend, folder):
        self.plant(folder / self.TEMPORARY, age=DAY - 60)
        self.plant(folder / "key", age=0)
        backend.remove_leftovers(self.FOLDERS)
        assert (folder / self.TEMPORARY).exists()

    def test_newer_ones_stay_even_if_the_local_clock_is_years_ahead(self, backend, folder, monkeypatch):
        self.plant(folder / self.TEMPORARY, age=60)
        self.plant(folder / "key", age=0)
        now = time.time()
        monkeypatch.setattr("input_checkpoint_sftp.backend.time.time", lambda: now + 3 * 365 * DAY)
        backend.remove_leftovers(self.FOLDERS)
        assert (folder / self.TEMPORARY).exists()

    def test_those_in_other_folders_behind_links_or_under_other_names_stay(self, backend, folder, tmp_path):
        (folder / "packs/photos").mkdir(parents=True)
        (folder / "packs/1").symlink_to(tmp_path)
        files = [
            folder / "packs" / self.TEMPORARY,
            folder / "packs/photos" / self.TEMPORARY,
            tmp_path / self.TEMPORARY,
            folder / self.TEMPORARY.upper(),
            folder / f"{self.TEMPORARY}.txt",
        ]
        for file in files:
            self.plant(file, age=9 * DAY)
        (folder / self.TEMPORARY).symlink_to(files[2])
        self.plant(folder / "key", age=0)
        backend.remove_leftovers(self.FOLDERS)
        assert all(file.exists() for file in files)
        assert (folder / self.TEMPORARY).is_symlink()

    def test_one_that_cannot_be_removed_is_no_error(self, backend, folder, server):
        self.plant(folder / self.TEMPORARY, age=DAY + 60)
        self.plant(folder / "key", age=0)
        server.script = lambda request, path: 3 if request == "remove" else None
        backend.remove_leftovers(self.FOLDERS)
        assert (folder / self.TEMPORARY).exists()


class TestPlantedFiles(PlantedFilesContract):
    @pytest.fixture
    def folder(self, server, folder_name) -> Path:
        (server.data / folder_name).mkdir()
        return server.data / folder_name
