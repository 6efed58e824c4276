"""Something between a plugin and a real server changes the server's answers. No operation is fooled."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from input_checkpoint import Backend, open_backend
from integration.servers.server import Place, Server
from tests.support.lying_answers import LIES, AlteredAnswers
from tests.support.lying_proxy import LyingProxy, lying_proxy


@pytest.fixture
def proxy(server: Server) -> Iterator[LyingProxy]:
    if server.name == "sshd":
        pytest.skip("a proxy cannot change an answer in an encrypted connection")
    with lying_proxy(f"http://127.0.0.1:{server.port}") as proxy:
        yield proxy


@pytest.fixture(params=["fsspec", "obstore"])
def opened(
    request: pytest.FixtureRequest, server: Server, place: Place, proxy: LyingProxy
) -> Iterator[Backend]:
    if request.param == "obstore" and (not server.two_engines or sys.version_info < (3, 11)):
        pytest.skip("there is no second engine")
    direct, through = f"127.0.0.1:{server.port}", proxy.url.partition("://")[2]
    options: dict[str, Any] = json.loads(json.dumps(place.storage_options).replace(direct, through))
    backend = open_backend(place.uri, {**options, "engine": request.param})
    yield backend
    backend.close()


class TestAlteredAnswers(AlteredAnswers):
    pruned_with = tuple(itertools.product(LIES, (1, 2, 3)))
