"""A server with scripted answers, for what the emulator never does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.serving import serving


@dataclass(frozen=True)
class Received:
    """A request that arrived."""

    method: str
    path: str
    """Unquoted."""
    query: dict[str, str]
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes
    """The whole body; the first half of it while the script chooses the reply."""
    connection: tuple[str, int]
    """Address of the client: the same for all requests of one connection."""


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    body: bytes = b""
    location: str = ""
    """Where a redirect leads."""
    headers: Mapping[str, str] = field(default_factory=dict)


HANG_UP = Reply(0)
"""No answer: the connection is closed after half of the request's body."""

Script = Callable[[Received], Reply]


@dataclass
class ScriptedServer:
    """Where the server is, and what it received."""

    url: str
    received: list[Received] = field(default_factory=list)

    def options(self, **more: Any) -> dict[str, Any]:
        """Return storage_options for it."""
        return {"endpoint_url": self.url, "token": "anon", **more}


def resource(**fields: Any) -> Reply:
    """Return the reply with a resource of the JSON API."""
    return Reply(200, json.dumps(fields).encode())


def content(data: bytes, content_range: str = "") -> Reply:
    """Return the reply with an object, or with a range of it."""
    headers = {"X-Goog-Generation": "1", "Content-Type": "application/octet-stream"}
    if content_range:
        return Reply(206, data, headers={**headers, "Content-Range": content_range})
    return Reply(200, data, headers=headers)


def success(request: Received) -> Reply:
    """Return what Cloud Storage replies to any request of the backend: there is one object, with ``data``."""
    if request.method == "DELETE":
        return Reply(204)
    if request.method == "POST":
        name = re.search(rb'"name": "([^"]+)"', request.body)
        assert name
        return resource(kind="storage#object", name=name[1].decode(), generation="1")
    if request.path.endswith("/o"):
        return resource(kind="storage#objects")
    if request.query.get("alt") == "media":
        return content(b"data")
    return resource(name=request.path.partition("/o/")[2])


def refusal(status: int, reason: str, message: str) -> Reply:
    """Return the reply with an error.

    Its form: https://cloud.google.com/storage/docs/json_api/v1/status-codes
    """
    errors = [{"domain": "global", "reason": reason, "message": message}]
    return Reply(
        status, json.dumps({"error": {"code": status, "message": message, "errors": errors}}).encode()
    )


@contextlib.contextmanager
def scripted_server(script: Script, certificate: Optional[Path] = None) -> Iterator[ScriptedServer]:
    """Run a server that answers each request by ``script``.

    Args:
        script: returns the reply to a request.
        certificate: PEM file with certificate and key, for https.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scripted = ScriptedServer(f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}")
    _Handler.scripts[server.server_port] = (script, scripted.received)
    try:
        with serving(server):
            yield scripted
    finally:
        del _Handler.scripts[server.server_port]


class _Server(ThreadingHTTPServer):
    # With the default of 5, connections that arrive together wait for a second.
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    scripts: dict[int, tuple[Script, list[Received]]] = {}  # noqa: RUF012 - of all servers, by port

    def _reply(self) -> None:
        script, received = self.scripts[self.server.server_address[1]]
        length = int(self.headers.get("Content-Length") or 0)
        half = self.rfile.read(length // 2)
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Received(self.command, unquote(url.path), query, headers, half, self.client_address)
        reply = script(request)
        if reply is HANG_UP:
            received.append(request)
            self.close_connection = True
            return
        body = half + self.rfile.read(length - len(half))
        received.append(dataclasses.replace(request, body=body))
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.location:
            self.send_header("Location", reply.location)
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = do_DELETE = _reply  # noqa: N815 - names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Say nothing."""
