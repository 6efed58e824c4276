"""Objects in a bucket of Google Cloud Storage."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from input_checkpoint.backends.answers import PageChain
from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.backends.causes import raise_from
from input_checkpoint.backends.engines import FSSPEC, choose_engine
from input_checkpoint.backends.object_store import ObjectStoreBackend, Operation, parse_bucket_uri
from input_checkpoint.errors import BackendError
from input_checkpoint_gcs import json_api
from input_checkpoint_gcs.answers import (
    LIST,
    Answer,
    check_found,
    check_stored,
    is_deletion,
    listed_objects,
    next_page_token,
    object_bytes,
)
from input_checkpoint_gcs.client import GcsClient, Request
from input_checkpoint_gcs.errors import (
    BUCKET_IS_MISSING,
    OBJECT_IS_MISSING,
    GcsError,
    explain,
    is_unavailable,
)
from input_checkpoint_gcs.session import refresh_token
from input_checkpoint_gcs.settings import read_settings


class GcsBackend(ObjectStoreBackend):
    """A prefix of a bucket.

    `create` is one upload with ``ifGenerationMatch=0``, which Cloud Storage makes atomic
    (https://cloud.google.com/storage/docs/request-preconditions). It is never a resumable upload, which gcsfs
    and google-cloud-storage use for large objects: there the condition is sent with another request than the
    one that commits, and not every server checks it.

    Args:
        uri: ``gs://bucket/prefix``.
        storage_options: options of `gcsfs.GCSFileSystem`: ``token``, ``project``, ``endpoint_url``,
            ``requester_pays``, ``requests_timeout``, ``session_kwargs``, …

    Example:
        ```python
        backend = GcsBackend("gs://bucket/run-7/input", {"token": "/secrets/key.json"})
        ```
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        self._bucket, prefix = parse_bucket_uri(
            uri, login="storage_options or Google's own configuration", forbidden="?#"
        )
        super().__init__(uri, prefix, storage_options=storage_options)
        self._storage_options = storage_options
        self.connect()

    def open_client(self) -> GcsClient:
        """See `ObjectStoreBackend.open_client`."""
        settings = read_settings(self.uri, self._storage_options)
        refused: Optional[GcsClient] = self._reopening.opened
        if refused is not None and refused.settings.credentials is settings.credentials:
            # A credentials object in storage_options: it is not looked up anywhere, but may renew its token.
            refresh_token(settings)
        return GcsClient(settings)

    def close_client(self, client: GcsClient) -> None:
        """See `ObjectStoreBackend.close_client`."""
        client.close()

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """See `ObjectStoreBackend.upload`."""
        answer = self.client.call(json_api.upload(self._bucket, name, data, if_absent=if_absent))
        check_stored(answer, name, len(data))

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """See `ObjectStoreBackend.download`."""
        return object_bytes(self._call(json_api.download(self._bucket, name, start, end)), start, end)

    def check_exists(self, name: str) -> None:
        """See `ObjectStoreBackend.check_exists`."""
        check_found(self._call(json_api.look_up(self._bucket, name)), name)

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStoreBackend.list_objects`."""
        pages, token = PageChain(LIST), None
        while True:
            page = self.client.call(json_api.page(self._bucket, prefix, token))
            found = listed_objects(page)
            yield from found
            token = next_page_token(page)
            if token is None:
                return
            pages.follow(token, len(found))

    def delete_objects(self, names: Sequence[str]) -> None:
        """See `ObjectStoreBackend.delete_objects`."""
        failures = self.client.run_each([functools.partial(self._delete, name) for name in names])
        failures = self._without_missing_objects(failures)
        if not failures:
            return
        # Report an unavailable service first, so that the caller tries again.
        index, cause = min(failures.items(), key=lambda failure: not is_unavailable(failure[1]))
        operation = Operation("delete", self.uri, names[index][len(self.prefix) :])
        error = explain(cause, operation)
        error.args = (f"{error} ({len(failures)} of {len(names)} deletions failed.)",)
        raise_from(error, cause)

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """See `ObjectStoreBackend.translate_error`."""
        return explain(error, operation)

    def _delete(self, name: str) -> None:
        answer = self.client.call(json_api.deletion(self._bucket, name))
        if not is_deletion(answer):
            self._check_is_gone(name, answer)

    def _check_is_gone(self, name: str, answer: Answer) -> None:
        """Check that an object is deleted, although the answer is not that of Cloud Storage.

        Emulators answer differently.
        """
        try:
            self.client.call(json_api.look_up(self._bucket, name))
        except GcsError as error:
            if error.status == 404:
                return
            raise
        raise answer.head("objects.delete").unexpected("a deletion")

    def _call(self, request: Request) -> Answer:
        try:
            answer: Answer = self.client.call(request)
        except GcsError as error:
            raise self._with_reason(error) from error
        return answer

    def _without_missing_objects(self, failures: Mapping[int, Exception]) -> dict[int, Exception]:
        """Return the failures without those of objects that were already gone.

        Failures of objects that are missing because the bucket is missing remain.
        """
        reason: Optional[GcsError] = None
        remaining = {}
        for index, error in failures.items():
            if isinstance(error, GcsError) and error.status == 404:
                reason = reason or self._with_reason(error)
                if reason.reason == OBJECT_IS_MISSING:
                    continue
                error = reason
            remaining[index] = error
        return remaining

    def _with_reason(self, error: GcsError) -> GcsError:
        """Return a 404 that says whether the object or its bucket is missing.

        Cloud Storage says so; emulators do not. A list tells, and needs no additional permission.
        """
        if error.status != 404 or error.reason:
            return error
        try:
            self.client.call(json_api.page(self._bucket, self.prefix, None, max_results=1))
        except GcsError as answer:
            return GcsError(404, BUCKET_IS_MISSING, answer.message) if answer.status == 404 else answer
        return GcsError(404, OBJECT_IS_MISSING, error.message)


def open_gcs(uri: str, storage_options: Mapping[str, Any]) -> GcsBackend:
    """Open ``gs://bucket/prefix`` or ``gcs://bucket/prefix``."""
    _, options = choose_engine(uri, storage_options, (FSSPEC,))
    return GcsBackend(uri, options)
