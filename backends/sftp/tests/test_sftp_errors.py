"""Failures of an SFTP server raise the library's errors, in time and without secrets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import asyncssh
import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from sftp_in_process import (
    FAILURE,
    FSYNC,
    HARD_LINK,
    NOTHING,
    PASSWORD,
    PERMISSION_DENIED,
    POSIX_RENAME,
    QUITTER,
    TALKER,
    USER,
    refuse,
)

from input_checkpoint import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
    open_backend,
)
from input_checkpoint.backends.probing import probe
from input_checkpoint_sftp.login import Login
from tests.support.answering_server import mute_server, unused_port
from tests.support.forking import WAYS, needs_fork, run_forking
from tests.support.operations import OPERATIONS, every_operation, outcome

SECRET = "correct horse"
HALF_A_MINUTE = 30
every_write = pytest.mark.parametrize(
    "operation", [OPERATIONS["put"], OPERATIONS["create"]], ids=["put", "create"]
)


@contextlib.contextmanager
def refused(cls: type[BackendError], match: str) -> Iterator[None]:
    """Expect an error of exactly this class, without a secret in its traceback."""
    with pytest.raises(cls, match=match) as raised:
        yield
    assert type(raised.value) is cls
    shown = "".join(traceback.format_exception(raised.type, raised.value, raised.tb))
    assert SECRET not in shown
    assert PASSWORD not in shown


def files_of(server, folder_name) -> list[str]:
    """All files of a store on the server, including those that are not objects."""
    return sorted(name for _, _, names in os.walk(server.data / folder_name) for name in names)


def with_password(**options):
    return {"key_filename": None, "username": USER, **options}


class TestUnreachableServer:
    @every_operation
    def test_a_server_that_is_down_is_reported_within_half_a_minute(self, opened, folder_name, operation):
        error = outcome(lambda: operation(opened(port=unused_port())), within=HALF_A_MINUTE)
        assert type(error) is BackendUnavailableError
        assert folder_name in str(error)
        assert "trying again may help" in str(error)

    @every_operation
    def test_a_server_that_never_answers_is_unavailable(self, opened, operation):
        with mute_server() as port:
            backend = opened(port=port, timeout=0.3)
            error = outcome(lambda: operation(backend), within=HALF_A_MINUTE)
        assert type(error) is BackendUnavailableError

    def test_the_default_timeout_is_below_half_a_minute(self):
        assert Login("host", {}).limits.timeout <= HALF_A_MINUTE

    def test_the_error_names_a_host_without_an_address(self):
        backend = open_backend("sftp://no..such..host/data/run")
        with refused(BackendUnavailableError, r"no\.\.such\.\.host .*cannot be found"):
            backend.get("key")


class TestHangingServer:
    @pytest.fixture
    def hang(self) -> Iterator[threading.Event]:
        ended = threading.Event()
        yield ended
        ended.set()

    @every_operation
    def test_a_hang_during_an_operation_is_unavailable(self, server, opened, hang, operation):
        server.script = lambda request, path: hang.wait(HALF_A_MINUTE) and None
        error = outcome(lambda: operation(opened(timeout=0.3)), within=HALF_A_MINUTE)
        assert type(error) is BackendUnavailableError

    @pytest.mark.parametrize("stage", ["log_in", "open_session", "start_sftp"])
    def test_a_hang_before_any_operation_is_unavailable(self, server, opened, hang, stage):
        setattr(server, stage, lambda: hang.wait(HALF_A_MINUTE))
        error = outcome(lambda: opened(timeout=0.5).get("key"), within=HALF_A_MINUTE)
        assert type(error) is BackendUnavailableError

    def test_all_waiting_threads_get_the_error_at_the_same_time(self, server, opened, hang):
        server.script = lambda request, path: hang.wait(HALF_A_MINUTE) and None
        backend = opened(timeout=1)
        with ThreadPoolExecutor(120) as threads:
            started = time.monotonic()
            errors = [
                type(error)
                for error in threads.map(
                    lambda number: outcome(lambda: backend.get(str(number)), HALF_A_MINUTE), range(120)
                )
            ]
        assert errors == [BackendUnavailableError] * 120
        assert (
            time.monotonic() - started < 15
        )  # 40 turns of 8 at a time would be 5 s and more of timeouts each

    def test_a_server_that_answers_again_is_used_again(self, server, opened, hang):
        backend = opened(timeout=2)
        server.script = lambda request, path: hang.wait(HALF_A_MINUTE) and None
        with refused(BackendUnavailableError, "no answer within 2 s"):
            backend.put("key", b"data")
        server.reset()
        backend.put("key", b"data")
        assert backend.get("key") == b"data"

    @pytest.mark.parametrize(
        "step", [(asyncssh.SSHClientConnection, "start_sftp_client"), (asyncssh.SFTPClient, "open")]
    )
    def test_asyncssh_waiting_forever_is_unavailable(self, opened, monkeypatch, step):
        async def wait_forever(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(*step, wait_forever)
        error = outcome(lambda: opened(timeout=0.3).get("key"), within=HALF_A_MINUTE)
        assert type(error) is BackendUnavailableError

    @pytest.mark.parametrize("slow", ["write", "read", "readdir"])
    def test_a_slow_server_is_not_unavailable(self, server, opened, slow):
        backend = opened(timeout=1.5, min_bytes_per_second=20_000)
        for number in range(100):
            backend.put(str(number), b"")
        server.script = lambda request, path: time.sleep(0.25) if request == slow else None
        started = time.monotonic()
        backend.put("key", bytes(10 * 32_000))
        assert backend.get("key") == bytes(10 * 32_000)
        assert len(list(backend.list())) == 101
        assert time.monotonic() - started > 1.5


class TestDyingServer:
    @pytest.mark.parametrize("name", ["put", "create"])
    def test_a_server_that_dies_during_an_upload_has_no_object(self, server, folder_name, opened, name):
        backend = opened()
        backend.put("before", b"data")
        writes = iter(range(20))
        server.script = lambda request, path: (
            server.hang_up() if request == "write" and next(writes, None) is None else None
        )
        write = getattr(backend, name)
        with refused(BackendUnavailableError, f"{folder_name}/key.*trying again may help"):
            write("key", bytes(4 << 20))
        server.reset()
        assert [info.key for info in backend.list()] == ["before"]
        write("key", b"again")
        assert backend.get("key") == b"again"

    def test_a_server_that_dies_during_a_login_is_unavailable(self, server, opened):
        server.log_in = server.hang_up
        with refused(BackendUnavailableError, "may help"):
            opened().get("key")

    def test_a_restarted_server_is_connected_to_again(self, server, opened):
        backend = opened()
        backend.create("kept", b"data")
        server.kill()
        with refused(BackendUnavailableError, "may help"):
            list(backend.list())
        with refused(BackendUnavailableError, "Connection refused"):
            list(backend.list())
        server.start()
        assert [info.key for info in backend.list()] == ["kept"]

    def test_a_connection_lost_between_operations_is_replaced_without_an_error(self, server, opened):
        backend = opened()
        backend.put("key", b"data")
        server.hang_up()
        until = time.monotonic() + HALF_A_MINUTE
        while backend._connection._ssh.is_alive:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert backend.get("key") == b"data"
        assert server.logins == 2


@needs_fork
def test_a_forked_process_makes_its_own_connection(server, folder_name):
    assert run_forking("parents_backend", server.uri(folder_name), server.options()) == ""
    assert server.logins == 2


@needs_fork
@pytest.mark.parametrize("how", WAYS)
def test_parent_and_forked_child_work(server, folder_name, how):
    assert run_forking(how, server.uri(folder_name), server.options()) == ""


def test_a_renewed_key_is_read_for_the_next_connection(server, opened, tmp_path, monkeypatch):
    file = tmp_path / "key"
    server.user_key.write_private_key_file(str(file))
    backend = opened(key_filename=str(file))
    backend.put("key", b"data")
    monkeypatch.setattr(server, "user_key", paramiko.ECDSAKey.generate())
    server.user_key.write_private_key_file(str(file))
    server.hang_up()
    until = time.monotonic() + HALF_A_MINUTE
    while backend._connection._ssh.is_alive:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert backend.get("key") == b"data"


class TestThreads:
    def use(self, backend) -> None:
        with ThreadPoolExecutor(30) as threads:
            list(threads.map(lambda number: backend.put(str(number), b"data"), range(60)))
        assert len(list(backend.list())) == 60

    def test_threads_share_one_connection_and_no_more_sessions_than_openssh_allows(self, server, backend):
        self.use(backend)
        assert server.logins == 1
        assert 1 < server.max_sessions_seen <= 10

    @pytest.mark.parametrize("most", [1, 3])
    def test_threads_use_fewer_sessions_if_the_server_allows_fewer(self, server, backend, most):
        server.max_sessions = most
        self.use(backend)
        assert server.max_sessions_seen == most
        assert server.sessions_refused == 1

    def test_a_server_that_opens_no_session_is_unavailable(self, server, backend):
        server.max_sessions = 0
        with refused(BackendUnavailableError, "opened no session"):
            backend.get("key")

    def test_an_interrupted_operation_does_not_affect_the_next(self, backend, monkeypatch):
        backend.put("key", b"data")

        def interrupted(loop: asyncio.AbstractEventLoop, work: Callable, *args: object) -> None:
            asyncio.run_coroutine_threadsafe(work(*args), loop)
            raise KeyboardInterrupt

        with monkeypatch.context() as until_then:
            until_then.setattr("input_checkpoint_sftp.connection.sync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(backend.list())
        assert backend.get("key") == b"data"

    def test_a_refused_request_does_not_end_the_session(self, server, backend):
        server.script = refuse(["mkdir", "rmdir"], FAILURE)
        for _ in range(5):
            with contextlib.suppress(BackendError):
                backend.put("key", b"data")
            with contextlib.suppress(BackendError):
                backend.get("key")
        assert server.max_sessions_seen == 1


class TestLogin:
    @pytest.mark.parametrize(
        "options",
        [
            with_password(password=SECRET),
            with_password(password=PASSWORD, username="nobody"),
            with_password(),
        ],
        ids=["wrong password", "unknown user", "no credentials"],
    )
    def test_wrong_credentials_are_a_permission_error(self, server, opened, options):
        with refused(BackendPermissionError, "refused the login.*username and key_filename or"):
            opened(**options).get("key")

    @every_operation
    def test_wrong_credentials_fail_every_operation(self, opened, operation):
        with refused(BackendPermissionError, "refused the login"):
            operation(opened(**with_password(password=SECRET)))

    def test_the_right_password_works(self, opened):
        opened(**with_password(password=PASSWORD)).put("key", b"data")

    @pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
    def test_a_wrong_key_is_a_permission_error(self, opened, tmp_path, kind):
        key = paramiko.ECDSAKey.generate() if kind == "ecdsa" else paramiko.RSAKey.generate(2048)
        key.write_private_key_file(str(tmp_path / "key"))
        with refused(BackendPermissionError, "refused the login"):
            opened(key_filename=str(tmp_path / "key")).get("key")

    def test_too_many_wrong_keys_are_a_permission_error(self, opened, tmp_path):
        names = [str(tmp_path / str(number)) for number in range(12)]
        for name in names:
            paramiko.ECDSAKey.generate().write_private_key_file(name)
        with refused(BackendPermissionError, "refused the login"):
            opened(key_filename=names).get("key")

    def test_the_error_for_an_encrypted_key_asks_for_the_passphrase(self, opened, tmp_path):
        key = ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.BestAvailableEncryption(SECRET.encode()),
        )
        (tmp_path / "key").write_bytes(key)
        with refused(BackendPermissionError, "the private key is encrypted. Set passphrase"):
            opened(key_filename=str(tmp_path / "key")).get("key")

    def test_an_encrypted_key_works_with_its_passphrase(self, server, opened, tmp_path):
        server.user_key.write_private_key_file(str(tmp_path / "key"), password=SECRET)
        opened(key_filename=str(tmp_path / "key"), passphrase=SECRET).put("key", b"data")

    def test_the_error_for_a_wrong_passphrase_does_not_contain_it(self, server, opened, tmp_path):
        server.user_key.write_private_key_file(str(tmp_path / "key"), password=PASSWORD)
        with refused(BackendPermissionError, "the private key cannot be read.*Check passphrase"):
            opened(key_filename=str(tmp_path / "key"), passphrase=SECRET).get("key")

    def test_the_error_for_a_missing_key_names_the_file(self, opened, tmp_path):
        with refused(BackendPermissionError, f"private key {tmp_path}/none cannot be read"):
            opened(key_filename=str(tmp_path / "none")).get("key")

    def test_a_file_that_is_not_a_key_is_refused(self, opened, tmp_path):
        (tmp_path / "key").write_text(SECRET)
        with refused(BackendPermissionError, "key cannot be read"):
            opened(key_filename=str(tmp_path / "key")).get("key")

    @pytest.mark.parametrize("option", ["password", "passphrase", "username"])
    def test_the_error_for_an_option_of_the_wrong_type_does_not_contain_it(self, opened, option):
        error = outcome(lambda: opened(**with_password(**{option: 1234567})).get("key"), HALF_A_MINUTE)
        assert isinstance(error, BackendError)
        assert not isinstance(error, BackendUnavailableError)
        assert "1234567" not in "".join(traceback.format_exception(type(error), error, None))

    def test_credentials_are_never_logged_or_shown(self, opened, caplog):
        with caplog.at_level(logging.DEBUG):
            backend = opened(**with_password(password=PASSWORD))
            backend.put("key", b"data")
            with pytest.raises(BackendPermissionError):
                opened(**with_password(password=SECRET)).get("key")
        shown = f"{caplog.text}{backend!r}{backend.uri}{backend._connection._login()!r}"
        assert PASSWORD not in shown
        assert SECRET not in shown


class TestHostKey:
    def test_an_unknown_key_is_shown_and_refused(self, server, opened, tmp_path):
        (tmp_path / "known").write_text("")
        with refused(BackendPermissionError, "ecdsa-sha2-nistp256 SHA256:.*is unknown.*ssh-keyscan"):
            opened(known_hosts=str(tmp_path / "known")).get("key")
        assert server.logins == 0

    def test_a_changed_key_is_refused(self, server, opened, tmp_path):
        known = f"[127.0.0.1]:{server.port} {server.user_key.get_name()} {server.user_key.get_base64()}\n"
        (tmp_path / "known").write_text(known)
        with refused(BackendPermissionError, "host key differs from the one in known_hosts.*ssh-keygen -R"):
            opened(known_hosts=str(tmp_path / "known")).get("key")
        assert server.logins == 0

    @pytest.mark.parametrize("policy", ["auto_add", "warning"])
    def test_an_unknown_key_is_accepted_if_the_policy_says_so(self, opened, tmp_path, policy, caplog):
        (tmp_path / "known").write_text("")
        backend = opened(known_hosts=str(tmp_path / "known"), host_key_policy=policy)
        backend.put("key", b"data")
        assert ("is unknown. Connecting anyway" in caplog.text) == (policy == "warning")

    def test_a_changed_key_is_refused_even_if_unknown_keys_are_accepted(self, server, opened, tmp_path):
        known = f"[127.0.0.1]:{server.port} {server.user_key.get_name()} {server.user_key.get_base64()}\n"
        (tmp_path / "known").write_text(known)
        with refused(BackendPermissionError, "host key differs from the one in known_hosts"):
            opened(known_hosts=str(tmp_path / "known"), host_key_policy="auto_add").get("key")

    def test_the_error_names_a_missing_known_hosts_file(self, opened, tmp_path):
        with refused(BackendPermissionError, f"the known_hosts file {tmp_path}/none cannot be read"):
            opened(known_hosts=str(tmp_path / "none")).get("key")

    @pytest.mark.parametrize("line", [b"host\n", b"host \xff\n"])
    def test_the_error_names_an_invalid_known_hosts_file(self, opened, tmp_path, line):
        (tmp_path / "known").write_bytes(line)
        with refused(BackendPermissionError, f"{tmp_path}/known contains an invalid line"):
            opened(known_hosts=str(tmp_path / "known")).get("key")


class TestSshConfig:
    def host(self, server, known_hosts) -> str:
        return (
            f"Host Store\n HostName 127.0.0.1\n Port {server.port}\n User {USER}\n"
            f" IdentityFile {server.folder}/user\n UserKnownHostsFile {known_hosts}\n"
            " StrictHostKeyChecking no\n"
        )

    def opened(self, server, folder_name, known_hosts, tmp_path):
        (tmp_path / "config").write_text(self.host(server, known_hosts))
        options = {"config": str(tmp_path / "config"), "allow_agent": False}
        return open_backend(server.uri(folder_name).replace("127.0.0.1", "Store"), options)

    def test_it_provides_host_port_user_and_key(self, server, folder_name, tmp_path):
        backend = self.opened(server, folder_name, server.folder / "known_hosts", tmp_path)
        backend.put("key", b"data")
        assert (server.data / folder_name / "key").read_bytes() == b"data"
        backend.close()

    @pytest.mark.parametrize("known_hosts", ["none", os.devnull, "/not/there"])
    def test_without_known_hosts_every_key_is_refused(self, server, folder_name, tmp_path, known_hosts):
        backend = self.opened(server, folder_name, known_hosts, tmp_path)
        with refused(BackendPermissionError, "is unknown"):
            backend.get("key")
        assert server.logins == 0

    def test_the_error_names_an_invalid_line(self, server, folder_name, tmp_path):
        backend = self.opened(server, folder_name, "x\nPort ssh", tmp_path)
        with refused(BackendError, "ssh/config: .*config line 7"):
            backend.get("key")


class TestServerWithoutSftp:
    @pytest.mark.parametrize(
        ("subsystem", "match"),
        [(NOTHING, "does not offer SFTP"), (QUITTER, "does not offer SFTP"), (TALKER, "login script")],
    )
    def test_it_is_a_permanent_error(self, server, backend, subsystem, match):
        server.subsystem = subsystem
        with refused(BackendError, match):
            backend.get("key")


class TestServerWithoutExtensions:
    def test_create_fails_without_hard_links_before_it_uploads(self, server, folder_name, backend):
        server.extensions = [POSIX_RENAME, FSYNC]
        server.script = refuse(["write"], PERMISSION_DENIED)
        with refused(BackendError, f"{folder_name}/key.*does not support hard links.*commit_lock"):
            backend.create("key", b"data")
        assert files_of(server, folder_name) == []

    def test_a_read_only_server_without_hard_links_is_a_permission_error(self, server, backend):
        server.extensions = []
        server.script = refuse(["open", "mkdir"], PERMISSION_DENIED)
        with refused(BackendPermissionError, "must not be read-only"):
            backend.create("key", b"data")

    def test_create_works_without_hard_links_with_a_commit_lock(self, server, folder_name, tmp_path):
        server.extensions = []
        options = server.options(commit_lock=f"file://{tmp_path}/locks")
        backend = open_backend(server.uri(folder_name), options)
        backend.create("key", b"first")
        with pytest.raises(ObjectExistsError):
            backend.create("key", b"second")
        assert backend.get("key") == b"first"
        backend.close()

    def test_put_without_posix_rename_writes_new_objects_but_replaces_none(
        self, server, folder_name, backend
    ):
        server.extensions = [HARD_LINK]
        backend.put("key", b"first")
        with refused(BackendError, f"{folder_name}/key.*cannot replace it in one step"):
            backend.put("key", b"second")
        assert backend.get("key") == b"first"
        assert files_of(server, folder_name) == ["key"]

    def test_writes_work_without_fsync(self, server, backend):
        server.extensions = [HARD_LINK, POSIX_RENAME]
        backend.put("put", b"1")
        backend.create("create", b"2")
        assert [info.key for info in backend.list()] == ["create", "put"]


class TestRefusingServer:
    @pytest.mark.parametrize(
        ("operation", "request_"),
        [
            ("get", "open"),
            ("put", "open"),
            ("create", HARD_LINK),
            ("put", POSIX_RENAME),
            ("put", "mkdir"),
            ("list", "opendir"),
            ("list", "readdir"),
            ("delete", "remove"),
        ],
    )
    def test_a_denied_request_is_a_permission_error(self, server, folder_name, backend, operation, request_):
        if request_ != "mkdir":
            backend.put("key", b"old")
        server.script = lambda request, path: PERMISSION_DENIED if request == request_ else None
        with refused(BackendPermissionError, f"cannot .*{folder_name}.*permission denied"):
            (lambda: backend.create("new", b"data"))() if operation == "create" else OPERATIONS[operation](
                backend
            )

    @pytest.mark.parametrize("request_", ["write", FSYNC, "close", HARD_LINK])
    def test_a_full_disk_is_a_permanent_error_and_leaves_no_file(
        self, server, folder_name, backend, request_
    ):
        backend.put("before", b"data")
        server.script = refuse([request_], FAILURE)
        with refused(BackendError, f"{folder_name}/key.*disk is full"):
            backend.create("key", bytes(1 << 20))
        server.reset()
        assert files_of(server, folder_name) == ["before"]

    @pytest.mark.parametrize("last", [0, 98, 99])
    def test_every_failed_write_is_noticed(self, server, folder_name, backend, last):
        pieces = 100
        server.script = refuse(["write"], FAILURE, skip=last)
        with refused(BackendError, "disk is full"):
            backend.put("key", bytes(32_000 * pieces))
        assert files_of(server, folder_name) == []

    def test_a_full_disk_ends_an_upload_early(self, server, backend):
        writes = []
        server.script = lambda request, path: writes.append(path) or FAILURE if request == "write" else None
        with refused(BackendError, "disk is full"):
            backend.put("key", bytes(32_000 * 1000))
        assert len(writes) < 500

    def test_a_read_that_fails_halfway_is_an_error(self, server, backend):
        backend.put("key", bytes(1 << 20))
        server.script = refuse(["read"], FAILURE, skip=10)
        with refused(BackendError, "cannot read"):
            backend.get("key")
        server.reset()
        assert backend.get("key") == bytes(1 << 20)

    def test_the_error_carries_uri_and_key(self, server, backend):
        server.script = refuse(["open"], PERMISSION_DENIED)
        with pytest.raises(BackendPermissionError) as raised:
            backend.put("folder/key", b"data")
        assert (raised.value.uri, raised.value.key) == (backend.uri, "folder/key")

    def test_the_error_of_a_deletion_carries_the_key_that_was_not_deleted(self, server, backend):
        backend.put("a", b"data")
        backend.put("b", b"data")
        server.script = lambda request, path: FAILURE if request == "remove" and path.endswith("b") else None
        with pytest.raises(BackendError) as raised:
            backend.delete(["a", "b"])
        assert (raised.value.uri, raised.value.key) == (backend.uri, "b")

    def test_the_error_of_a_listing_carries_the_uri_and_no_key(self, server, backend):
        backend.put("folder/key", b"data")
        server.script = refuse(["opendir"], PERMISSION_DENIED)
        with pytest.raises(BackendPermissionError) as raised:
            list(backend.list("folder/"))
        assert (raised.value.uri, raised.value.key) == (backend.uri, None)

    def test_a_name_that_is_too_long_is_a_permanent_error(self, server, backend):
        with refused(BackendError, "path may be too long"):
            backend.create("k" * 256, b"data")

    def test_a_refused_deletion_names_the_object_and_deletes_the_others(self, server, folder_name, backend):
        for key in ("a", "b", "c"):
            backend.put(key, b"data")
        server.script = lambda request, path: FAILURE if request == "remove" and path.endswith("b") else None
        with refused(BackendError, f"cannot delete .*{folder_name}/b"):
            backend.delete(["a", "b", "c"])
        server.reset()
        assert [info.key for info in backend.list()] == ["b"]


class TestFolder:
    def test_a_missing_folder_is_empty_and_made_by_the_first_write(self, server, folder_name):
        backend = open_backend(server.uri(f"{folder_name}/deep/down"), server.options())
        assert list(backend.list()) == []
        with pytest.raises(ObjectNotFoundError):
            backend.get("key")
        backend.delete(["key"])
        assert not (server.data / folder_name).exists()
        probe(backend)
        assert (server.data / folder_name / "deep/down").is_dir()
        backend.close()

    @every_write
    def test_a_folder_that_cannot_be_made_is_a_permission_error(self, server, backend, operation):
        server.script = refuse(["mkdir"], PERMISSION_DENIED)
        with refused(BackendPermissionError, "permission denied"):
            operation(backend)

    @pytest.mark.parametrize("below", ["", "/a", "/a/b"])
    @pytest.mark.parametrize("operation", ["put", "create", "list"])
    def test_the_error_names_a_file_in_place_of_a_folder(self, server, folder_name, operation, below):
        (server.data / folder_name).write_bytes(b"a file")
        backend = open_backend(server.uri(folder_name) + below, server.options())
        with refused(BackendNotFoundError, f"{folder_name} is a file, not a folder"):
            OPERATIONS[operation](backend)
        backend.close()
        assert (server.data / folder_name).read_bytes() == b"a file"

    def test_the_error_names_a_missing_object(self, folder_name, backend):
        backend.put("other", b"data")
        with refused(ObjectNotFoundError, f"{folder_name}/key: it does not exist"):
            backend.get("key")


class TestUri:
    @pytest.mark.parametrize(
        "uri",
        [
            f"sftp://{USER}:{PASSWORD}@host/data",
            f"sftp://host/data?password={PASSWORD}",
            "sftp://host/data#run",
        ],
    )
    def test_credentials_and_options_are_refused_and_not_shown(self, uri):
        with refused(BackendNotFoundError, "credentials and options must not be part of the URI"):
            open_backend(uri)

    def test_a_password_with_a_slash_is_not_shown_as_a_port(self):
        with refused(BackendNotFoundError, "host or port is invalid"):
            open_backend(f"sftp://{USER}:{PASSWORD}/x@host/data")

    @pytest.mark.parametrize("uri", ["sftp://host", "sftp://host/", "sftp:///data"])
    def test_a_uri_without_host_or_folder_is_refused(self, uri):
        with refused(BackendNotFoundError, "names no host or no folder"):
            open_backend(uri)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"sock": None}, "unknown storage_options: sock"),
            ({"pkey": None}, "unknown storage_options: pkey"),
            ({"pasword": PASSWORD}, "unknown storage_options: pasword"),
            ({"port": "22"}, "port must be a number"),
            ({"timeout": "5"}, "timeout must be a positive number"),
            ({"timeout": 0}, "timeout must be a positive number"),
            ({"host_key_policy": "trust"}, "host_key_policy must be 'reject'"),
        ],
    )
    def test_the_error_names_an_invalid_option(self, options, match):
        with refused(BackendError, match):
            open_backend("sftp://host/data", options)

    def test_options_from_fsspecs_configuration_are_used(self, server, folder_name, monkeypatch):
        monkeypatch.setattr("fsspec.config.conf", {"sftp": {**server.options(), "temppath": "/tmp"}})
        backend = open_backend(server.uri(folder_name))
        backend.put("key", b"data")
        backend.close()
