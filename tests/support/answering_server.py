"""Faulty loopback servers: one that gives the same answer to all requests, and one that never answers."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Optional

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.serving import serving


@dataclass(frozen=True)
class Answer:
    """The answer of the server to every request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def answering(answer: Optional[Answer], certificate: Optional[Path] = None) -> Iterator[str]:
    """Run a server that gives the same answer to every request; yield its URL.

    Args:
        answer: the answer. None closes the connection in the middle of the request body.
        certificate: PEM file with a key. The server then speaks HTTPS.
    """
    handler = type("Handler", (_Handler,), {"answer": answer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with serving(server):
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"


@contextlib.contextmanager
def mute_server() -> Iterator[int]:
    """Run a server that accepts connections and never answers; yield its port."""
    accepted: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                accepted.append(listener.accept()[0])
            except OSError:
                return

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for connection in accepted:
            connection.close()


def unused_port() -> int:
    """Return a port on which no server listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def write_self_signed_certificate(path: Path) -> None:
    """Write a certificate for 127.0.0.1 that no client trusts, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))


class _Handler(BaseHTTPRequestHandler):
    answer: Optional[Answer]
    protocol_version = "HTTP/1.1"

    def _reply(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.answer is None:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.rfile.read(length)
        self.send_response(self.answer.status)
        for name, value in self.answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.answer.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _reply  # noqa: N815 - names from http.server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        """Log nothing."""
