"""Operations on an SFTP server end in time."""

from __future__ import annotations

import time

import pytest

from input_checkpoint import BackendUnavailableError, open_backend
from tests.support.misbehaving_server import EndsInTime


@pytest.fixture
def place_at(tmp_path):
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("")

    login = {"known_hosts": str(known_hosts), "username": "joe", "password": "secret"}
    return lambda port: ("sftp://127.0.0.1/data/run", {**login, "port": port})


class TestLogin(EndsInTime):
    pass


@pytest.mark.parametrize("slow", ["write", "read"])
def test_data_that_moves_too_slowly_is_an_error_although_every_answer_comes_in_time(
    server, folder_name, slow
):
    options = {**server.options(), "timeout": 1, "min_bytes_per_second": 10**9}
    backend = open_backend(server.uri(folder_name), options)
    if slow == "read":
        backend.put("key", bytes(100 * 32_000))
    server.script = lambda request, path: time.sleep(0.1) if request == slow else None
    operations = {
        "write": lambda: backend.put("key", bytes(100 * 32_000)),
        "read": lambda: backend.get("key"),
    }
    with pytest.raises(BackendUnavailableError, match="did not finish within"):
        operations[slow]()
    server.reset()
    backend.close()
