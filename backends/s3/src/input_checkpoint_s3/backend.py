"""S3 through s3fs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import s3fs
from botocore.handlers import add_expect_header

from input_checkpoint.backends.answers import PageChain
from input_checkpoint.backends.base import Backend, ObjectInfo
from input_checkpoint.backends.engines import FSSPEC, OBSTORE, choose_engine
from input_checkpoint.backends.object_store import ObjectStoreBackend, Operation
from input_checkpoint.backends.time_limits import Deadline, TimeLimits, run_in_loop
from input_checkpoint.errors import BackendError
from input_checkpoint_s3.answers import (
    ETAG,
    check_stored,
    check_stored_as,
    failed_deletes,
    listed_objects,
    next_page_token,
    object_bytes,
)
from input_checkpoint_s3.conditional_writes import check_client_sends_conditions
from input_checkpoint_s3.errors import objects_not_deleted, translate
from input_checkpoint_s3.obstore_engine import open_with_obstore
from input_checkpoint_s3.time_limits import read_options
from input_checkpoint_s3.uri import parse_s3_uri

_OPENING_SECONDS = 10.0
"""Time to open a client, if `timeout` is shorter: botocore reads its models, however little is sent."""

_RETRIES = 2
_CONNECTION = {"max_pool_connections": 32, "retries": {"mode": "standard", "max_attempts": 2}}
"""The user's config_kwargs take precedence."""
_RECEIVED_BLOCK = 1 << 20


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
            storage class), …; and the time limits, see `input_checkpoint.backends.time_limits`.

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
        self._limits = read_options(uri, storage_options)[0]
        self.connect()

    def open_client(self) -> s3fs.S3FileSystem:
        """See `ObjectStoreBackend.open_client`."""
        # Read again, because fsspec's configuration may hold renewed credentials.
        limits, options = read_options(self.uri, self._storage_options)
        filesystem = s3fs.S3FileSystem(**_filesystem_options(options, limits))
        opening = replace(limits, timeout=max(limits.timeout, _OPENING_SECONDS))
        with opening.start().enforced_by_fsspec() as seconds:
            filesystem.connect(timeout=seconds)
        check_client_sends_conditions(filesystem.s3, self.uri)
        _disable_expect_header(filesystem.s3)
        # s3fs retries on top of botocore. Both together must fail within seconds.
        filesystem.retries = _RETRIES
        return filesystem

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """See `ObjectStoreBackend.upload`."""
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        answer = self._call("put_object", size=len(data), Key=name, Body=data, **condition)
        check_stored(answer)
        if not ETAG.fullmatch(answer["ETag"]):
            check_stored_as(answer, self._call("head_object", Key=name), len(data))

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """See `ObjectStoreBackend.download`."""
        arguments: dict[str, Any] = {"Key": name}
        if start > 0 or end is not None:
            arguments["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        deadline = self._limits.start()
        answer = self._call("get_object", **arguments)
        body = run_in_loop(self.client.loop, lambda: _read(answer["Body"], deadline), deadline)
        return object_bytes(answer, body, start, end)

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStoreBackend.list_objects`."""
        query: dict[str, Any] = {"Prefix": prefix}
        pages = PageChain("ListObjectsV2")
        while True:
            page = self._call("list_objects_v2", **query)
            found = listed_objects(page, self._bucket, prefix)
            yield from found
            token = next_page_token(page)
            if token is None:
                return
            query["ContinuationToken"] = pages.follow(token, len(found))

    def delete_objects(self, names: Sequence[str]) -> None:
        """See `ObjectStoreBackend.delete_objects`."""
        # Not quiet: an answer without fields would mean that everything was deleted.
        objects = {"Objects": [{"Key": name} for name in names], "Quiet": False}
        failed = failed_deletes(self._call("delete_objects", Delete=objects), names)
        if failed:
            raise self._not_deleted(failed)

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """See `ObjectStoreBackend.translate_error`."""
        return translate(error, operation)

    def _call(self, method: str, /, *, size: int = 0, **arguments: Any) -> Any:
        """Send one request.

        Args:
            method: of botocore's client.
            size: bytes that the request sends.
            arguments: of the method.
        """
        with self._limits.start(size).enforced_by_fsspec() as seconds:
            # fsspec takes the timeout: it is not an argument of the request.
            return self.client.call_s3(method, Bucket=self._bucket, timeout=seconds, **arguments)

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


async def _read(body: Any, deadline: Deadline) -> bytes:
    blocks = []
    try:
        while block := await body.read(_RECEIVED_BLOCK):
            deadline.extend(len(block))
            blocks.append(block)
    finally:
        body.close()
    return b"".join(blocks)


def _filesystem_options(options: Mapping[str, Any], limits: TimeLimits) -> dict[str, Any]:
    timeouts = {"connect_timeout": limits.connect, "read_timeout": limits.timeout}
    config = {**_CONNECTION, **timeouts, **(options.get("config_kwargs") or {})}
    # A cached instance would have the old credentials, and a cached listing the old objects.
    return {**options, "config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True}


def _disable_expect_header(client: Any) -> None:
    """Send bodies without waiting for ``100 Continue``.

    botocore asks for it on every put, and aiohttp waits for it without a timeout: a server that accepts a
    connection and then hangs would block a save forever.
    """
    client.meta.events.unregister("before-call.s3", add_expect_header)
