"""Clients are opened again in a forked child, and after refused credentials, once for all threads."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import fsspec
import fsspec.config
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from input_checkpoint import BackendPermissionError
from input_checkpoint.backends import configuration
from input_checkpoint.backends.generic import GenericBackend, open_generic
from input_checkpoint.backends.reopening import ReopeningClient
from tests.support.forking import needs_fork


class Clients:
    """Opens clients, which are numbers, and counts."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[int] = []

    def open(self) -> int:
        self.opened += 1
        return self.opened


@pytest.fixture
def clients() -> Clients:
    return Clients()


@pytest.fixture
def holder(clients: Clients) -> ReopeningClient[int]:
    return ReopeningClient(clients.open, clients.closed.append)


def in_forked_child(work: Callable[[], object]) -> object:
    """Return what ``work`` returns in a forked child. It must be JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


class TestReopeningClient:
    def test_the_client_is_opened_when_it_is_first_used(self, holder, clients):
        assert (holder.opened, clients.opened) == (None, 0)
        assert (holder.get(), holder.get(), holder.opened) == (1, 1, 1)

    def test_threads_share_one_client(self, holder):
        with ThreadPoolExecutor(16) as threads:
            assert {*threads.map(lambda _: holder.get(), range(100))} == {1}

    def test_a_refused_client_is_replaced_once_for_all_threads(self, holder, clients):
        refused = holder.get()
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda _: holder.replace(refused), range(100)))
        assert (holder.get(), clients.opened) == (2, 2)

    def test_a_client_that_cannot_be_opened_again_stays(self, holder, clients, monkeypatch):
        def fail() -> int:
            raise OSError("no credentials")

        refused = holder.get()
        monkeypatch.setattr(holder, "_open", fail)
        with pytest.raises(OSError, match="no credentials"):
            holder.replace(refused)
        assert holder.get() == refused

    def test_close_closes_the_open_client(self, holder, clients):
        holder.get()
        holder.close()
        holder.close()
        assert clients.closed == [1]

    @needs_fork
    def test_a_forked_child_opens_its_own_and_leaves_the_parents_open(self, holder, clients):
        holder.get()

        def in_child() -> object:
            before = holder.opened
            holder.close()
            return [before, clients.closed, holder.get()]

        assert in_forked_child(in_child) == [None, [], 2]
        assert holder.get() == 1

    @needs_fork
    def test_a_lock_that_another_thread_of_the_parent_holds_does_not_block_a_child(self, holder):
        with holder._lock:
            assert in_forked_child(holder.get) == 1


class RefusingFileSystem(MemoryFileSystem):
    """Denies access to instances that were opened before the credentials were renewed."""

    protocol = "refusing"
    cachable = False
    store: dict = {}  # noqa: RUF012 - as in the base class
    renewals = 0
    status = 0

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.opened_after = type(self).renewals

    def cat_file(self, path, start=None, end=None, **kwargs):
        if self.opened_after < type(self).renewals:
            raise self.refusal()
        return super().cat_file(path, start, end, **kwargs)

    def refusal(self) -> Exception:
        error = PermissionError("the token has expired") if not self.status else Exception("Unauthorized")
        error.status = self.status
        return error


@pytest.fixture
def refusing(monkeypatch):
    fsspec.register_implementation("refusing", RefusingFileSystem, clobber=True)
    monkeypatch.setattr(RefusingFileSystem, "renewals", 0)
    RefusingFileSystem.store.clear()
    return monkeypatch


class TestGenericBackend:
    @pytest.mark.parametrize("status", [0, 401])
    def test_it_opens_the_filesystem_again_when_access_is_denied(self, refusing, status):
        refusing.setattr(RefusingFileSystem, "status", status)
        backend = open_generic("refusing://run", {})
        backend.put("key", b"data")
        refusing.setattr(RefusingFileSystem, "renewals", 1)
        assert backend.get("key") == b"data"

    def test_access_that_stays_denied_is_an_error_after_one_repetition(self, refusing):
        opened = []

        class Denying(RefusingFileSystem):
            def __init__(self, **options: object) -> None:
                super().__init__(**options)
                opened.append(self)

            def cat_file(self, path, start=None, end=None, **kwargs):
                raise PermissionError

        with pytest.raises(BackendPermissionError, match="permission denied"):
            GenericBackend("denying://run", Denying(), "/run").get("key")
        assert len(opened) == 2

    def test_a_filesystem_inside_another_one_is_opened_again_too(self, refusing):
        backend = GenericBackend("dir://run", DirFileSystem("/run", RefusingFileSystem()), "")
        backend.put("key", b"data")
        refusing.setattr(RefusingFileSystem, "renewals", 1)
        assert backend.get("key") == b"data"

    @needs_fork
    def test_a_forked_child_opens_the_filesystem_again(self, refusing):
        backend = open_generic("refusing://run", {})
        parents = id(backend._fs)
        assert in_forked_child(lambda: id(backend._fs) != parents) is True


class TestConfigurationOfFsspec:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fsspec.config, "conf_dir", str(tmp_path))
        monkeypatch.setattr(fsspec.config, "conf", {})
        monkeypatch.setattr(configuration, "_known", {})
        return tmp_path

    def test_a_changed_file_is_taken_over(self, folder, holder):
        (folder / "keys.json").write_text('{"s3": {"key": "old"}}')
        holder.replace(holder.get())
        (folder / "keys.json").write_text('{"s3": {"key": "new"}}')
        holder.replace(holder.get())
        assert fsspec.config.conf == {"s3": {"key": "new"}}

    def test_what_the_program_has_set_stays_while_the_file_is_unchanged(self, folder, holder):
        (folder / "keys.json").write_text('{"s3": {"key": "old"}}')
        configuration.update_configuration()
        fsspec.config.conf["s3"]["key"] = "of the program"
        holder.replace(holder.get())
        assert fsspec.config.conf == {"s3": {"key": "of the program"}}

    def test_a_file_that_is_being_written_changes_nothing(self, folder):
        (folder / "keys.json").write_text('{"s3": {"key": "old"}}')
        configuration.update_configuration()
        (folder / "keys.json").write_text('{"s3": {"key"')
        configuration.update_configuration()
        assert fsspec.config.conf == {"s3": {"key": "old"}}
