"""What every backend over HTTP does with an answer that is not the storage's."""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Sequence
from typing import Callable, Optional

import pytest

from input_checkpoint import Backend, BackendError, BackendUnavailableError, CheckpointStore, KeepAll
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError
from tests.support.lying_proxy import Answerer, LyingProxy, Reply, Request
from tests.support.stores import save

DATA = bytes(range(100))
_LOGIN = "/please-log-in"
_STATIC = {"ETag": '"5f0a3c-264"', "Last-Modified": "Tue, 24 Nov 2026 12:00:00 GMT"}
_HTML = b"<!DOCTYPE html><html><head><meta charset=utf-8></head><body><p>Please log in<br></body></html>"
_XHTML = b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>Please log in</body></html>'
_PAGE = Reply(200, _HTML, {"Content-Type": "text/html; charset=utf-8", **_STATIC})

LIES = {
    "an empty 200": Reply(200),
    "an empty 200 with an ETag": Reply(200, b"", {"Content-Type": "text/html", **_STATIC}),
    "a page of HTML": Reply(200, _HTML, {"Content-Type": "text/html; charset=utf-8"}),
    "a page of HTML with an ETag": _PAGE,
    "a page of XHTML": Reply(200, _XHTML, {"Content-Type": "application/xhtml+xml", **_STATIC}),
    "a page of XHTML that claims to be XML": Reply(200, _XHTML, {"Content-Type": "application/xml"}),
    "204": Reply(204),
    "a redirect with 302": Reply(302, b"", {"Location": _LOGIN}),
    "a redirect with 303": Reply(303, b"", {"Location": _LOGIN}),
    "a redirect with 307": Reply(307, b"", {"Location": _LOGIN}),
    "JSON of another request": Reply(
        200, b'{"kind": "storage#bucket", "name": "bucket"}', {"Content-Type": "application/json"}
    ),
    "XML of another request": Reply(
        200,
        b"<ListAllMyBucketsResult><Buckets><Bucket><Name>bucket</Name></Bucket></Buckets>"
        b"</ListAllMyBucketsResult>",
        {"Content-Type": "application/xml"},
    ),
    "a page of HTML with 404": Reply(404, _HTML, {"Content-Type": "text/html"}),
    "a page of HTML with 201": Reply(201, _HTML, {"Content-Type": "text/html", **_STATIC}),
    "a page of HTML with 202": Reply(202, _HTML, {"Content-Type": "text/html", **_STATIC}),
}

OPERATIONS: dict[str, Callable[[Backend], object]] = {
    "list": lambda backend: list(backend.list()),
    "list of a folder": lambda backend: list(backend.list("folder/")),
    "get": lambda backend: backend.get("folder/a"),
    "get of a range": lambda backend: backend.get("folder/a", 10, 20),
    "get of nothing": lambda backend: backend.get("folder/a", 3, 3),
    "put": lambda backend: backend.put("folder/new", b"data"),
    "create": lambda backend: backend.create("folder/new", b"data"),
    "delete of one": lambda backend: backend.delete(["folder/a"]),
    "delete of several": lambda backend: backend.delete(["folder/a", "folder/b"]),
}


def always(reply: Reply) -> Answerer:
    """Give the same answer to everything, and a page where a redirect leads."""
    return lambda request, ask: _PAGE if request.path.startswith(_LOGIN) else reply


def in_listings(change: Callable[[bytes], bytes]) -> Answerer:
    """Change what the server answers to a list."""

    def answer(request: Request, ask: Callable[[], Reply]) -> Reply:
        reply = ask()
        body = reply.body
        if request.method != "GET" or not (b"Contents" in body or b"<Blob" in body or b"items" in body):
            return reply
        return reply.but(change(body))

    return answer


def in_ranges(change: Callable[[Request, Reply], Reply]) -> Answerer:
    """Change what the server answers to a request for a part of an object."""

    def answer(request: Request, ask: Callable[[], Reply]) -> Reply:
        reply = ask()
        return change(request, reply) if reply.status == 206 else reply

    return answer


def _whole(request: Request, reply: Reply) -> Reply:
    return Reply(200, DATA, reply.but(content_range=None).headers)


def _compressed(request: Request, reply: Reply) -> Reply:
    return reply.but(gzip.compress(reply.body), content_encoding="gzip")


def emptied(backend: Backend, proxy: LyingProxy) -> Backend:
    """Return a backend without objects, whose proxy remembers no requests."""
    backend.delete([info.key for info in backend.list()])
    proxy.asked.clear()
    return backend


RANGE_LIES: dict[str, Callable[[Request, Reply], Reply]] = {
    "the whole object": _whole,
    "too few bytes": lambda request, reply: reply.but(reply.body[:-1]),
    "too many bytes": lambda request, reply: reply.but(reply.body + b"x"),
    "another range": lambda request, reply: reply.but(DATA[30:40], content_range="bytes 30-39/100"),
    "a shorter range": lambda request, reply: reply.but(DATA[10:15], content_range="bytes 10-14/100"),
    "no Content-Range": lambda request, reply: reply.but(content_range=None),
    "compressed data": _compressed,
}


