"""The ARN of an access point may take the place of the bucket."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from input_checkpoint import Backend, BackendError, BackendNotFoundError, open_backend
from input_checkpoint_s3.uri import parse_s3_uri
from tests.support.engines import NEEDS_OBSTORE
from tests.support.operations import OPERATIONS
from tests.support.serving import serving

ARN = "arn:aws:s3:eu-north-1:123456789012:accesspoint/training"
OUTPOST = "arn:aws:s3-outposts:eu-north-1:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/training"
HOST = "training-123456789012.s3.example.org"


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)])
def engine(request) -> str:
    return request.param


class Proxy:
    """A proxy that answers for every host and records the requests."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.requests: list[tuple[str, str, str]] = []


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorder.requests.append((self.command, self.path, self.headers.get("Authorization") or ""))
            body = b"data" if self.command == "GET" and "list-type" not in self.path else b""
            if "list-type" in self.path:
                body = b"<ListBucketResult><Name>training</Name><KeyCount>0</KeyCount></ListBucketResult>"
            if self.command == "POST":
                body = b"<DeleteResult><Deleted><Key>run/key</Key></Deleted></DeleteResult>"
            self.send_response(206 if self.headers.get("Range") else 200)
            self.send_header("ETag", '"8d777f385d3dfec8815d20f7496026dc"')
            self.send_header("Last-Modified", "Tue, 24 Nov 2026 12:00:00 GMT")
            if self.headers.get("Range"):
                self.send_header("Content-Range", "bytes 0-3/4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = _reply  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorder = Proxy(server.server_port)
    with serving(server):
        yield recorder


@pytest.fixture
def backend(engine, proxy, monkeypatch) -> Backend:
    options = {
        "key": "AKIAEXAMPLE",
        "secret": "hunter2",
        "endpoint_url": "http://s3.example.org",
        "client_kwargs": {"region_name": "us-east-1"},
        "engine": engine,
    }
    if engine == "fsspec":
        options["config_kwargs"] = {"proxies": {"http": proxy.url}}
    else:
        monkeypatch.setenv("http_proxy", proxy.url)
    return open_backend(f"s3://{ARN}/run", options)


@pytest.mark.parametrize("operation", ["get", "put", "create", "list", "delete"])
def test_requests_go_to_the_access_point_in_its_region(backend, proxy, operation):
    OPERATIONS[operation](backend)
    command, url, authorization = proxy.requests[-1]
    assert url.startswith(f"http://{HOST}/")
    assert "/eu-north-1/s3/" in authorization
    if command in ("GET", "PUT") and operation != "list":
        assert url.partition("?")[0] == f"http://{HOST}/run/key"


def test_the_uri_is_shown_as_it_was_written(backend):
    assert backend.uri == f"s3://{ARN}/run"


@NEEDS_OBSTORE
def test_obstore_refuses_an_access_point_that_it_cannot_sign_for():
    options = {"key": "k", "secret": "s", "client_kwargs": {"region_name": "eu-north-1"}}
    with pytest.raises(BackendError, match=r"cannot sign requests for arn:.*Remove the engine"):
        open_backend(f"s3://{OUTPOST}/run", {**options, "engine": "obstore"})


class TestUri:
    @pytest.mark.parametrize(
        "arn",
        [
            ARN,
            ARN.replace("accesspoint/", "accesspoint:"),
            ARN.replace("arn:aws:", "arn:aws-cn:"),
            ARN.replace("eu-north-1", ""),
            OUTPOST,
        ],
    )
    @pytest.mark.parametrize(
        ("rest", "prefix"), [("", ""), ("/", ""), ("/run", "run/"), ("/run/input/", "run/input/")]
    )
    def test_it_is_an_arn_and_a_prefix(self, arn, rest, prefix):
        assert parse_s3_uri(f"s3://{arn}{rest}") == (arn, prefix)

    @pytest.mark.parametrize(
        "arn",
        [
            "arn:aws:s3:::bucket",
            "arn:aws:s3:eu-north-1:1:accesspoint/training",
            ARN.rpartition("/")[0],
            "arn:",
        ],
    )
    def test_another_arn_is_refused_with_the_form(self, arn):
        with pytest.raises(
            BackendNotFoundError, match=r"Write s3://arn:aws:s3:region:account:accesspoint/name"
        ):
            parse_s3_uri(f"s3://{arn}")
