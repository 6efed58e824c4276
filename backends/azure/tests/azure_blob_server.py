"""A small Blob Storage on loopback: one container in memory, which a shared access signature opens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.serving import serving

_MODIFIED = "Tue, 24 Nov 2026 12:00:00 GMT"
_PATH = "/account/container"


class BlobServer:
    """The server, and the signature that it accepts now."""

    def __init__(self, port: int) -> None:
        self.signature = "first"
        self.blobs: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{port}"
        self._endpoint = f"DefaultEndpointsProtocol=http;BlobEndpoint={self.url}/account;"

    def connection_string(self, signature: str) -> str:
        """Return the connection string that logs in with a signature."""
        return f"{self._endpoint}AccountName=account;SharedAccessSignature=sv=2024-11-04&sig={signature}"

    def options(self) -> dict[str, Any]:
        """Return storage_options with the signature that is accepted now."""
        return {"connection_string": self.connection_string(self.signature)}


@contextlib.contextmanager
def blob_server() -> Iterator[BlobServer]:
    """Run a server."""
    server = _Server(("127.0.0.1", 0), _Handler)
    with serving(server):
        yield server.state


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.state = BlobServer(self.server_port)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _reply(self) -> None:
        assert isinstance(self.server, _Server)
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        name = unquote(url.path)[len(_PATH) :].lstrip("/")
        if query.get("sig") != state.signature:
            self._refuse(403, "AuthenticationFailed")
        elif query.get("comp") == "list":
            self._answer(200, _listing(state, query.get("prefix", "")), {"Content-Type": "application/xml"})
        elif self.command == "PUT":
            self._put(state, name, body)
        elif name not in state.blobs:
            self._refuse(404, "BlobNotFound")
        elif self.command == "DELETE":
            del state.blobs[name]
            self._answer(202)
        else:
            self._get(state.blobs[name])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _reply  # noqa: N815 - names of http.server

    def _put(self, state: BlobServer, name: str, body: bytes) -> None:
        if self.headers.get("If-None-Match") == "*" and name in state.blobs:
            self._refuse(409, "BlobAlreadyExists")
            return
        state.blobs[name] = body
        self._answer(201)

    def _get(self, data: bytes) -> None:
        header = self.headers.get("x-ms-range") or self.headers.get("Range")
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
        if not match:
            self._answer(200, data)
            return
        start, end = int(match[1]), min(int(match[2] or len(data)) + 1, len(data))
        self._answer(206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>the message</Message></Error>".encode()
        self._answer(status, body, {"Content-Type": "application/xml", "x-ms-error-code": code})

    def _answer(self, status: int, body: bytes = b"", headers: Any = ()) -> None:
        self.send_response(status)
        always = {
            "ETag": '"1"',
            "Last-Modified": _MODIFIED,
            "x-ms-request-id": "1",
            "x-ms-version": "2024-11-04",
        }
        for name, value in {**always, **dict(headers)}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        pass


def _listing(state: BlobServer, prefix: str) -> bytes:
    blobs = "".join(
        f"<Blob><Name>{name}</Name><Properties><Last-Modified>{_MODIFIED}</Last-Modified><Etag>1</Etag>"
        f"<Content-Length>{len(data)}</Content-Length><BlobType>BlockBlob</BlobType>"
        "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        for name, data in sorted(state.blobs.items())
        if name.startswith(prefix)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="container">'
        f"<Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
    ).encode()
