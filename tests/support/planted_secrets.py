"""Servers that repeat what they are asked, and everything that an error shows."""

from __future__ import annotations

import contextlib
import html
import json
import logging
import pickle
import traceback
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, Optional
from urllib.parse import parse_qsl, urlsplit

from tests.support.serving import serving

PRESIGNED = "http://127.0.0.1:1/run?X-Amz-Credential=AKIAELSEWHERE&X-Amz-Signature=signedELSEWHERE1"


class EchoServer:
    """Answers every request with an error that repeats the request, in one of several formats."""

    def __init__(self, style: str, status: int) -> None:
        self.style = style
        self.status = status
        self.secrets: set[str] = set()
        """What the requests carried: tokens and signatures."""
        self.url = ""

    def body(self, request: str) -> bytes:
        """Return the body of an answer to a request."""
        text = {
            "plain": request,
            "page": f"<html><p>bad request: {html.escape(request)}</p></html>",
            "one line": f"denied: {request!r}",
            "s3": f"<Error><Code>SignatureDoesNotMatch</Code><Message>We got {html.escape(request)}</Message>"
            f"<StringToSign>{html.escape(request)}</StringToSign></Error>",
            "azure": "<Error><Code>InvalidHeaderValue</Code><Message>We got "
            f"{html.escape(request)}</Message></Error>",
            "gcs": json.dumps({"error": {"errors": [{"reason": "invalid"}], "message": f"We got {request}"}}),
        }[self.style]
        return text.encode()

    def note(self, path: str, headers: Iterable[tuple[str, str]]) -> None:
        """Remember the secrets in a request."""
        for name, value in headers:
            if name.lower() in ("authorization", "x-amz-security-token"):
                self.secrets.add(value.rpartition("Signature=")[2].rpartition(" ")[2].rpartition(":")[2])
        self.secrets |= {value for name, value in parse_qsl(urlsplit(path).query) if name == "sig"}


@contextlib.contextmanager
def echoing(style: str, status: int) -> Iterator[EchoServer]:
    """Run an `EchoServer` at ``url``."""
    echo = EchoServer(style, status)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            echo.note(self.path, self.headers.items())
            lines = [f"{name}: {value}" for name, value in self.headers.items()]
            body = echo.body("\n".join([f"{self.command} {self.path}", *lines]))
            self.send_response(echo.status)
            self.send_header("Content-Length", str(len(body)))
            if 300 <= echo.status < 400:
                self.send_header("Location", PRESIGNED)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = reply  # noqa: N815 - names from http.server

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    echo.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield echo


def everything_shown(error: BaseException) -> str:
    """Return all text that an error, its attributes and its chain of causes can show."""
    parts = ["".join(traceback.format_exception(type(error), error, error.__traceback__))]
    parts.append(pickle.dumps(error).decode("latin-1"))
    chain: list[Optional[BaseException]] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        parts += [str(each), repr(each), repr(each.args), repr(vars(each))]
        chain += [each.__cause__, each.__context__]
    return "\n".join(parts)


@contextlib.contextmanager
def our_log() -> Iterator[list[str]]:
    """Collect what our loggers say, at every level, with their tracebacks."""
    said: list[str] = []
    formatter = logging.Formatter()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("input_checkpoint"):
                said.append(f"{formatter.format(record)} {record.args!r}")

    listener, root = Listener(logging.DEBUG), logging.getLogger()
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.removeHandler(listener)
        root.setLevel(level)


def attempt(work: Callable[[], object]) -> tuple[Optional[BaseException], str]:
    """Return the error of ``work``, if any, and everything that it and the log have shown."""
    error: Optional[BaseException] = None
    with our_log() as said:
        try:
            work()
        except BaseException as raised:
            error = raised
    return error, "\n".join([*said, everything_shown(error) if error else ""])
