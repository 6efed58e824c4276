"""Checks that Cloud Storage has answered, and not a proxy or a login page in its place.

Each function looks for what the JSON API promises: https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from input_checkpoint.backends.answers import AnswerHead, UnexpectedAnswerError, requested_bytes
from input_checkpoint.backends.base import ObjectInfo

LIST = "objects.list"

_INSERT = "objects.insert"
_GET = "objects.get"
# https://cloud.google.com/storage/docs/xml-api/reference-headers. The JSON API sends them with downloads too.
_OBJECT_HEADERS = ("x-goog-generation", "x-goog-hash")
_DELETED = 204


@dataclass(frozen=True)
class Answer:
    """What the server answered to a request that succeeded."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    """By names in lower case."""

    def head(self, request: str) -> AnswerHead:
        """Return status and headers, as the answer to a request of the JSON API."""
        return AnswerHead(request, self.status, self.headers)


def check_stored(answer: Answer, name: str, size: int) -> None:
    """Check the answer to an upload: it describes the stored object."""
    stored = _resource(answer, _INSERT, "the stored object")
    if "generation" not in stored:
        raise answer.head(_INSERT).unexpected("the stored object")
    if stored.get("name") != name or stored.get("size", str(size)) != str(size):
        came = f"the object {stored.get('name')} of {stored.get('size')} bytes"
        raise UnexpectedAnswerError(_INSERT, came, f"{name} of {size} bytes")


def check_found(answer: Answer, name: str) -> None:
    """Check the answer to a request for an object's metadata."""
    if _resource(answer, _GET, "an object").get("name") != name:
        raise UnexpectedAnswerError(_GET, "another resource", name)


def object_bytes(answer: Answer, start: int, end: Optional[int]) -> bytes:
    """Return bytes ``start`` to ``end`` from the answer to a download."""
    head = answer.head(_GET)
    if not any(header in answer.headers for header in _OBJECT_HEADERS):
        raise head.unexpected("an object")
    return requested_bytes(head, answer.body, start, end)


def listed_objects(answer: Answer) -> list[ObjectInfo]:
    """Return the objects on a page of a list."""
    page = _page(answer)
    try:
        return [
            ObjectInfo(item["name"], int(item["size"]), _seconds(item["timeCreated"]))
            for item in page.get("items", ())
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswerError(LIST, "an object without name, size or timeCreated") from error


def next_page_token(answer: Answer) -> Optional[str]:
    """Return the token of the page that follows a page of a list; None if it is the last one."""
    return _page(answer).get("nextPageToken") or None


def is_deletion(answer: Answer) -> bool:
    """Return whether an answer to a delete says that the object is deleted."""
    return answer.status == _DELETED


def _page(answer: Answer) -> dict[str, Any]:
    page = _resource(answer, LIST, "a list of objects")
    if page.get("kind") != "storage#objects":
        raise answer.head(LIST).unexpected("a list of objects")
    return page


def _resource(answer: Answer, request: str, expected: str) -> dict[str, Any]:
    try:
        resource = json.loads(answer.body)
    except ValueError:
        resource = None
    if not isinstance(resource, dict):
        raise answer.head(request).unexpected(expected)
    return resource


def _seconds(timestamp: str) -> float:
    """Return a timestamp such as ``2026-11-23T02:58:16.472Z`` in seconds since the epoch.

    Before Python 3.11, ``fromisoformat`` accepts neither the Z nor five decimals.
    """
    whole, _, fraction = timestamp.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")
