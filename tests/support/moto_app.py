"""moto's S3 server, made to keep the promise that the tests are about.

moto asks whether a key is there and then stores the object, so two of its threads can both answer that they
created it. S3 makes a conditional write atomic
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html); real servers are raced in
``integration/``.

``python -m tests.support.moto_app PORT`` runs it as a process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any, Callable

import waitress
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

_THREADS = 16
_LARGEST_BODY = 8 << 30


class OneConditionalWriteAtATime:
    """WSGI middleware: writes with a condition follow one another, everything else runs in parallel."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        if "HTTP_IF_NONE_MATCH" not in environ or environ["REQUEST_METHOD"] != "PUT":
            return self._app(environ, start_response)
        with self._turn:
            return self._app(environ, start_response)


def make_moto_server(port: int = 0) -> BaseWSGIServer:
    """Return the server, bound to a loopback port (0: a free one) and not yet serving."""
    return make_server("127.0.0.1", port, _app(), threaded=True)


def serve(port: int) -> None:
    """Serve until the process ends, many requests a connection as S3 does; werkzeug closes it after each."""
    waitress.serve(
        _app(),
        host="127.0.0.1",
        port=port,
        threads=_THREADS,
        # In memory, as everything else that moto has.
        inbuf_overflow=_LARGEST_BODY,
        outbuf_overflow=_LARGEST_BODY,
        max_request_body_size=_LARGEST_BODY,
    )


def _app() -> OneConditionalWriteAtATime:
    return OneConditionalWriteAtATime(DomainDispatcherApplication(create_backend_app))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
