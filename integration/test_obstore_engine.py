"""The tests of the server contract and the race, with obstore as the engine."""

from __future__ import annotations

import dataclasses
import sys
import uuid

import pytest

from input_checkpoint import open_backend
from input_checkpoint.backends.obstore import ObstoreBackend

# These tests run here again, on the location below.
from integration.servers.server import Place, Server
from integration.test_server_contract import (  # noqa: F401
    TestContract,
    backend,
    test_the_probe_passes_and_leaves_nothing_behind,
)
from integration.test_server_race import (  # noqa: F401
    test_each_object_large_enough_for_a_multipart_upload_has_exactly_one_creator,
    test_each_of_fifty_small_objects_has_exactly_one_creator,
)

pytestmark = [
    pytest.mark.two_engines,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11"),
]


@pytest.fixture
def place(server: Server) -> Place:
    plain = server.place(uuid.uuid4().hex)
    return dataclasses.replace(plain, storage_options={**plain.storage_options, "engine": "obstore"})


def test_obstore_is_the_engine_in_use(place: Place) -> None:
    assert isinstance(open_backend(place.uri, place.storage_options), ObstoreBackend)


def test_each_engine_reads_what_the_other_stored(place: Place) -> None:
    plain = {name: value for name, value in place.storage_options.items() if name != "engine"}
    ours, theirs = open_backend(place.uri, place.storage_options), open_backend(place.uri, plain)
    ours.create("by/obstore", b"1")
    theirs.create("by/fsspec", b"2")
    for backend_ in (ours, theirs):
        assert [info.key for info in backend_.list()] == ["by/fsspec", "by/obstore"]
        assert (backend_.get("by/obstore"), backend_.get("by/fsspec")) == (b"1", b"2")
    listed = [[(info.key, info.size, info.modified) for info in each.list("by/")] for each in (ours, theirs)]
    assert [entry[:2] for entry in listed[0]] == [entry[:2] for entry in listed[1]]
    theirs.close()
