"""Cloud Storage answers, or the operation fails: nothing else that has status 200 counts."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from gcs_scripted_server import Reply, resource, scripted_server

from input_checkpoint import Backend, BackendUnavailableError, open_backend
from input_checkpoint_gcs import GcsBackend
from tests.support.lying_answers import LyingAnswers
from tests.support.lying_proxy import LyingProxy, lying_proxy

pytestmark = pytest.mark.usefixtures("hasty")


@pytest.fixture(scope="class")
def proxy(fake_gcs) -> Iterator[LyingProxy]:
    with lying_proxy(fake_gcs.url) as proxy:
        yield proxy


@pytest.fixture(scope="class")
def opened(fake_gcs, proxy) -> Iterator[Backend]:
    place = fake_gcs.place(uuid.uuid4().hex)
    backend = open_backend(place.uri, {**place.storage_options, "endpoint_url": proxy.url})
    yield backend
    backend.close()


class TestLyingAnswers(LyingAnswers):
    # https://cloud.google.com/storage/docs/json_api/v1/objects/delete
    undetectable = frozenset({("204", "delete of one"), ("204", "delete of several")})


def page(*names: str, **fields: Any) -> Reply:
    items = [{"name": name, "size": "1", "timeCreated": "2026-11-23T02:58:16Z"} for name in names]
    return resource(kind="storage#objects", items=items, **fields)


def listed_from(answer) -> list[str]:
    with scripted_server(answer) as server:
        return [info.key for info in GcsBackend("gs://bucket/run", server.options()).list()]


class TestLists:
    @pytest.mark.parametrize(
        "reply",
        [
            resource(),
            resource(kind="storage#object", name="run/a"),
            resource(kind="storage#objects", items=[{"name": "run/a"}]),
            Reply(200, json.dumps([]).encode()),
        ],
        ids=["no kind", "another kind", "an object without size", "no resource"],
    )
    def test_one_without_what_the_api_promises_is_an_error(self, reply):
        with pytest.raises(BackendUnavailableError, match=r"the server answered objects\.list with"):
            listed_from(lambda request: reply)

    @pytest.mark.parametrize("names", [("run/b", "run/a"), ("run/a", "run/a")])
    def test_one_that_is_not_in_order_is_an_error(self, names):
        with pytest.raises(BackendUnavailableError, match="order"):
            listed_from(lambda request: page(*names))

    @pytest.mark.parametrize("names", [(), ("run/a",)], ids=["empty pages", "the same page"])
    @pytest.mark.parametrize("tokens", [itertools.repeat("same"), itertools.count()], ids=["same", "new"])
    def test_one_without_end_is_an_error(self, names, tokens):
        with pytest.raises(BackendUnavailableError):
            listed_from(lambda request: page(*names, nextPageToken=str(next(tokens))))


class TestUploads:
    @pytest.mark.parametrize(
        "reply",
        [
            resource(name="run/other", generation="1"),
            resource(name="run/key", size="3", generation="1"),
            resource(name="run/key"),
        ],
        ids=["another object", "another size", "no generation"],
    )
    def test_an_answer_about_something_else_is_an_error(self, reply):
        with (
            scripted_server(lambda request: reply) as server,
            pytest.raises(BackendUnavailableError, match=r"the server answered objects\.insert with"),
        ):
            GcsBackend("gs://bucket/run", server.options()).create("key", b"data")
