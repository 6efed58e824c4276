"""Objects in an S3 bucket, on AWS or any server that knows conditional writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

import s3fs
from botocore.handlers import add_expect_header

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.engines import FSSPEC, OBSTORE, chosen_engine
from input_checkpoint.errors import BackendError, BackendPermissionError
from input_checkpoint_s3.errors import error_code, translate
from input_checkpoint_s3.obstore_engine import open_with_obstore
from input_checkpoint_s3.place import bucket_and_prefix

_MAX_KEYS_PER_DELETE = 1000  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
_PAST_THE_END = ("InvalidRange", "416")
_RETRIES = 2

_CONNECTION = {
    "connect_timeout": 5,
    "read_timeout": 60,
    "max_pool_connections": 32,
    "retries": {"mode": "standard", "max_attempts": 2},
}
"""Bounded so that an unreachable server is an error within seconds; the user's config_kwargs come on top."""


class S3Backend(Backend):
    """A prefix of an S3 bucket.

    `create` is one PutObject with ``If-None-Match: *``, which S3 makes atomic
    (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). Nothing is ever a
    multipart upload: not every server checks the condition there (Ceph 16.2 lets all writers win), and one
    that breaks off leaves parts that nobody sees and everybody pays for.

    Args:
        uri: ``s3://bucket/prefix``.
        storage_options: for `s3fs.S3FileSystem`: ``key``, ``secret``, ``token``, ``profile``,
            ``endpoint_url``, ``client_kwargs``, ``config_kwargs``, ``s3_additional_kwargs`` (encryption,
            storage class), …

    Example:
        ```python
        backend = S3Backend("s3://bucket/run-7/input", {"endpoint_url": "http://127.0.0.1:9000"})
        ```
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        self._bucket, self._prefix = bucket_and_prefix(uri)
        options = dict(storage_options)
        config = {**_CONNECTION, **options.pop("config_kwargs", {})}
        self._fs = s3fs.S3FileSystem(
            use_listings_cache=False, skip_instance_cache=True, config_kwargs=config, **options
        )
        with self._errors("open", ""):
            self._fs.connect()
        _send_without_asking(self._fs.s3)
        # s3fs repeats on top of botocore; both together must stay within seconds.
        self._fs.retries = _RETRIES

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._call("create", key, "put_object", Body=bytes(data), IfNoneMatch="*")

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._call("write", key, "put_object", Body=bytes(data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        if end is not None and end <= start:
            self._call("read", key, "head_object")
            return b""
        path = f"{self._bucket}/{self._name(key)}"
        with self._errors("read", key):
            try:
                # A range, even for the whole: s3fs then asks once, and not for the size first.
                return bytes(self._fs.cat_file(path, start=start, end=end))
            except OSError as error:
                if error_code(error) in _PAST_THE_END:
                    return b""
                raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        query: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            with self._errors("list", prefix):
                page = self._fs.call_s3("list_objects_v2", **query)
            for entry in page.get("Contents", ()):
                key = entry["Key"][len(self._prefix) :]
                yield ObjectInfo(key, entry["Size"], entry["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        names = [self._name(key) for key in keys]
        for start in range(0, len(names), _MAX_KEYS_PER_DELETE):
            objects = [{"Key": name} for name in names[start : start + _MAX_KEYS_PER_DELETE]]
            with self._errors("delete", ""):
                answer = self._fs.call_s3(
                    "delete_objects",
                    Bucket=self._bucket,
                    Delete={"Objects": objects, "Quiet": True},
                )
            self._check_deleted(answer.get("Errors", []))

    def _check_deleted(self, errors: Sequence[Mapping[str, Any]]) -> None:
        # A bulk delete answers 200 and lists what it did not do.
        failed = [error for error in errors if error.get("Code") != "NoSuchKey"]
        if not failed:
            return
        first = failed[0]
        cls = BackendPermissionError if first.get("Code") == "AccessDenied" else BackendError
        raise cls(
            f"cannot delete {len(failed)} objects in {self.uri}, {first.get('Key')} for one: "
            f"{first.get('Code')}: {first.get('Message')}. The key needs s3:DeleteObject there."
        )

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _call(self, operation: str, key: str, method: str, **arguments: Any) -> Any:
        name = self._name(key)
        with self._errors(operation, key):
            return self._fs.call_s3(method, Bucket=self._bucket, Key=name, **arguments)

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # s3fs lets exceptions of botocore, aiohttp and asyncio through, which share no base class.
            raise translate(error, operation, self.uri, key) from error


def _send_without_asking(client: Any) -> None:
    """Send bodies without waiting for ``100 Continue``.

    botocore asks for it on every put, and aiohttp waits for the answer without any time-out: a server that
    accepts a connection and then hangs would stop a save for good.
    """
    client.meta.events.unregister("before-call.s3", add_expect_header)


def open_s3(uri: str, storage_options: Mapping[str, Any]) -> Backend:
    """Open ``s3://bucket/prefix`` or ``s3a://bucket/prefix``.

    Args:
        uri: of a place in a bucket.
        storage_options: ``engine`` is ``"fsspec"``, which stands for `S3Backend` over s3fs, or ``"obstore"``.
            The others are s3fs's, whichever engine it is.
    """
    engine, options = chosen_engine(uri, storage_options, (FSSPEC, OBSTORE))
    return open_with_obstore(uri, options) if engine == OBSTORE else S3Backend(uri, options)
