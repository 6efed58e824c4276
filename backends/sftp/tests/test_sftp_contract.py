"""The SFTP backend keeps the contract, and leaves nothing but objects."""

from __future__ import annotations

import os
import time
from typing import Optional

import pytest
from sftp_in_process import FSYNC, HARD_LINK, POSIX_RENAME

from input_checkpoint import ObjectNotFoundError, open_backend
from input_checkpoint.testing import BackendContract
from input_checkpoint_sftp import SftpBackend

DAY = 24 * 3600


class TestSftpBackend(BackendContract):
    """Looks around the backend at the server's files."""

    race_rounds = 5
    listed_keys = 120

    @pytest.fixture
    def backend(self, server, place, backend):
        self.folder = server.data / place
        return backend

    def stored(self, backend, key: str) -> Optional[bytes]:
        path = self.folder / key
        return path.read_bytes() if path.exists() else None

    def plant(self, backend, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def test_it_is_what_both_schemes_open(self, backend, server, place):
        backend.put("key", b"data")
        for uri in (server.uri(place), server.uri(place).replace("sftp://", "ssh://")):
            opened = open_backend(uri, server.options())
            assert isinstance(opened, SftpBackend)
            assert opened.get("key") == b"data"
            opened.close()

    def test_a_user_and_port_in_the_uri_are_used(self, backend, server, place):
        backend.put("key", b"data")
        uri = server.uri(place).replace("127.0.0.1", f"trainer@127.0.0.1:{server.port}")
        opened = open_backend(uri, server.options(port=None, username=None))
        assert opened.get("key") == b"data"
        opened.close()

    def test_nothing_but_the_objects_is_left(self, backend):
        backend.create("a/created", b"data")
        backend.put("a/put", b"data")
        backend.put("a/put", b"again")
        with pytest.raises(Exception, match="already exists"):
            backend.create("a/created", b"other")
        assert sorted(os.listdir(self.folder / "a")) == ["created", "put"]

    @pytest.mark.parametrize(("write", "naming"), [("create", HARD_LINK), ("put", POSIX_RENAME)])
    def test_the_data_are_on_the_disk_before_the_name_is_there(self, backend, server, write, naming):
        backend.create("before", b"")  # what the server can do is known by now
        asked = []
        server.script = lambda request, path: asked.append((request, path))
        getattr(backend, write)("key", b"data")
        steps = [(request, path) for request, path in asked if request in ("write", FSYNC, naming)]
        aside = steps[0][1]
        assert steps[:3] == [("write", aside), (FSYNC, aside), (naming, aside)]
        if write == "create":
            assert steps[3:] == [(FSYNC, str(self.folder))]

    def test_a_name_may_be_as_long_as_the_file_system_allows(self, backend):
        backend.create("k" * 255, b"data")
        assert backend.get("k" * 255) == b"data"

    def test_a_server_that_sends_less_than_was_asked_for_is_asked_again(self, backend, server):
        server.largest_read = 999
        data = os.urandom(200_000)
        self.plant(backend, "key", data)
        assert backend.get("key") == data
        assert backend.get("key", 1234, 99_999) == data[1234:99_999]

    def test_list_tells_when_each_object_was_stored(self, backend):
        backend.put("key", b"")
        (info,) = backend.list()
        assert abs(info.modified - (self.folder / "key").stat().st_mtime) <= 1

    def test_list_looks_only_into_folders_that_can_match(self, backend, server):
        for key in ("runs/1/a", "runs/10/a", "runs/2/a", "other/a"):
            self.plant(backend, key, b"")
        looked_into = []
        server.script = lambda request, path: looked_into.append(path) if request == "opendir" else None
        assert [info.key for info in backend.list("runs/1")] == ["runs/1/a", "runs/10/a"]
        runs = self.folder / "runs"
        assert sorted(looked_into) == [str(runs), str(runs / "1"), str(runs / "10")]

    @pytest.mark.parametrize("prefix", ["../", "/", "a/../../", ".hidden/"])
    def test_list_does_not_leave_the_place(self, backend, prefix):
        self.plant(backend, "a/key", b"")
        self.plant(backend, ".hidden/key", b"")
        assert list(backend.list(prefix)) == []

    def test_files_of_others_with_a_dot_are_neither_listed_nor_removed(self, backend):
        self.plant(backend, ".theirs", b"")
        self.plant(backend, "key", b"")
        os.utime(self.folder / ".theirs", (1, 1))
        assert [info.key for info in backend.list()] == ["key"]
        assert (self.folder / ".theirs").exists()

    def test_a_folder_is_no_object(self, backend):
        self.plant(backend, "folder/key", b"")
        with pytest.raises(ObjectNotFoundError):
            backend.get("folder")
        backend.delete(["folder"])
        assert (self.folder / "folder/key").exists()

    def test_delete_takes_emptied_folders_along_but_not_the_place_itself(self, backend):
        for key in ("a/b/c", "a/b/d", "x/y"):
            self.plant(backend, key, b"")
        backend.delete(["a/b/c", "x/y"])
        assert sorted(os.listdir(self.folder)) == ["a"]
        backend.delete(["a/b/d"])
        assert os.listdir(self.folder) == []

    def test_writing_outlasts_a_folder_that_others_remove_just_then(self, backend, server):
        removals = iter(range(5))

        def script(request: str, path: str) -> None:
            if request == "open" and (self.folder / "a").exists() and next(removals, None) is not None:
                (self.folder / "a").rmdir()

        server.script = script
        backend.create("a/key", b"data")
        assert next(removals, None) is None
        assert self.stored(backend, "a/key") == b"data"


class TestWhatCrashedWritersLeave:
    ASIDE = f".{'0123456789abcdef' * 2}.aside"

    @pytest.fixture
    def folder(self, server, place):
        folder = server.data / place
        folder.mkdir()
        return folder

    def plant(self, path, age: float) -> None:
        path.write_bytes(b"half")
        then = time.time() - age
        os.utime(path, (then, then))

    def test_it_is_removed_a_day_later(self, backend, folder):
        self.plant(folder / self.ASIDE, age=DAY + 60)
        self.plant(folder / "key", age=0)
        assert [info.key for info in backend.list()] == ["key"]
        assert os.listdir(folder) == ["key"]

    def test_it_is_left_for_a_day_since_it_may_be_in_flight(self, backend, folder):
        self.plant(folder / self.ASIDE, age=DAY - 60)
        self.plant(folder / "key", age=0)
        assert [info.key for info in backend.list()] == ["key"]
        assert (folder / self.ASIDE).exists()

    def test_a_clock_that_is_fast_by_years_removes_nothing_in_flight(self, backend, folder, monkeypatch):
        self.plant(folder / self.ASIDE, age=60)
        self.plant(folder / "key", age=0)
        now = time.time()
        monkeypatch.setattr("input_checkpoint_sftp.backend.time.time", lambda: now + 3 * 365 * DAY)
        list(backend.list())
        assert (folder / self.ASIDE).exists()

    def test_who_may_not_remove_it_can_list_all_the_same(self, backend, folder, server):
        self.plant(folder / self.ASIDE, age=DAY + 60)
        self.plant(folder / "key", age=0)
        server.script = lambda request, path: 3 if request == "remove" else None
        assert [info.key for info in backend.list()] == ["key"]
