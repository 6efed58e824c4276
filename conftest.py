"""Fixtures shared by the library's tests and the plugins'."""

from __future__ import annotations

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
