"""Builds the requests of the JSON API that a flat space of keys needs.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Optional
from urllib.parse import quote

import google_crc32c

from input_checkpoint_gcs.client import Request

_NO_GENERATION = "0"  # https://cloud.google.com/storage/docs/request-preconditions#special-case

PAGE_SIZE = 1000
"""Entries of one page of a list: the most that Cloud Storage returns."""


def upload(bucket: str, name: str, data: bytes, *, if_absent: bool) -> Request:
    """Return the request that stores an object, whatever its size, in one step.

    It carries a CRC32C: the server refuses data that was damaged in transit before anybody can see it
    (https://cloud.google.com/storage/docs/data-validation).

    Args:
        bucket: name of the bucket.
        name: name of the object.
        data: content of the object.
        if_absent: whether the server refuses to replace an object.
    """
    resource = {
        "name": name,
        "contentType": "application/octet-stream",
        "crc32c": base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode(),
    }
    # Random, because a fixed boundary could occur in the data.
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(resource)}\r\n"
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    return Request(
        "POST",
        f"/upload/storage/v1/b/{_quoted(bucket)}/o",
        {"uploadType": "multipart", "ifGenerationMatch": _NO_GENERATION if if_absent else None},
        {"Content-Type": f'multipart/related; boundary="{boundary}"'},
        (head.encode(), data, f"\r\n--{boundary}--\r\n".encode()),
    )


def download(bucket: str, name: str, start: int, end: Optional[int]) -> Request:
    """Return the request for bytes ``start`` to ``end`` (exclusive; None = to the end) of an object."""
    whole = start == 0 and end is None
    headers = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    path = f"/download/storage/v1/b/{_quoted(bucket)}/o/{_quoted(name)}"
    return Request("GET", path, {"alt": "media"}, headers)


def look_up(bucket: str, name: str) -> Request:
    """Return the request for the metadata of an object."""
    return Request("GET", _object(bucket, name), {"fields": "name"})


def page(bucket: str, prefix: str, token: Optional[str], max_results: Optional[int] = None) -> Request:
    """Return the request for a page of the list of objects, in the order of their names.

    Args:
        bucket: name of the bucket.
        prefix: what the names start with; empty for all objects.
        token: where the previous page ended; None for the first page.
        max_results: the most entries to return. Default: `PAGE_SIZE`.
    """
    params = {
        "prefix": prefix or None,
        "pageToken": token,
        "maxResults": str(max_results or PAGE_SIZE),
        # Even a page without objects has the kind, and nothing but a list has it.
        "fields": "kind,items(name,size,timeCreated),nextPageToken",
    }
    return Request("GET", f"/storage/v1/b/{_quoted(bucket)}/o", params)


def deletion(bucket: str, name: str) -> Request:
    """Return the request that deletes an object."""
    return Request("DELETE", _object(bucket, name))


def _object(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{_quoted(bucket)}/o/{_quoted(name)}"


def _quoted(name: str) -> str:
    return quote(name, safe="")
