"""moto's S3 server with atomic conditional writes, lists and deletes.

moto checks whether a key exists and then stores the object, so two of its threads can both report that they
created it. S3 makes conditional writes atomic
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). The tests in
``integration/`` race writers on real servers. A list also fails with 500 if an object is deleted meanwhile.

``python -m tests.support.moto_app PORT`` runs the server as a process.
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
_MAX_BODY_BYTES = 8 << 30


class SerializeWhatRaces:
    """WSGI middleware that serializes conditional writes, lists and deletes. The rest runs in parallel."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        if not _races(environ):
            return self._app(environ, start_response)
        with self._lock:
            return self._app(environ, start_response)


def _races(environ: dict[str, Any]) -> bool:
    method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
    if method == "PUT":
        return "HTTP_IF_NONE_MATCH" in environ
    return method == "DELETE" or "list-type=2" in query or (method == "POST" and query.startswith("delete"))


def make_moto_server(port: int = 0) -> BaseWSGIServer:
    """Return a server that is bound to a loopback port and does not serve yet. Port 0 means a free port."""
    return make_server("127.0.0.1", port, _app(), threaded=True)


def serve(port: int) -> None:
    """Serve until the process ends. Unlike werkzeug, and like S3, waitress keeps connections open."""
    waitress.serve(
        _app(),
        host="127.0.0.1",
        port=port,
        threads=_THREADS,
        # Buffer bodies in memory, where moto keeps all objects anyway.
        inbuf_overflow=_MAX_BODY_BYTES,
        outbuf_overflow=_MAX_BODY_BYTES,
        max_request_body_size=_MAX_BODY_BYTES,
    )


def _app() -> SerializeWhatRaces:
    return SerializeWhatRaces(DomainDispatcherApplication(create_backend_app))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
