"""Fixtures shared by the library's tests and the plugins'."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.s3_server import S3Server, running_s3_server

# A busy machine is no reason to fail.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A loopback S3 server, one for the whole run. Use a prefix of your own in its bucket."""
    with running_s3_server() as server:
        yield server


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library find no plugin, as where none is installed."""
    monkeypatch.setattr("input_checkpoint.backends.schemes.installed_plugins", lambda: ())


@pytest.fixture
def checks_credentials(s3_server: S3Server) -> Iterator[None]:
    """Let the server check who asks, which it does not do otherwise."""

    def let_through(requests: str) -> str:
        ask = urllib.request.Request(f"{s3_server.url}/moto-api/reset-auth", data=requests.encode())
        ask.add_header("Content-Type", "text/plain")
        with urllib.request.urlopen(ask) as answer:
            return str(json.load(answer)["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"])

    before = let_through("0")
    yield
    let_through(before)
