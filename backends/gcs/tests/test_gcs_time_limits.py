"""Requests to Cloud Storage end in time."""

from __future__ import annotations

import pytest

from input_checkpoint import open_backend
from tests.support.misbehaving_server import EndsInTime


@pytest.fixture
def open_at():
    def opened(port, options):
        place = {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"}
        return open_backend("gs://bucket/run", {**place, **options})

    return opened


class TestGcs(EndsInTime):
    pass
