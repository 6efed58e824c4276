"""The SFTP backend on OpenSSH: restricted keys, refused logins, jump hosts, and frozen servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import asyncssh
import pytest

from input_checkpoint import (
    Backend,
    BackendError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectNotFoundError,
    open_backend,
)
from input_checkpoint.backends.probing import probe
from integration.conftest import chosen_servers
from integration.servers.server import Place
from integration.servers.sshd import Sshd
from tests.support.operations import outcome

pytestmark = [
    pytest.mark.xdist_group("sshd"),
    pytest.mark.skipif("sshd" not in chosen_servers(), reason="INTEGRATION does not include sshd"),
]
SHORT = 5
"""The ``timeout`` of backends whose server freezes."""
HALF_A_MINUTE = 30
UPLOADS = 8
WRITER = (
    "import sys, json; from input_checkpoint import open_backend; "
    "open_backend(sys.argv[1], json.loads(sys.argv[2])).create('large', bytes(1 << 30))"
)

Opener = Callable[..., Backend]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that does not restrict the user's key."""
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    with server.running():
        yield server


@pytest.fixture
def place(sshd: Sshd) -> Place:
    sshd.restrict("")
    return sshd.place(uuid.uuid4().hex)


@pytest.fixture
def opened(place: Place) -> Iterator[Opener]:
    """A function that opens a backend on ``place``, with some storage options changed."""
    with contextlib.ExitStack() as stack:

        def open_it(**options: Any) -> Backend:
            backend = open_backend(place.uri, {**place.storage_options, **options})
            stack.callback(backend.close)
            return backend

        yield open_it


def new_key(path: Path) -> None:
    asyncssh.generate_private_key("ecdsa-sha2-nistp256").write_private_key(path)


