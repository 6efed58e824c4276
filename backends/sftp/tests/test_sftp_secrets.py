"""No login shows its password, and the server's umask decides about the permissions of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paramiko
import pytest

from input_checkpoint import (
    BackendError,
    BackendPermissionError,
    CheckpointStore,
    IteratorState,
    open_backend,
)
from input_checkpoint.backends.retrying import RetryPolicy
from tests.support.operations import every_operation
from tests.support.planted_secrets import attempt

PLANTED = "pl4nted SECRET"


@every_operation
def test_a_refused_password_is_not_shown(opened: Any, operation: Any) -> None:
    backend = opened(password=PLANTED, key_filename=None)
    error, shown = attempt(lambda: operation(backend))
    assert isinstance(error, BackendPermissionError)
    assert PLANTED not in shown + repr(backend)


def test_a_wrong_passphrase_is_not_shown(server: Any, opened: Any, tmp_path: Path) -> None:
    key = tmp_path / "encrypted"
    server.user_key.write_private_key_file(str(key), password="the right one")
    backend = opened(key_filename=str(key), passphrase=PLANTED)
    error, shown = attempt(lambda: list(backend.list()))
    assert isinstance(error, BackendPermissionError)
    assert PLANTED not in shown


def test_a_password_that_the_server_repeats_is_not_shown(server: Any, opened: Any) -> None:
    def repeat() -> None:
        raise paramiko.SSHException(f"what is {PLANTED}?")

    server.log_in = repeat
    error, shown = attempt(lambda: list(opened(password=PLANTED, key_filename=None).list()))
    assert isinstance(error, BackendError)
    assert PLANTED not in shown


@pytest.mark.parametrize(
    "user",
    [f"joe:{PLANTED}", f"joe:it's{PLANTED}", f"joe:12/{PLANTED}", f"joe:p@ss/{PLANTED}", f":{PLANTED}"],
)
def test_a_password_in_the_uri_is_not_shown(user: str) -> None:
    def open_store() -> None:
        backend = open_backend(f"sftp://{user}@127.0.0.1:1/run", {"timeout": 2})
        list(backend.list())

    error, shown = attempt(open_store)
    assert isinstance(error, BackendError)
    assert PLANTED not in shown
    assert "SECRET" not in shown


def test_the_umask_of_the_server_decides_about_permissions(server: Any, folder_name: str) -> None:
    uri, options = server.uri(folder_name), server.options()
    store = CheckpointStore.open(uri, options, create=True, retry=RetryPolicy(timeout=1))
    store.begin_run("main").save(10, [IteratorState("Iterator", [(b"key", b"payload" * 500)])])
    assert len(server.modes_requested) > 6
    assert set(server.modes_requested) == {None}
