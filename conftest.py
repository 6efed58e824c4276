"""Fixtures that the tests of the library and of the plugins share."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.pauses import remove_pauses
from tests.support.s3_server import S3Server, running_s3_server

ROOT = Path(__file__).parent

if importlib.util.find_spec("tensorflow") is None:
    # The store works without TensorFlow, so its tests run without it.
    collect_ignore_glob = ["src/input_checkpoint/tensorflow/*", "tests/tensorflow/*"]
    collect_ignore = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/**/*.py")
        if "tests.support.training" in path.read_text()
    ]

# A slow machine must not fail tests.
settings.register_profile("no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A loopback S3 server for the whole session. Each test uses its own prefix in the bucket."""
    with running_s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3_client(s3_server: S3Server) -> Any:
    """A boto3 client of the server, to look at what is stored independently of the library."""
    return s3_server.client()


@pytest.fixture
def small_pages(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the S3 server answer a list with 50 objects at a time instead of 1000."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "50")


@pytest.fixture(autouse=True)
def _remembered_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the secrets of one test out of the messages of the next: some are words like "second"."""
    monkeypatch.setattr("input_checkpoint.redaction.redactor._remembered", {})


@pytest.fixture(scope="class")
def no_pauses() -> Iterator[None]:
    """Make no pauses between the attempts of a request. Applies to clients that are opened after it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        remove_pauses(monkeypatch)
        yield


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide all plugins from the library, as if none were installed."""
    monkeypatch.setattr("input_checkpoint.backends.schemes.installed_plugins", lambda: ())


@pytest.fixture
def checks_credentials(s3_server: S3Server) -> Iterator[None]:
    """Make the S3 server check credentials, which it ignores otherwise."""

    def allow_unauthenticated(requests: str) -> str:
        call = urllib.request.Request(f"{s3_server.url}/moto-api/reset-auth", data=requests.encode())
        call.add_header("Content-Type", "text/plain")
        with urllib.request.urlopen(call) as response:
            return str(json.load(response)["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"])

    before = allow_unauthenticated("0")
    yield
    allow_unauthenticated(before)