class TestRestrictedKey:
    def test_a_key_that_allows_only_sftp_is_sufficient(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="internal-sftp"')
        probe(opened())

    def test_a_read_only_key_reads_and_gets_a_clear_error_for_writes(
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

    def test_a_key_without_hard_links_gets_a_clear_error(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="internal-sftp -P hardlink"')
        backend = opened()
        backend.put("key", b"data")
        with pytest.raises(BackendError, match="hard links") as raised:
            backend.create("new", b"data")
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_a_key_that_forbids_sftp_gets_a_clear_error(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="/bin/false"')
        with pytest.raises(BackendError, match="does not offer SFTP") as raised:
            opened().get("key")
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_a_login_that_prints_something_gets_a_clear_error(self, sshd: Sshd, opened: Opener) -> None:
        sshd.restrict('restrict,command="echo Welcome to this server"')
        with pytest.raises(BackendError, match="login script") as raised:
            opened().get("key")
        assert not isinstance(raised.value, BackendUnavailableError)


class TestLogin:
    @pytest.mark.parametrize("user", ["root", "nobody-of-that-name"])
    def test_a_wrong_key_is_a_permission_error(self, opened: Opener, tmp_path: Path, user: str) -> None:
        new_key(tmp_path / "key")
        with pytest.raises(BackendPermissionError, match="refused the login"):
            opened(username=user, key_filename=str(tmp_path / "key")).get("key")

    def test_more_wrong_keys_than_the_server_accepts_are_a_permission_error(
        self, opened: Opener, tmp_path: Path
    ) -> None:
        names = [str(tmp_path / str(number)) for number in range(8)]
        for name in names:
            new_key(Path(name))
        with pytest.raises(BackendPermissionError, match="refused the login"):
            opened(key_filename=names).get("key")

    def test_a_password_where_only_keys_are_accepted_is_a_permission_error(self, opened: Opener) -> None:
        with pytest.raises(BackendPermissionError, match="refused the login") as raised:
            opened(key_filename=None, password="hunter2").get("key")
        assert "hunter2" not in str(raised.value)

    def test_no_algorithm_in_common_is_not_retried(self, opened: Opener) -> None:
        with pytest.raises(BackendError, match="no algorithm in common") as raised:
            opened(kex_algs="diffie-hellman-group17-sha512").get("key")
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_an_unknown_host_key_is_refused(self, opened: Opener) -> None:
        with pytest.raises(BackendPermissionError, match=r"ssh-ed25519 SHA256:.*is unknown"):
            opened(known_hosts=os.devnull).get("key")


class TestSshConfiguration:
    """Settings as in ``~/.ssh/config``."""

    @pytest.fixture
    def jump_host(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
        server = Sshd(tmp_path_factory.mktemp("jump"))
        with server.running():
            yield server

    def host(self, name: str, sshd: Sshd, more: str = "") -> str:
        place = sshd.place("")
        return f"""
            Host {name}
                HostName 127.0.0.1
                Port {sshd.port}
                User {place.storage_options["username"]}
                IdentityFile {sshd.folder}/user
                UserKnownHostsFile {sshd.folder}/known_hosts
                {more}
        """

    def open(self, tmp_path: Path, sshd: Sshd, *hosts: str) -> Backend:
        (tmp_path / "config").write_text("".join(hosts))
        options = {"config": str(tmp_path / "config"), "allow_agent": False, "timeout": SHORT}
        return open_backend(f"sftp://Store{sshd.data}/{uuid.uuid4().hex}", options)

    def test_terminal_settings_are_ignored(self, sshd: Sshd, tmp_path: Path) -> None:
        more = "RequestTTY force\nRemoteCommand tmux\nForwardAgent yes"
        backend = self.open(tmp_path, sshd, self.host("Store", sshd, more=more))
        probe(backend)
        backend.close()

    def test_connections_go_through_a_jump_host(self, sshd: Sshd, jump_host: Sshd, tmp_path: Path) -> None:
        hosts = self.host("Store", sshd, more="ProxyJump jump"), self.host("jump", jump_host)
        backend = self.open(tmp_path, sshd, *hosts)
        probe(backend)
        assert jump_host.sessions()
        jump_host.kill()
        error = outcome(lambda: backend.get("key"), within=HALF_A_MINUTE)
        assert isinstance(error, BackendUnavailableError)
        jump_host.start()
        probe(backend)
        backend.close()

    def test_a_jump_host_that_freezes_is_unavailable(
        self, sshd: Sshd, jump_host: Sshd, tmp_path: Path
    ) -> None:
        hosts = self.host("Store", sshd, more="ProxyJump jump"), self.host("jump", jump_host)
        backend = self.open(tmp_path, sshd, *hosts)
        backend.put("key", b"data")
        for process in jump_host.sessions():
            process.send_signal(signal.SIGSTOP)
        error = outcome(lambda: backend.get("key"), within=HALF_A_MINUTE)
        assert isinstance(error, BackendUnavailableError)
        assert backend.get("key") == b"data"
        backend.close()

    def test_a_jump_host_that_allows_no_forwarding_gets_a_clear_error(
        self, sshd: Sshd, jump_host: Sshd, tmp_path: Path
    ) -> None:
        jump_host.restrict("restrict")
        hosts = self.host("Store", sshd, more="ProxyJump jump"), self.host("jump", jump_host)
        backend = self.open(tmp_path, sshd, *hosts)
        with pytest.raises(BackendError, match="jump host refuses to forward") as raised:
            backend.get("key")
        assert not isinstance(raised.value, BackendUnavailableError)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_on_sessions_is_respected(tmp_path: Path, limit: int) -> None:
    sshd = Sshd(tmp_path, f"MaxSessions {limit}")
    with sshd.running():
        place = sshd.place("run")
        backend = open_backend(place.uri, place.storage_options)
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda number: backend.put(str(number), b"data"), range(100)))
        assert len(list(backend.list())) == 100
        backend.close()


class TestFrozenServer:
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

    def test_is_unavailable_within_the_time_limits(self, opened: Opener, freeze: Callable[[], None]) -> None:
        backend = opened(timeout=SHORT)
        backend.put("key", b"data")
        freeze()
        error = outcome(lambda: backend.get("key"), within=HALF_A_MINUTE)
        assert isinstance(error, BackendUnavailableError)
        assert backend.get("key") == b"data"  # over a new connection

    def test_is_unavailable_with_more_data_in_flight_than_the_network_buffers(
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
            assert [type(upload.result()) for upload in uploads] == [BackendUnavailableError] * UPLOADS


class TestSlowUplink:
    """Slow toward the server, fast from it."""

    BYTES_PER_SECOND = 2 << 20

    @pytest.fixture
    def port(self, sshd: Sshd) -> Iterator[int]:
        """A local port that forwards to the server over a slow uplink."""
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            threading.Thread(target=self.relay, args=(listener, sshd.port), daemon=True).start()
            yield listener.getsockname()[1]

    def relay(self, listener: socket.socket, port: int) -> None:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for source, target, pause in ((client, server, 1 / self.BYTES_PER_SECOND), (server, client, 0)):
            threading.Thread(target=self.pump, args=(source, target, pause), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket, pause: float) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(1 << 14):
                time.sleep(pause * len(data))
                target.sendall(data)

    def test_is_not_mistaken_for_a_dead_connection(
        self, sshd: Sshd, port: int, place: Place, tmp_path: Path
    ) -> None:
        known = (sshd.folder / "known_hosts").read_text()
        (tmp_path / "known").write_text(known.replace(f"]:{sshd.port} ", f"]:{port} "))
        options = {**place.storage_options, "known_hosts": str(tmp_path / "known"), "timeout": 2}
        backend = open_backend(place.uri.replace(f":{sshd.port}/", f":{port}/"), options)
        backend.put("before", b"")
        started = time.monotonic()
        with ThreadPoolExecutor(UPLOADS) as threads:
            list(threads.map(lambda number: backend.put(str(number), bytes(2 << 20)), range(UPLOADS)))
        assert time.monotonic() - started > 3 * options["timeout"]
        backend.close()


def test_a_writer_that_is_killed_during_an_upload_creates_no_object(
    sshd: Sshd, place: Place, opened: Opener
) -> None:
    backend = opened()
    backend.put("before", b"data")
    child = subprocess.Popen([sys.executable, "-c", WRITER, place.uri, json.dumps(place.storage_options)])
    folder = sshd.data / place.uri.rpartition("/")[2]
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in folder.iterdir()) < 20 << 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert [info.key for info in backend.list()] == ["before"]
    with pytest.raises(ObjectNotFoundError):
        backend.get("large")
    backend.create("large", b"another writer's")
    assert backend.get("large") == b"another writer's"
