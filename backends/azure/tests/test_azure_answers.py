"""Azure answers, or the operation fails: nothing else that has status 200 counts."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator

import pytest
from azure_blob_server import BlobServer, blob_server

from input_checkpoint import Backend, BackendError, BackendUnavailableError, open_backend
from tests.support.engines import NEEDS_OBSTORE
from tests.support.lying_answers import LyingAnswers, emptied
from tests.support.lying_proxy import LyingProxy, Reply, lying_proxy


@pytest.fixture(scope="class")
def server() -> Iterator[BlobServer]:
    with blob_server() as server:
        yield server


@pytest.fixture(scope="class")
def proxy(server) -> Iterator[LyingProxy]:
    with lying_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)], scope="class")
def opened(request, proxy, server) -> Iterator[Backend]:
    connection = server.connection_string(server.signature).replace(server.url, proxy.url)
    options = {"connection_string": connection, "engine": request.param}
    backend = open_backend(f"abfs://container/{uuid.uuid4().hex}", options)
    yield backend
    backend.close()


@pytest.fixture
def backend(opened, proxy) -> Backend:
    return emptied(opened, proxy)


class TestLyingAnswers(LyingAnswers):
    pass


def page(*names: str, container: str = "container", marker: str = "") -> Reply:
    """Return the answer to a List Blobs."""
    blob = (
        "<Blob><Name>{}</Name><Properties><Last-Modified>Tue, 24 Nov 2026 12:00:00 GMT</Last-Modified>"
        "<Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
    )
    body = (
        f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{container}"><Blobs>'
        f"{''.join(map(blob.format, names))}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
    )
    return Reply(200, body.encode(), {"Content-Type": "application/xml", "x-ms-request-id": "1"})


class TestListings:
    @staticmethod
    def prefix(backend: Backend) -> str:
        return backend.uri.partition("://container/")[2]

    def test_one_of_another_container_is_an_error(self, backend, proxy):
        with (
            proxy.lying(lambda request, ask: page(container="other")),
            pytest.raises(BackendUnavailableError, match="the container other"),
        ):
            list(backend.list())

    @pytest.mark.parametrize("names", [[], ["a"]], ids=["empty pages", "the same page"])
    @pytest.mark.parametrize("same_marker", [True, False])
    def test_one_without_end_is_an_error(self, backend, proxy, names, same_marker):
        markers = itertools.repeat("same") if same_marker else map(str, itertools.count())
        keys = [f"{self.prefix(backend)}/{name}" for name in names]
        with (
            proxy.lying(lambda request, ask: page(*keys, marker=next(markers))),
            pytest.raises(BackendUnavailableError),
        ):
            list(backend.list())

    @pytest.mark.parametrize(
        "body",
        [b"", b"<html/>", b"<EnumerationResults/>", b'<EnumerationResults ContainerName="container"/>', b"{"],
    )
    def test_a_body_that_is_no_listing_is_an_error_whoever_sends_it(self, backend, proxy, body):
        lie = Reply(200, body, {"Content-Type": "application/xml", "x-ms-request-id": "1"})
        with proxy.lying(lambda request, ask: lie), pytest.raises(BackendError, match="List Blobs"):
            list(backend.list())
