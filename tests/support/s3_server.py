"""A loopback S3 server for tests: moto in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3

from tests.support.moto_app import make_moto_server
from tests.support.serving import serving


@dataclass(frozen=True)
class S3Server:
    """URL, bucket and credentials of the server."""

    url: str
    bucket: str

    @property
    def options(self) -> dict[str, Any]:
        """Return storage_options for the server."""
        return {
            "key": "test",
            "secret": "test",
            "endpoint_url": self.url,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def client(self) -> Any:
        """Return a boto3 client of the server."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )


@contextlib.contextmanager
def running_s3_server() -> Iterator[S3Server]:
    """Run a server with one empty bucket."""
    server = make_moto_server()
    with serving(server):
        found = S3Server(f"http://127.0.0.1:{server.port}", "bucket")
        found.client().create_bucket(Bucket=found.bucket)
        yield found