@pytest.mark.usefixtures("no_pauses")
class AlteredAnswers:
    """Tests of a plugin whose server answers, but something in between changes a part of its answers.

    They need the fixtures ``proxy`` and ``opened``: a backend through this proxy. Both may have the scope of
    a class, because opening a client takes longer than a test.
    """

    pruned_with: Sequence[tuple[str, int]] = tuple(zip(LIES, itertools.cycle((1, 2, 3))))
    """Each lie, and the listing of a prune from which on it is told. ``integration/`` tries every pair."""

    @pytest.fixture
    def backend(self, opened: Backend, proxy: LyingProxy) -> Backend:
        """The backend, empty."""
        return emptied(opened, proxy)

    @pytest.fixture
    def filled(self, backend: Backend) -> Backend:
        for key in ("folder/a", "folder/b", "folder/c"):
            backend.put(key, DATA)
        return backend

    @pytest.mark.parametrize("lie", RANGE_LIES)
    def test_a_range_is_right_or_an_error(self, proxy, filled, lie):
        with proxy.lying(in_ranges(RANGE_LIES[lie])):
            assert self._outcome(lambda: filled.get("folder/a", 10, 20)) in (None, DATA[10:20])

    def test_a_compressed_object_is_right_or_an_error(self, proxy, filled):
        def compress(request: Request, ask: Callable[[], Reply]) -> Reply:
            reply = ask()
            return reply.but(gzip.compress(reply.body), content_encoding="gzip") if reply.body else reply

        with proxy.lying(compress):
            assert self._outcome(lambda: filled.get("folder/a")) in (None, DATA)
            listed = self._outcome(lambda: [info.key for info in filled.list()])
        assert listed in (None, ["folder/a", "folder/b", "folder/c"])

    def test_objects_outside_the_prefix_are_an_error(self, proxy, filled):
        with (
            proxy.lying(in_listings(lambda body: body.replace(b"folder/", b"elsewhere/"))),
            pytest.raises(BackendUnavailableError, match="elsewhere/"),
        ):
            list(filled.list("folder/"))

    def test_a_listing_of_another_bucket_is_an_error(self, proxy, filled):
        def rename(body: bytes) -> bytes:
            return re.sub(rb'(<Name>|ContainerName=")(bucket|container)', rb"\1other", body)

        if b"kind" in self._listing(proxy, filled):
            pytest.skip("a list of Cloud Storage does not name its bucket")
        with proxy.lying(in_listings(rename)), pytest.raises(BackendError, match="other"):
            list(filled.list())

    def test_a_prune_that_keeps_everything_removes_nothing(self, proxy, backend):
        store = CheckpointStore.open(backend, create=True, retry=None)
        run = store.begin_run("main")
        save(run, 10, 20)
        for lie, first in self.pruned_with:
            self._prune_with_lies(proxy, backend, LIES[lie], first)
            assert store.verify().problems == {}, f"{lie}, from listing {first} on"

    @staticmethod
    def _prune_with_lies(proxy: LyingProxy, backend: Backend, lie: Reply, first: int) -> None:
        listings: list[str] = []

        def answer(request: Request, ask: Callable[[], Reply]) -> Reply:
            if request.path.startswith(_LOGIN):
                return _PAGE
            is_list = request.method == "GET" and "prefix=" in request.path and "checkpoints" in request.path
            listings.extend([request.path] * is_list)
            return lie if is_list and len(listings) >= first else ask()

        with proxy.lying(answer):
            try:
                CheckpointStore.open(backend, retry=None).prune(KeepAll(), orphan_age=0)
            except BackendError:
                return
            assert len(listings) < first

    @staticmethod
    def _listing(proxy: LyingProxy, backend: Backend) -> bytes:
        bodies: list[bytes] = []
        with proxy.lying(in_listings(lambda body: bodies.append(body) or body)):
            list(backend.list())
        return bodies[-1]

    @staticmethod
    def _outcome(work: Callable[[], object]) -> Optional[object]:
        """Return the result, or None after a `BackendError` that is not about a missing object."""
        try:
            return work()
        except (ObjectExistsError, ObjectNotFoundError):
            raise
        except BackendError:
            return None


class LyingAnswers(AlteredAnswers):
    """Tests of a plugin in whose server's place something else answers."""

    undetectable: frozenset[tuple[str, str]] = frozenset()
    """Pairs of a lie and an operation for which the lie is exactly what the service answers."""

    @pytest.mark.parametrize("operation", OPERATIONS)
    @pytest.mark.parametrize("lie", LIES)
    def test_an_answer_of_something_else_is_an_error_and_changes_nothing(self, proxy, filled, lie, operation):
        if (lie, operation) in self.undetectable:
            pytest.skip("this is what the service answers")
        with proxy.lying(always(LIES[lie])), pytest.raises(BackendError) as raised:
            OPERATIONS[operation](filled)
        assert not isinstance(raised.value, (ObjectExistsError, ObjectNotFoundError))
        assert filled.uri in str(raised.value)
        assert "Please log in" not in str(raised.value)
        assert {info.key: info.size for info in filled.list()} == {
            "folder/a": 100,
            "folder/b": 100,
            "folder/c": 100,
        }

    def test_the_error_says_what_came_and_what_to_do(self, proxy, filled):
        with (
            proxy.lying(always(LIES["a page of XHTML"])),
            pytest.raises(BackendUnavailableError, match=r"xhtml.*proxy or a login page may have answered"),
        ):
            list(filled.list())
