"""What the tests of the GCS backend share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import tenacity
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from integration.servers.fake_gcs import FakeGcs
from integration.servers.server import MissingServerError


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """A fake-gcs-server for the whole run. Each test uses a prefix of its own in its bucket."""
    server = FakeGcs(tmp_path_factory.mktemp("fake-gcs"))
    try:
        server.start()
    except MissingServerError:
        # The package with the program is not available for Python 3.9. Anywhere else it is required.
        if sys.version_info >= (3, 10):
            raise
        pytest.skip("fake-gcs-server needs Python 3.10")
    yield server
    server.kill()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no pauses between attempts."""
    monkeypatch.setattr("input_checkpoint_gcs.client._PAUSE", tenacity.wait_none())


@pytest.fixture(scope="session")
def service_account() -> dict[str, str]:
    """The content of a service account's key file, without the URL of the token server."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"type": "service_account", "client_email": "a@b.example", "private_key": private.decode()}
