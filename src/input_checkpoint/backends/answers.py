"""Checks that an answer belongs to the request that was sent.

A proxy, a gateway or a login page may answer in place of the storage, with status 200. Client libraries read
an empty body or a page of XHTML as a listing without objects, and a redirect to a page as a stored object. So
a backend accepts an answer only if it contains what the protocol promises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

_OK = 200
_PARTIAL_CONTENT = 206
_NO_CONTENT = 204
_REDIRECTS = range(300, 400)
_MAX_EMPTY_PAGES = 1000
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RANGE_OF_NOTHING = "bytes 0--1/0"
"""What the emulator Azurite answers about an empty object. The services answer with status 416."""


class UnexpectedAnswerError(Exception):
    """A server answered with success, but not to the request that was sent.

    `ObjectStoreBackend` turns it into a `BackendUnavailableError`, because a proxy may stop interfering.

    Args:
        request: the name of the request in the service's documentation.
        came: what came.
        expected: what should have come instead; empty if ``came`` says enough.

    Example:
        >>> str(UnexpectedAnswerError("GetObject", "text/html", "an object"))
        'the server answered GetObject with text/html, not with an object'
    """

    def __init__(self, request: str, came: str, expected: str = "") -> None:
        contrast = f", not with {expected}" if expected else ""
        super().__init__(f"the server answered {request} with {came}{contrast}")


@dataclass(frozen=True)
class AnswerHead:
    """Status and headers of an answer, and the request that it should answer.

    Example:
        >>> head = AnswerHead("GetObject", 200, {"content-type": "text/html; charset=utf-8"})
        >>> str(head.unexpected("an object"))
        'the server answered GetObject with text/html (status 200), not with an object'
    """

    request: str
    status: Optional[int]
    """HTTP status; None if the client library reports only that it was a success."""
    headers: Mapping[str, str]
    """By names in lower case."""

    @property
    def media_type(self) -> str:
        """The type of the body, in lower case and without parameters; empty if it is unknown."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def is_html(self) -> bool:
        """Whether the body is a page for people. No object of a store has such a type."""
        return "html" in self.media_type

    @property
    def is_empty(self) -> bool:
        """Whether the answer has no body, according to its headers."""
        return self.status == _NO_CONTENT or self.headers.get("content-length") == "0"

    def unexpected(self, expected: str) -> UnexpectedAnswerError:
        """Return the error that says what the server sent instead of what was expected."""
        return UnexpectedAnswerError(self.request, self._describe(), expected)

    def _describe(self) -> str:
        if self.status is None:
            return self.media_type or "an answer without an ETag"
        if self.status in _REDIRECTS:
            return f"a redirect (status {self.status})"
        if self.is_empty:
            return f"an empty answer (status {self.status})"
        return f"{self.media_type} (status {self.status})" if self.media_type else f"status {self.status}"


def requested_bytes(head: AnswerHead, body: bytes, start: int, end: Optional[int]) -> bytes:
    """Return bytes ``start`` to ``end`` of an object from the answer to a request for them.

    Args:
        head: of the answer.
        body: of the answer: the range, or the whole object from a server that ignores ranges.
        start: the first byte.
        end: offset after the last byte; None = to the end of the object.

    Raises:
        UnexpectedAnswerError: the answer is a page, compressed, another range, or has too few bytes.

    Example:
        >>> requested_bytes(AnswerHead("GetObject", 206, {"content-range": "bytes 1-2/4"}), b"bc", 1, 3)
        b'bc'
    """
    check_object(head)
    if head.status == _OK:
        return body[start:end]
    length = range_length(head, start, end)
    if len(body) != length:
        raise UnexpectedAnswerError(head.request, f"{len(body)} bytes", f"the {length} of the range")
    return body


def check_object(head: AnswerHead) -> None:
    """Check that an answer may hold an object, as it is stored.

    Raises:
        UnexpectedAnswerError: it is a page, a redirect, empty, or compressed.
    """
    if head.is_html or head.status not in (None, _OK, _PARTIAL_CONTENT):
        raise head.unexpected("an object")
    encoding = head.headers.get("content-encoding", "").lower()
    # An object of a store has no encoding. S3 may keep the one of the transfer that it was uploaded with.
    if encoding not in ("", "identity", "aws-chunked"):
        raise UnexpectedAnswerError(head.request, f"{encoding} data", "the data as it is stored")


def range_length(head: AnswerHead, start: int, end: Optional[int]) -> int:
    """Return the length of the range that an answer holds. For the arguments, see `requested_bytes`.

    Raises:
        UnexpectedAnswerError: it is not the requested range.
    """
    received = head.headers.get("content-range", "").strip()
    if received == _RANGE_OF_NOTHING:
        return 0
    match = _CONTENT_RANGE.fullmatch(received)
    if match:
        first, last, size = match.groups()
        wanted_end = end if size == "*" else min(int(size), int(size) if end is None else end)
        if int(first) == start and wanted_end in (None, int(last) + 1):
            return int(last) + 1 - start
    wanted = f"bytes {start}-{'' if end is None else end - 1}"
    raise UnexpectedAnswerError(head.request, received or "no Content-Range", wanted)


class PageChain:
    """Follows a listing from page to page, and notices one that would never end.

    Args:
        request: the name of the request in the service's documentation.

    Example:
        >>> pages = PageChain("ListObjectsV2")
        >>> pages.follow("after-b", entries=2)
        'after-b'
    """

    def __init__(self, request: str) -> None:
        self._request = request
        self._token = ""
        self._empty_pages = 0

    def follow(self, token: str, entries: int) -> str:
        """Return the token for the next page.

        Args:
            token: as the last page gives it.
            entries: the number of objects on that page.

        Raises:
            UnexpectedAnswerError: the page before gave the same token, or very many pages were empty.
        """
        if token == self._token:
            raise UnexpectedAnswerError(self._request, "the same continuation token twice")
        self._token = token
        self._empty_pages = 0 if entries else self._empty_pages + 1
        if self._empty_pages == _MAX_EMPTY_PAGES:
            raise UnexpectedAnswerError(self._request, f"{_MAX_EMPTY_PAGES} pages without objects in a row")
        return token
