"""Fixtures for the tests of the SFTP backend: a server, and backends on it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from sftp_in_process import SftpServer, running

from input_checkpoint import Backend, open_backend


@pytest.fixture(scope="session")
def session_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpServer]:
    """A server for the whole test run."""
    with running(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture
def server(session_server: SftpServer) -> Iterator[SftpServer]:
    """The server, without faults and without connections."""
    session_server.reset()
    yield session_server
    session_server.reset()
    session_server.hang_up()


@pytest.fixture
def folder_name() -> str:
    """The name of a folder that does not exist on the server yet."""
    return uuid.uuid4().hex


@pytest.fixture
def opened(server: SftpServer, folder_name: str) -> Iterator[Callable[..., Backend]]:
    """Opens a backend on ``folder_name``, with storage_options that replace the usual ones."""
    backends = []

    def open_it(**options: Any) -> Backend:
        backends.append(open_backend(server.uri(folder_name), server.options(**options)))
        return backends[-1]

    yield open_it
    for backend in backends:
        backend.close()


@pytest.fixture
def backend(opened: Callable[..., Backend]) -> Backend:
    """A backend on ``folder_name``."""
    return opened()
