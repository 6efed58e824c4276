"""The requests of the JSON API that a flat space of keys needs.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Optional
from urllib.parse import quote

import google_crc32c

from input_checkpoint.backends.base import Data
from input_checkpoint_gcs.client import Request

_IF_THERE_IS_NONE = "0"  # https://cloud.google.com/storage/docs/request-preconditions#special-case


LARGEST_PAGE = 1000
"""Entries of a list that one request asks for: no more come at a time anyway."""


def upload(bucket: str, name: str, data: Data, only_if_free: bool) -> Request:
    """Return the request that stores an object at one go, whatever its size.

    It carries a CRC32C, so that the server refuses what was damaged on the way before it is visible:
    https://cloud.google.com/storage/docs/data-validation.
    """
    content = bytes(data)
    about = {
        "name": name,
        "contentType": "application/octet-stream",
        "crc32c": base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode(),
    }
    # At random, since a fixed one could occur in the data and would cut them there.
    boundary = uuid.uuid4().hex
    return Request(
        "POST",
        f"/upload/storage/v1/b/{_quoted(bucket)}/o",
        {"uploadType": "multipart", "ifGenerationMatch": _IF_THERE_IS_NONE if only_if_free else None},
        {"Content-Type": f'multipart/related; boundary="{boundary}"'},
        _multipart(boundary, json.dumps(about), content),
    )


def download(bucket: str, name: str, start: int, end: Optional[int]) -> Request:
    """Return the request for bytes ``start`` to ``end`` (exclusive; None = to the end) of an object."""
    whole = start == 0 and end is None
    headers = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    path = f"/download/storage/v1/b/{_quoted(bucket)}/o/{_quoted(name)}"
    return Request("GET", path, {"alt": "media"}, headers)


def look_up(bucket: str, name: str) -> Request:
    """Return the request for what is known about an object."""
    return Request("GET", _object(bucket, name), {"fields": "name"})


def page(bucket: str, prefix: str, token: Optional[str], most: Optional[int] = None) -> Request:
    """Return the request for a page of the list of objects, in the order of their names.

    Args:
        bucket: its name.
        prefix: of the names; empty for all.
        token: where the page before ended; None for the first page.
        most: how many entries are enough.
    """
    params = {
        "prefix": prefix or None,
        "pageToken": token,
        "maxResults": str(most or LARGEST_PAGE),
        "fields": "items(name,size,timeCreated),nextPageToken",
    }
    return Request("GET", f"/storage/v1/b/{_quoted(bucket)}/o", params)


def removal(bucket: str, name: str) -> Request:
    """Return the request that deletes an object."""
    return Request("DELETE", _object(bucket, name))


def _multipart(boundary: str, about: str, content: bytes) -> bytes:
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n"
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    return b"".join((head.encode(), content, f"\r\n--{boundary}--\r\n".encode()))


def _object(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{_quoted(bucket)}/o/{_quoted(name)}"


def _quoted(name: str) -> str:
    return quote(name, safe="")
