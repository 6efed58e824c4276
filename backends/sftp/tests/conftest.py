"""What the tests of the SFTP backend share: the server that they run against."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from sftp_in_process import SftpServer, running

from input_checkpoint import Backend, open_backend


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    """A server, one for the whole run."""
    with running(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture
def server(one_server: SftpServer) -> Iterator[SftpServer]:
    """The server, well-behaved, with nobody connected."""
    one_server.behave()
    yield one_server
    one_server.behave()
    one_server.hang_up()


@pytest.fixture
def place() -> str:
    """The name of a folder on the server that is not there yet."""
    return uuid.uuid4().hex


@pytest.fixture
def opened(server: SftpServer, place: str) -> Iterator[Callable[..., Backend]]:
    """Open a backend on ``place``, with storage_options different from the usual ones."""
    backends = []

    def open_it(**options: Any) -> Backend:
        backends.append(open_backend(server.uri(place), server.options(**options)))
        return backends[-1]

    yield open_it
    for backend in backends:
        backend.close()


@pytest.fixture
def backend(opened: Callable[..., Backend]) -> Backend:
    """A backend on ``place``."""
    return opened()
