"""A temporary S3 server on a free loopback port, in this process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer

BUCKET = "demo"


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, Any]]:
    """Run the server with one empty bucket. Yield the ``storage_options`` for it."""
    # It would log every request to the terminal.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "key": "demo",
            "secret": "demo",
            "endpoint_url": f"http://{host}:{port}",
            "client_kwargs": {"region_name": "eu-west-1"},
        }
        s3fs.S3FileSystem(**options).mkdir(BUCKET)
        yield options
    finally:
        server.stop()
