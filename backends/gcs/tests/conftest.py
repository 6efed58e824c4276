"""What the tests of the GCS backend share: the emulator that they run against, and haste."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import tenacity

from integration.servers.fake_gcs import FakeGcs
from integration.servers.server import MissingServerError


@pytest.fixture(scope="session")
def fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """A fake-gcs-server, one for the whole run. Use a place of your own in its bucket."""
    server = FakeGcs(tmp_path_factory.mktemp("fake-gcs"))
    try:
        server.start()
    except MissingServerError:
        # The package that brings the program is not to be had for Python 3.9. Anywhere else it is required.
        if sys.version_info >= (3, 10):
            raise
        pytest.skip("fake-gcs-server needs Python 3.10")
    yield server
    server.kill()


@pytest.fixture
def hasty(monkeypatch) -> None:
    """Make no pauses between attempts."""
    monkeypatch.setattr("input_checkpoint_gcs.client._PAUSE", tenacity.wait_none())
