"""A server that answers what a test tells it to, for what the emulator never does."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    method: str
    path: str
    """Unquoted."""
    query: dict[str, str]
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes
    """All of it; half of it where it is about to be decided whether to hang up."""


@dataclass(frozen=True)
class Said:
    """An answer."""

    status: int
    body: bytes = b""
    location: str = ""
    """Where a redirect leads."""


HANG_UP = Said(0)
"""No answer: the connection is closed when half of the request's body has been read."""

Script = Callable[[Asked], Said]


@dataclass
class ScriptedServer:
    """Where the server is, and what it was asked."""

    url: str
    asked: list[Asked] = field(default_factory=list)

    def options(self, **more: Any) -> dict[str, Any]:
        """storage_options for it."""
        return {"endpoint_url": self.url, "token": "anon", **more}


def resource(**fields: Any) -> Said:
    """Return the answer that gives a resource of the JSON API."""
    return Said(200, json.dumps(fields).encode())


def refusal(status: int, reason: str, message: str) -> Said:
    """Return the answer that gives an error.

    Its form: https://cloud.google.com/storage/docs/json_api/v1/status-codes
    """
    errors = [{"domain": "global", "reason": reason, "message": message}]
    return Said(
        status, json.dumps({"error": {"code": status, "message": message, "errors": errors}}).encode()
    )


@contextlib.contextmanager
def scripted_server(script: Script, certificate: Optional[Path] = None) -> Iterator[ScriptedServer]:
    """Run a server that answers each request by ``script``.

    Args:
        script: gives the answer.
        certificate: PEM file with its key, for https.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scripted = ScriptedServer(f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}")
    _Handler.plays[server.server_port] = (script, scripted.asked)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    serving.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
        del _Handler.plays[server.server_port]


class _Server(ThreadingHTTPServer):
    # The default of 5 makes connections that come at once wait for a second.
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    plays: dict[int, tuple[Script, list[Asked]]] = {}  # noqa: RUF012 - one for all servers, by port

    def _play(self) -> None:
        script, asked = self.plays[self.server.server_address[1]]
        length = int(self.headers.get("Content-Length") or 0)
        half = self.rfile.read(length // 2)
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Asked(self.command, unquote(url.path), query, headers, half)
        said = script(request)
        if said is HANG_UP:
            asked.append(request)
            self.close_connection = True
            return
        body = half + self.rfile.read(length - len(half))
        asked.append(Asked(request.method, request.path, query, headers, body))
        self.send_response(said.status)
        self.send_header("Content-Length", str(len(said.body)))
        if said.location:
            self.send_header("Location", said.location)
        self.end_headers()
        self.wfile.write(said.body)

    do_GET = do_POST = do_DELETE = _play  # noqa: N815 - names that http.server looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Say nothing."""
