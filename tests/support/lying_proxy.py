"""A proxy before a server of a storage that does not always say the truth."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Optional
from urllib.parse import urlsplit

from tests.support.serving import serving

_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(frozen=True)
class Request:
    """A request that arrived at the proxy."""

    method: str
    path: str
    """With the query."""
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def but(self, body: Optional[bytes] = None, **headers: Optional[str]) -> Reply:
        """Return it with another body, and other headers. A header that is None is removed."""
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        merged = {**{name.lower(): value for name, value in self.headers.items()}, **changed}
        kept = {name: value for name, value in merged.items() if value is not None}
        return replace(self, body=self.body if body is None else body, headers=kept)


Answerer = Callable[[Request, Callable[[], Reply]], Reply]
"""Returns the answer to a request. Its second argument asks the server."""


def truth(request: Request, ask: Callable[[], Reply]) -> Reply:
    """Answer as the server does."""
    return ask()


class LyingProxy:
    """Where the proxy is, and how it answers.

    Attributes:
        answer: how it answers; the truth at first.
        asked: the requests that have arrived.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answer: Answerer = truth
        self.asked: list[Request] = []

    @contextlib.contextmanager
    def lying(self, answer: Answerer) -> Iterator[None]:
        """Answer in another way for a while."""
        self.answer = answer
        try:
            yield
        finally:
            self.answer = truth


@contextlib.contextmanager
def lying_proxy(server_url: str) -> Iterator[LyingProxy]:
    """Run a proxy before a server."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.upstream = urlsplit(server_url).netloc
    server.proxy = LyingProxy(server.server_port)
    with serving(server):
        yield server.proxy


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    upstream: str
    proxy: LyingProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        proxy = self.server.proxy
        proxy.asked.append(request)
        reply = proxy.answer(request, lambda: _ask(self.server.upstream, request))
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 204 and "content-length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _reply  # noqa: N815 - names of http.server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        pass


def _ask(upstream: str, request: Request) -> Reply:
    connection = http.client.HTTPConnection(upstream)
    try:
        sent = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        connection.request(request.method, request.path, request.body, sent)
        answer = connection.getresponse()
        body = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        dropped = _HOP_BY_HOP - {"content-length"} if request.method == "HEAD" else _HOP_BY_HOP
        return Reply(
            answer.status, body, {name: value for name, value in headers.items() if name not in dropped}
        )
    finally:
        connection.close()
