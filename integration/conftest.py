"""The servers that the suite runs on. The environment variable ``INTEGRATION`` selects some of them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from integration.servers.azurite import Azurite
from integration.servers.ceph import Ceph
from integration.servers.fake_gcs import FakeGcs
from integration.servers.moto import Moto
from integration.servers.server import Place, Server
from integration.servers.sshd import Sshd

SERVERS: dict[str, type[Server]] = {kind.name: kind for kind in (Moto, Ceph, FakeGcs, Azurite, Sshd)}


def chosen_servers() -> list[str]:
    """Return the names in ``INTEGRATION``, or all names. An unknown name is an error."""
    names = [name for name in os.environ.get("INTEGRATION", "").replace(",", " ").split() if name]
    unknown = sorted(set(names) - set(SERVERS))
    if unknown:
        raise pytest.UsageError(
            f"unknown server in INTEGRATION: {', '.join(unknown)}. Choose from {', '.join(SERVERS)}."
        )
    return names or list(SERVERS)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that needs a server on all of them, grouped so that each server starts once."""
    if "server" not in metafunc.fixturenames:
        return
    names = chosen_servers()
    if metafunc.definition.get_closest_marker("durable"):
        names = [name for name in names if SERVERS[name].durable]
    if metafunc.definition.get_closest_marker("two_engines"):
        names = [name for name in names if SERVERS[name].two_engines]
    params = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
    metafunc.parametrize("server", params, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server."""
    kind = SERVERS[request.param]
    with kind(tmp_path_factory.mktemp(request.param)).running() as running:
        yield running


@pytest.fixture
def place(server: Server) -> Place:
    """An empty location on the server."""
    return server.place(uuid.uuid4().hex)
