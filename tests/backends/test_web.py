"""A store behind a web server is read as it is, whatever the server does with ranges."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
from pathlib import Path

import pytest

from input_checkpoint import (
    BackendError,
    BackendPermissionError,
    BackendUnavailableError,
    CheckpointStore,
    IteratorState,
    ObjectNotFoundError,
    open_backend,
)
from tests.support.answering_server import Answer, answering, unused_port
from tests.support.misbehaving_server import misbehaving
from tests.support.serving import serving

ELEMENTS = [(b"slot %d" % slot, os.urandom(50_000)) for slot in range(40)]
CONTENT = bytes(range(10))


class WholeFiles(http.server.SimpleHTTPRequestHandler):
    """Ignores ranges, as this class of Python does."""

    def log_message(self, *_):
        pass


class WithRanges(WholeFiles):
    """Answers ranges."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = wanted.partition("=")[2].split("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self.answer(206, part, f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")

    def answer(self, status, body, content_range):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)


class ShortRanges(WithRanges):
    """Leaves out the last byte of every range."""

    def answer(self, status, body, content_range):
        super().answer(status, body[:-1], content_range)


class LongRanges(WithRanges):
    """Adds a byte to every range."""

    def answer(self, status, body, content_range):
        super().answer(status, body + b"!", content_range)


class WithoutSizes(WholeFiles):
    """Does not say how large a file is."""

    def send_header(self, keyword, value):
        if keyword.lower() != "content-length":
            super().send_header(keyword, value)


@pytest.fixture
def serve(tmp_path):
    with contextlib.ExitStack() as servers:

        def start(handler) -> str:
            server = http.server.ThreadingHTTPServer(
                ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path))
            )
            servers.enter_context(serving(server))
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.mark.parametrize("handler", [WholeFiles, WithRanges])
@pytest.mark.parametrize("chain", ["", "dir::"])
def test_a_store_is_read_right(tmp_path, serve, handler, chain):
    store = CheckpointStore.open(str(tmp_path / "run"), create=True)
    run = store.begin_run("main")
    run.save(10, [IteratorState("Iterator", ELEMENTS)])
    info = run.save(20, [IteratorState("Iterator", ELEMENTS[20:])])
    read = CheckpointStore.open(f"{chain}{serve(handler)}/run")
    assert read.checkpoints()[-1] == info
    assert [state.in_order() for state in read.load(info)] == [ELEMENTS[20:]]
    assert read.verify().problems == {}


@pytest.mark.parametrize("handler", [WholeFiles, WithRanges, WithoutSizes])
@pytest.mark.parametrize(
    ("start", "end"), [(0, None), (0, 3), (3, 5), (3, 100), (7, None), (5, 5), (10, 20), (50, 60), (9, 10)]
)
def test_every_range_is_a_slice(tmp_path, serve, handler, start, end):
    (tmp_path / "key").write_bytes(CONTENT)
    assert open_backend(serve(handler)).get("key", start, end) == CONTENT[start:end]


@pytest.mark.parametrize(("handler", "received"), [(ShortRanges, 3), (LongRanges, 5)])
def test_a_range_that_is_neither_whole_nor_right_is_an_error(tmp_path, serve, handler, received):
    (tmp_path / "key").write_bytes(CONTENT)
    with pytest.raises(BackendUnavailableError, match=f"asked for bytes 3 to 7 of 10, got {received} bytes"):
        open_backend(serve(handler)).get("key", 3, 7)


@pytest.mark.parametrize(("start", "end"), [(0, None), (3, 5), (5, 5)])
class TestErrors:
    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (403, BackendPermissionError),
            (404, ObjectNotFoundError),
            (429, BackendUnavailableError),
            (451, BackendError),
            (503, BackendUnavailableError),
        ],
    )
    def test_an_answer_without_the_object(self, status, error, start, end):
        with answering(Answer(status)) as url, pytest.raises(BackendError) as raised:
            open_backend(url).get("key", start, end)
        assert type(raised.value) is error

    def test_an_answer_that_is_not_http_is_no_refusal(self, start, end):
        def answer(connection):
            connection.recv(65536)
            connection.sendall(b"not a status line\r\n\r\n")

        with misbehaving(answer) as port, pytest.raises(BackendUnavailableError):
            open_backend(f"http://127.0.0.1:{port}").get("key", start, end)

    def test_a_server_that_is_down_does_not_mean_that_the_object_is_missing(self, start, end):
        with pytest.raises(BackendUnavailableError):
            open_backend(f"http://127.0.0.1:{unused_port()}").get("key", start, end)


@pytest.mark.parametrize(
    ("status", "error"), [(403, BackendPermissionError), (451, BackendError), (503, BackendUnavailableError)]
)
def test_a_listing_that_the_server_refuses_is_an_error(status, error):
    with answering(Answer(status)) as url, pytest.raises(BackendError) as raised:
        list(open_backend(url).list())
    assert type(raised.value) is error
