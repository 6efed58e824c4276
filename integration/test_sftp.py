"""What only OpenSSH shows of the SFTP backend: its restrictions, its refusals, and how it freezes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import paramiko
import pytest

from input_checkpoint import (
    Backend,
    BackendError,
    BackendPermissionError,
    BackendUnavailable,
    ObjectNotFound,
    open_backend,
)
from input_checkpoint.probing import probe
from integration.conftest import chosen_servers
from integration.servers.server import Place
from integration.servers.sshd import Sshd
from tests.support.operations import outcome

pytestmark = [
    pytest.mark.xdist_group("sshd"),
    pytest.mark.skipif("sshd" not in chosen_servers(), reason="INTEGRATION leaves sshd out"),
]
HALF_A_MINUTE = 30
UPLOADS = 8
WRITER = (
    "import sys, json; from input_checkpoint import open_backend; "
    "open_backend(sys.argv[1], json.loads(sys.argv[2])).create('large', bytes(1 << 30))"
)

Opener = Callable[..., Backend]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """One that allows the user's key anything."""
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    with server.running():
        yield server


@pytest.fixture
def place(sshd: Sshd) -> Place:
    sshd.restrict("")
    return sshd.place(uuid.uuid4().hex)


@pytest.fixture
def opened(place: Place) -> Iterator[Opener]:
    """Open a backend on ``place``, with storage_options different from the usual ones."""
    with contextlib.ExitStack() as until_the_end:

        def open_it(**options: Any) -> Backend:
            backend = open_backend(place.uri, {**place.storage_options, **options})
            until_the_end.callback(backend.close)
            return backend

        yield open_it


class TestRestrictedKey:
    def test_one_that_may_only_use_sftp_is_enough(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="internal-sftp"')
        probe(opened())

    def test_one_that_may_only_read_reads_and_is_told_that_it_may_not_write(
        self, sshd: Sshd, opened: Opener
    ) -> None:
        opened().put("key", b"data")
        sshd.restrict('restrict,command="internal-sftp -R"')
        backend = opened()
        assert backend.get("key") == b"data"
        assert [info.key for info in backend.list()] == ["key"]
        for write in (
            lambda: backend.put("key", b"other"),
            lambda: backend.create("new", b"data"),
            lambda: backend.delete(["key"]),
        ):
            with pytest.raises(BackendPermissionError, match="read-only"):
                write()

    def test_one_without_hard_links_is_told_so(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="internal-sftp -P hardlink"')
        backend = opened()
        backend.put("key", b"data")
        with pytest.raises(BackendError, match="hard links") as raised:
            backend.create("new", b"data")
        assert not isinstance(raised.value, BackendUnavailable)

    def test_one_that_may_not_use_sftp_is_told_so(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="/bin/false"')
        with pytest.raises(BackendError, match="no SFTP for us") as raised:
            opened().get("key")
        assert not isinstance(raised.value, BackendUnavailable)

    def test_one_whose_login_prints_something_is_told_so(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="echo Welcome to this server"')
        with pytest.raises(BackendError, match="login script") as raised:
            opened().get("key")
        assert not isinstance(raised.value, BackendUnavailable)


class TestLogin:
    @pytest.mark.parametrize("user", ["root", "nobody-of-that-name"])
    def test_with_a_wrong_key_is_a_matter_of_permission(
        self, opened: Opener, tmp_path: Path, user: str
    ) -> None:
        paramiko.ECDSAKey.generate().write_private_key_file(str(tmp_path / "key"))
        with pytest.raises(BackendPermissionError, match="does not accept the login"):
            opened(username=user, key_filename=str(tmp_path / "key")).get("key")

    def test_with_more_wrong_keys_than_are_listened_to_is_a_matter_of_permission(
        self, opened: Opener, tmp_path: Path
    ) -> None:
        names = [str(tmp_path / str(number)) for number in range(8)]
        for name in names:
            paramiko.ECDSAKey.generate().write_private_key_file(name)
        with pytest.raises(BackendPermissionError, match="does not accept the login"):
            opened(key_filename=names).get("key")

    def test_with_a_password_where_only_keys_are_taken_is_a_matter_of_permission(
        self, opened: Opener
    ) -> None:
        with pytest.raises(BackendPermissionError, match="does not accept the login") as raised:
            opened(key_filename=None, password="hunter2").get("key")
        assert "hunter2" not in str(raised.value)

    def test_at_a_server_whose_key_is_not_known_is_refused(self, opened: Opener) -> None:
        with pytest.raises(BackendPermissionError, match=r"ssh-ed25519 SHA256:.*is not known"):
            opened(known_hosts=os.devnull).get("key")


@pytest.mark.parametrize("most", [1, 2])
def test_a_server_that_allows_fewer_sessions_is_made_do_with(tmp_path: Path, most: int) -> None:
    sshd = Sshd(tmp_path, f"MaxSessions {most}")
    with sshd.running():
        place = sshd.place("run")
        backend = open_backend(place.uri, place.storage_options)
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda number: backend.put(str(number), b"data"), range(100)))
        assert len(list(backend.list())) == 100
        backend.close()


class TestServerThatFreezes:
    @pytest.fixture
    def freeze(self, sshd: Sshd) -> Iterator[Callable[[], None]]:
        frozen = []

        def freeze() -> None:
            frozen.extend(sshd.sessions())
            for process in frozen:
                process.send_signal(signal.SIGSTOP)

        yield freeze
        for process in frozen:
            with contextlib.suppress(Exception):
                process.kill()

    def test_is_unavailable_within_half_a_minute(self, opened: Opener, freeze: Callable[[], None]) -> None:
        backend = opened()
        backend.put("key", b"data")
        freeze()
        error = outcome(lambda: backend.get("key"), within=HALF_A_MINUTE)
        assert isinstance(error, BackendUnavailable)
        assert backend.get("key") == b"data"  # over a new connection

    def test_with_more_under_way_than_the_network_holds_is_unavailable(
        self, opened: Opener, freeze: Callable[[], None]
    ) -> None:
        backend = opened(timeout=3)
        data = bytes(64 << 20)
        with ThreadPoolExecutor(UPLOADS) as threads:
            uploads = [
                threads.submit(outcome, lambda key=str(number): backend.put(key, data), HALF_A_MINUTE)
                for number in range(UPLOADS)
            ]
            time.sleep(0.7)
            freeze()
            assert [type(upload.result()) for upload in uploads] == [BackendUnavailable] * UPLOADS


def test_a_writer_that_is_killed_in_an_upload_leaves_nothing_under_the_name(
    sshd: Sshd, place: Place, opened: Opener
) -> None:
    backend = opened()
    backend.put("before", b"data")
    child = subprocess.Popen([sys.executable, "-c", WRITER, place.uri, json.dumps(place.storage_options)])
    folder = sshd.data / place.uri.rpartition("/")[2]
    until = time.monotonic() + 60
    while sum(path.stat().st_size for path in folder.iterdir()) < 20 << 20:
        assert time.monotonic() < until
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert [info.key for info in backend.list()] == ["before"]
    with pytest.raises(ObjectNotFound):
        backend.get("large")
    backend.create("large", b"another writer's")
    assert backend.get("large") == b"another writer's"
