"""Every server, through its plugin, meets the backend contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from input_checkpoint import Backend, open_backend
from input_checkpoint.backends.probing import probe
from input_checkpoint.testing import BackendContract
from integration.servers.server import Place


@pytest.fixture
def backend(place: Place) -> Iterator[Backend]:
    opened = open_backend(place.uri, place.storage_options)
    yield opened
    opened.close()


class TestContract(BackendContract):
    large_bytes = 20 << 20

    @pytest.fixture
    def backend(self, backend: Backend) -> Backend:
        return backend


def test_the_probe_passes_and_leaves_nothing_behind(backend: Backend) -> None:
    probe(backend)
    assert list(backend.list()) == []
