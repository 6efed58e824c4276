"""S3 answers, or the operation fails: nothing else that has status 200 counts."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import botocore.session
import pytest

from input_checkpoint import Backend, BackendError, BackendUnavailableError, open_backend
from tests.support.engines import NEEDS_OBSTORE
from tests.support.lying_answers import LyingAnswers, emptied, in_listings
from tests.support.lying_proxy import LyingProxy, Reply, Request, lying_proxy


@pytest.fixture(scope="class")
def proxy(s3_server) -> Iterator[LyingProxy]:
    with lying_proxy(s3_server.url) as proxy:
        yield proxy


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)], scope="class")
def opened(request, proxy, s3_server) -> Iterator[Backend]:
    options = {**s3_server.options, "endpoint_url": proxy.url, "engine": request.param}
    backend = open_backend(f"s3://{s3_server.bucket}/{uuid.uuid4().hex}", options)
    yield backend
    backend.close()


@pytest.fixture
def backend(opened, proxy) -> Backend:
    return emptied(opened, proxy)


class TestLyingAnswers(LyingAnswers):
    pass


def listing(*keys: str, **fields: Any) -> bytes:
    """Return a listing of a bucket with these objects."""
    known = {"Name": "bucket", "KeyCount": len(keys), "IsTruncated": "false", **fields}
    body = "".join(f"<{name}>{value}</{name}>" for name, value in known.items() if value is not None)
    entry = (
        "<Contents><Key>{}</Key><Size>1</Size><LastModified>2026-11-24T12:00:00Z</LastModified></Contents>"
    )
    return f"<ListBucketResult>{body}{''.join(map(entry.format, keys))}</ListBucketResult>".encode()


class TestListings:
    @staticmethod
    def prefix(backend: Backend) -> str:
        return backend.uri.partition("://bucket/")[2]

    @pytest.mark.parametrize(
        "fields",
        [
            {"Name": None},
            {"Name": "other"},
            {"KeyCount": None},
            {"KeyCount": 3},
            {"IsTruncated": "true"},
            {"Prefix": "elsewhere/"},
        ],
        ids=str,
    )
    def test_one_without_what_s3_promises_is_an_error(self, backend, proxy, fields):
        page = listing(f"{self.prefix(backend)}/a", **fields)
        with (
            proxy.lying(lambda request, ask: Reply(200, page)),
            pytest.raises(BackendUnavailableError, match=r"the server answered ListObjectsV2 with"),
        ):
            list(backend.list())

    @pytest.mark.parametrize("keys", [("b", "a"), ("a", "a")], ids=["disorder", "repetition"])
    def test_one_that_is_not_in_order_is_an_error(self, backend, proxy, keys):
        page = listing(*(f"{self.prefix(backend)}/{key}" for key in keys))
        with (
            proxy.lying(lambda request, ask: Reply(200, page)),
            pytest.raises(BackendUnavailableError, match="order"),
        ):
            list(backend.list())

    @pytest.mark.parametrize(
        "page",
        [
            lambda prefix, number: listing(IsTruncated="true", NextContinuationToken="same"),
            lambda prefix, number: listing(IsTruncated="true", NextContinuationToken=f"{number}"),
            lambda prefix, number: listing(
                f"{prefix}/a", IsTruncated="true", NextContinuationToken=f"{number}"
            ),
        ],
        ids=["the same token", "empty pages", "the same page"],
    )
    def test_one_without_end_is_an_error(self, backend, proxy, page):
        numbers = itertools.count()
        prefix = self.prefix(backend)
        with (
            proxy.lying(lambda request, ask: Reply(200, page(prefix, next(numbers)))),
            pytest.raises(BackendUnavailableError),
        ):
            list(backend.list())

    def test_a_page_of_xhtml_in_the_middle_is_an_error(self, backend, proxy):
        pages = iter(
            [
                listing(f"{self.prefix(backend)}/a", IsTruncated="true", NextContinuationToken="t"),
                b"<html xmlns='http://www.w3.org/1999/xhtml'><body/></html>",
            ]
        )
        with proxy.lying(lambda request, ask: Reply(200, next(pages))), pytest.raises(BackendError):
            list(backend.list())


class TestBulkDelete:
    @pytest.fixture
    def keys(self, backend) -> list[str]:
        keys = ["a", "b", "c"]
        for key in keys:
            backend.put(key, b"data")
        return keys

    @staticmethod
    def instead(change: Callable[[bytes], bytes]):
        def answer(request: Request, ask: Callable[[], Reply]) -> Reply:
            if request.method != "POST":
                return ask()
            names = re.findall(rb"<Key>([^<]+)</Key>", request.body)
            return Reply(200, b"<DeleteResult>%s</DeleteResult>" % b"".join(map(change, names)))

        return answer

    def test_every_key_must_be_mentioned(self, backend, proxy, keys):
        def all_but_b(name: bytes) -> bytes:
            return b"" if name.endswith(b"b") else b"<Deleted><Key>%s</Key></Deleted>" % name

        with (
            proxy.lying(self.instead(all_but_b)),
            pytest.raises(BackendUnavailableError, match=r"nothing about 1 objects such as .*/b"),
        ):
            backend.delete(keys)

    def test_a_quiet_answer_is_an_error(self, backend, proxy, keys):
        with (
            proxy.lying(self.instead(lambda name: b"")),
            pytest.raises(BackendUnavailableError, match="not with the deleted objects"),
        ):
            backend.delete(keys)

    def test_a_missing_key_does_not_hide_one_that_is_locked(self, backend, proxy, keys):
        def refuse(name: bytes) -> bytes:
            code = b"AccessDenied" if name.endswith(b"b") else b"NoSuchKey"
            return b"<Error><Key>%s</Key><Code>%s</Code><Message>m</Message></Error>" % (name, code)

        with (
            proxy.lying(self.instead(refuse)),
            pytest.raises(BackendError, match=r"1 objects.*/b .*AccessDenied.*s3:DeleteObject"),
        ):
            backend.delete(keys)

    def test_more_than_a_thousand_keys_are_sent_in_several_requests(self, backend, proxy):
        backend.delete([f"{number}" for number in range(2001)])
        assert [request.method for request in proxy.asked if request.method != "GET"] == ["POST"] * 3


class TestClientWithoutConditionalWrites:
    @pytest.fixture
    def old_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let botocore use a description of S3 as before August 2024."""
        model = botocore.session.Session().get_component("data_loader").load_service_model("s3", "service-2")
        del model["shapes"]["PutObjectRequest"]["members"]["IfNoneMatch"]
        folder = tmp_path / "s3" / "2006-03-01"
        folder.mkdir(parents=True)
        (folder / "service-2.json").write_text(json.dumps(model))
        monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))

    def test_it_is_refused_with_the_command_that_installs_another(self, old_model, s3_server):
        wanted = r"does not know If-None-Match.*botocore \d.*pip install --upgrade 's3fs>=2024.10'"
        with pytest.raises(BackendError, match=wanted) as raised:
            open_backend("s3://bucket/run", s3_server.options)
        assert not isinstance(raised.value, BackendUnavailableError)


def test_a_whole_object_is_one_request_without_a_range(backend, proxy):
    backend.put("key", b"data")
    proxy.asked.clear()
    assert backend.get("key") == b"data"
    (request,) = proxy.asked
    assert "range" not in request.headers


def test_an_honest_proxy_changes_nothing(backend, proxy):
    backend.create("key", b"data")
    with proxy.lying(in_listings(lambda body: body)):
        assert [info.key for info in backend.list()] == ["key"]
