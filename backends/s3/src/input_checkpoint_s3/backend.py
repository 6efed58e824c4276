"""S3 through s3fs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import s3fs
from botocore.handlers import add_expect_header
from fsspec.config import apply_config

from input_checkpoint.backends.base import Backend, ObjectInfo
from input_checkpoint.backends.engines import FSSPEC, OBSTORE, choose_engine
from input_checkpoint.backends.object_store import ObjectStoreBackend, Operation
from input_checkpoint.errors import BackendError
from input_checkpoint_s3.errors import objects_not_deleted, translate
from input_checkpoint_s3.obstore_engine import open_with_obstore
from input_checkpoint_s3.uri import parse_s3_uri

_RETRIES = 2

_CONNECTION = {
    "connect_timeout": 5,
    "read_timeout": 60,
    "max_pool_connections": 32,
    "retries": {"mode": "standard", "max_attempts": 2},
}
"""Fails within seconds if a server cannot be reached. The user's config_kwargs take precedence."""


class S3Backend(ObjectStoreBackend):
    """A prefix of an S3 bucket, on AWS or any server that supports conditional writes.

    `create` is one PutObject with ``If-None-Match: *``, which S3 makes atomic
    (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). A multipart upload is
    never used: not every server checks the condition on it (on Ceph 16.2 every writer wins), and one that is
    interrupted leaves parts behind that no listing shows and that cost money.

    Args:
        uri: ``s3://bucket/prefix``. The ARN of an access point may take the place of the bucket.
        storage_options: for `s3fs.S3FileSystem`: ``key``, ``secret``, ``token``, ``profile``,
            ``endpoint_url``, ``client_kwargs``, ``config_kwargs``, ``s3_additional_kwargs`` (encryption,
            storage class), …

    Example:
        ```python
        backend = S3Backend("s3://bucket/run-7/input", {"endpoint_url": "http://127.0.0.1:9000"})
        ```
    """

    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    max_keys_per_delete = 1000

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        self._bucket, prefix = parse_s3_uri(uri)
        super().__init__(uri, prefix, storage_options=storage_options)
        self._storage_options = storage_options
        self.connect()

    def open_client(self) -> s3fs.S3FileSystem:
        """See `ObjectStoreBackend.open_client`."""
        filesystem = s3fs.S3FileSystem(**_filesystem_options(self._storage_options))
        filesystem.connect()
        _disable_expect_header(filesystem.s3)
        # s3fs retries on top of botocore. Both together must fail within seconds.
        filesystem.retries = _RETRIES
        return filesystem

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """See `ObjectStoreBackend.upload`."""
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        self.client.call_s3("put_object", Bucket=self._bucket, Key=name, Body=data, **condition)

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """See `ObjectStoreBackend.download`."""
        # Without a start, s3fs would first request the size.
        return bytes(self.client.cat_file(f"{self._bucket}/{name}", start=start, end=end))

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStoreBackend.list_objects`."""
        query: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix}
        while True:
            page = self.client.call_s3("list_objects_v2", **query)
            for entry in page.get("Contents", ()):
                yield ObjectInfo(entry["Key"], entry["Size"], entry["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete_objects(self, names: Sequence[str]) -> None:
        """See `ObjectStoreBackend.delete_objects`."""
        objects = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        answer = self.client.call_s3("delete_objects", Bucket=self._bucket, Delete=objects)
        # A bulk delete answers 200 and lists the objects that it did not delete.
        failed = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
        if failed:
            raise self._not_deleted(failed)

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """See `ObjectStoreBackend.translate_error`."""
        return translate(error, operation)

    def _not_deleted(self, failed: Sequence[Mapping[str, str]]) -> BackendError:
        first = failed[0]
        return objects_not_deleted(
            Operation("delete", self.uri),
            str(len(failed)),
            first.get("Key", ""),
            first.get("Code", ""),
            first.get("Message", ""),
        )


def open_s3(uri: str, storage_options: Mapping[str, Any]) -> Backend:
    """Open ``s3://bucket/prefix`` or ``s3a://bucket/prefix``.

    Args:
        uri: of a prefix of a bucket.
        storage_options: ``engine`` is ``"fsspec"`` (the default: `S3Backend`, through s3fs) or ``"obstore"``.
            All other options are those of s3fs, for both engines.
    """
    engine, options = choose_engine(uri, storage_options, (FSSPEC, OBSTORE))
    if engine == OBSTORE:
        return open_with_obstore(uri, options, lambda: S3Backend(uri, options))
    return S3Backend(uri, options)


def _filesystem_options(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    options = apply_config(s3fs.S3FileSystem, storage_options)
    config = {**_CONNECTION, **(options.get("config_kwargs") or {})}
    # A cached instance would have the old credentials, and a cached listing the old objects.
    return {**options, "config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True}


def _disable_expect_header(client: Any) -> None:
    """Send bodies without waiting for ``100 Continue``.

    botocore asks for it on every put, and aiohttp waits for it without a timeout: a server that accepts a
    connection and then hangs would block a save forever.
    """
    client.meta.events.unregister("before-call.s3", add_expect_header)
