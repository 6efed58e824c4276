"""Requests to Cloud Storage end in time."""

from __future__ import annotations

import pytest

from tests.support.misbehaving_server import EndsInTime


@pytest.fixture
def place_at():
    return lambda port: ("gs://bucket/run", {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"})


class TestGcs(EndsInTime):
    pass
