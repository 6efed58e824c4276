"""Objects in a bucket of Google Cloud Storage."""

from __future__ import annotations

import calendar
import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional

# Not `gcsfs.GCSFileSystem`: that is a subclass which first asks a second, gRPC service what kind of bucket
# it is dealing with, waits 60 seconds for it in vain at every emulator and private endpoint, and can be
# had without only by an environment variable for the whole process, GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT.
from gcsfs.core import GCSFileSystem
from google.oauth2.credentials import Credentials

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.engines import FSSPEC, choose_engine
from input_checkpoint.errors import BackendError, BackendNotFoundError, BackendPermissionError
from input_checkpoint_gcs import json_api
from input_checkpoint_gcs.client import GcsClient
from input_checkpoint_gcs.errors import (
    BUCKET_IS_MISSING,
    OBJECT_IS_MISSING,
    GcsError,
    is_unavailable,
    translate,
    translate_open,
)

_PAST_THE_END = 416
_WHOLE = 200
_WAYS_TO_LOG_IN = {"google_default", "cache", "cloud", "token", "anon", "browser"}


class GcsBackend(Backend):
    """A prefix of a bucket.

    `create` is one upload with ``ifGenerationMatch=0``, which Cloud Storage makes atomic
    (https://cloud.google.com/storage/docs/request-preconditions). It is never a resumable upload, as gcsfs
    makes them of 50 MiB and more: there the condition is checked in another request than the one that
    commits, and not every server checks it.

    Args:
        uri: ``gs://bucket/prefix``.
        storage_options: for `gcsfs.GCSFileSystem`: ``token``, ``project``, ``endpoint_url``,
            ``requester_pays``, ``requests_timeout``, ``session_kwargs``, …

    Example:
        ```python
        backend = GcsBackend("gs://bucket/run-7/input", {"token": "/secrets/key.json"})
        ```
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        self._bucket, self._prefix = _bucket_and_prefix(uri, self.uri)
        self._client = GcsClient(_open_filesystem(self.uri, storage_options))

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._upload("create", key, data, only_if_free=True)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._upload("write", key, data, only_if_free=False)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        name = self._name(key)
        nothing = end is not None and end <= start
        # Of no bytes, only whether the object is there.
        request = (
            json_api.look_up(self._bucket, name)
            if nothing
            else json_api.download(self._bucket, name, start, end)
        )
        with self._errors("read", key):
            try:
                answer = self._client.call(request)
            except GcsError as error:
                if error.status == _PAST_THE_END:
                    return b""
                raise self._made_clear(error) from error
        if nothing:
            return b""
        # A server may ignore a range, and then sends everything.
        return answer.body[start:end] if answer.status == _WHOLE else answer.body

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        token: Optional[str] = None
        while True:
            with self._errors("list", prefix):
                request = json_api.page(self._bucket, self._prefix + prefix, token)
                page = self._client.call(request).json()
            for item in page.get("items", ()):
                # The console makes such empty objects to show a folder.
                if not item["name"].endswith("/"):
                    key = item["name"][len(self._prefix) :]
                    yield ObjectInfo(key, int(item["size"]), _seconds(item["timeCreated"]))
            token = page.get("nextPageToken")
            if not token:
                return

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        keys = tuple(keys)
        removals = [json_api.removal(self._bucket, self._name(key)) for key in keys]
        with self._errors("delete", ""):
            failures = self._without_missing_objects(self._client.call_each(removals))
        if not failures:
            return
        # What is unavailable before all else, so that trying again does what can be done.
        place, cause = min(failures.items(), key=lambda failure: not is_unavailable(failure[1]))
        error = translate(cause, "delete", self.uri, keys[place])
        raise type(error)(f"{error} ({len(failures)} of {len(keys)} deletions failed.)") from cause

    def close(self) -> None:
        """See `Backend.close`."""
        self._client.close()

    def _upload(self, operation: str, key: str, data: Data, only_if_free: bool) -> None:
        request = json_api.upload(self._bucket, self._name(key), data, only_if_free)
        with self._errors(operation, key):
            answer = self._client.call(request)
            if "generation" not in answer.json():
                raise GcsError(answer.status, "notAResource", "the answer does not name a stored object")

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Exceptions of aiohttp, asyncio, gcsfs and google-auth come through; they share no base class.
            raise translate(error, operation, self.uri, key) from error

    def _without_missing_objects(self, failures: Mapping[int, Exception]) -> dict[int, Exception]:
        """Leave out what was gone already, but not what is missing because the whole bucket is."""
        clear: Optional[GcsError] = None
        left = {}
        for place, error in failures.items():
            if isinstance(error, GcsError) and error.status == 404:
                clear = clear or self._made_clear(error)
                if clear.reason == OBJECT_IS_MISSING:
                    continue
                error = clear
            left[place] = error
        return left

    def _made_clear(self, error: GcsError) -> GcsError:
        """Return what a 404 on an object is about, the object or its bucket, if it does not say so itself.

        Cloud Storage does say so; emulators do not. A list tells, and takes no right that is not needed
        anyway.
        """
        if error.status != 404 or error.reason:
            return error
        try:
            self._client.call(json_api.page(self._bucket, self._prefix, None, most=1))
        except GcsError as answer:
            return GcsError(404, BUCKET_IS_MISSING, answer.message) if answer.status == 404 else answer
        return GcsError(404, OBJECT_IS_MISSING, error.message)


def open_gcs(uri: str, storage_options: Mapping[str, Any]) -> GcsBackend:
    """Open ``gs://bucket/prefix`` or ``gcs://bucket/prefix``."""
    _, options = choose_engine(uri, storage_options, (FSSPEC,))
    return GcsBackend(uri, options)


def _bucket_and_prefix(uri: str, safe_uri: str) -> tuple[str, str]:
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if "@" in bucket or ":" in bucket or "?" in uri or "#" in uri:
        raise BackendNotFoundError(
            f"{safe_uri}: credentials and options do not belong into the URI. Write gs://bucket/prefix, and "
            "pass storage_options or use Google's own configuration."
        )
    if not bucket:
        raise BackendNotFoundError(f"{safe_uri} names no bucket. Write gs://bucket/prefix.")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


def _open_filesystem(safe_uri: str, storage_options: Mapping[str, Any]) -> GCSFileSystem:
    options = dict(storage_options)
    endpoint = options.get("endpoint_url")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise BackendError(f"cannot open {safe_uri}: endpoint_url must begin with http:// or https://")
    if "token" in options:  # otherwise fsspec's configuration may name one
        options["token"] = _token(safe_uri, options["token"])
    try:
        return GCSFileSystem(**{**options, "use_listings_cache": False, "skip_instance_cache": True})
    except Exception as error:
        # Of requests, google-auth, json or cryptography, which share no base class.
        problem = translate_open(error, safe_uri)
    # Out here it has no context: see translate_open.
    raise problem


def _token(safe_uri: str, token: Any) -> Any:
    """Return what gcsfs is to be given as ``token``.

    A plain access token becomes a credentials object. Of a string gcsfs asks Google first, over the
    Internet and with the token in the URL, how long it lives; endpoints of one's own know nothing of that.
    """
    if not isinstance(token, str) or token in _WAYS_TO_LOG_IN or os.path.exists(token):
        return token
    if token.endswith(".json") or token.startswith(("/", "~", ".")):
        raise BackendPermissionError(f"cannot open {safe_uri}: token names a file that does not exist")
    return Credentials(token)  # type: ignore[no-untyped-call]  # google-auth has types for some calls only


def _seconds(timestamp: str) -> float:
    """Return the seconds since the epoch of a timestamp such as ``2026-11-23T02:58:16.472Z``.

    By hand: before Python 3.11 ``fromisoformat`` knows neither the Z nor five decimals.
    """
    whole, _, fraction = timestamp.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")
