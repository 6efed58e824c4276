"""Checks that Azure has answered, and not a proxy or a login page in its place.

Azure's client library checks the status of an answer, but not that the answer is one of Azure's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Optional
from urllib.parse import parse_qs, urlsplit

from input_checkpoint.backends.answers import AnswerHead, UnexpectedAnswerError, check_object, range_length
from input_checkpoint.backends.base import ObjectInfo

GET = "Get Blob"
LIST = "List Blobs"

# https://learn.microsoft.com/rest/api/storageservices/common-rest-api-response-headers
_HEADERS = ("x-ms-request-id", "x-ms-version")
_FOLDER_MARK = "hdi_isfolder"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def check_answer(response: Any) -> None:
    """Check the answer to any request. Goes with requests as their ``raw_response_hook``.

    Args:
        response: a `azure.core.pipeline.PipelineResponse`.

    Raises:
        UnexpectedAnswerError: the answer is a success, but not of Azure, or of another request.
    """
    request, answer = response.http_request, response.http_response
    headers = {name.lower(): value for name, value in answer.headers.items()}
    head = AnswerHead(_name(request), answer.status_code, headers)
    if not 200 <= answer.status_code < 400:
        return  # an error, which the client library raises
    if answer.status_code >= 300 or not any(header in headers for header in _HEADERS):
        raise head.unexpected("an answer from Azure Blob Storage")
    if head.request in ("Put Blob", "Put Block List") and "etag" not in headers:
        raise head.unexpected("the ETag of the stored blob")
    if head.request == GET:
        _check_range(head, request.headers.get("x-ms-range"))


class ListedBlobs:
    """The blobs on the pages of a listing.

    Args:
        container: the name of the container that is listed.
    """

    def __init__(self, container: str) -> None:
        self._container = container
        self._names: set[str] = set()
        self.infos: list[ObjectInfo] = []

    def add(self, container: Optional[str], blobs: Iterable[Any]) -> None:
        """Add a page.

        Args:
            container: that the page names.
            blobs: each a `azure.storage.blob.BlobProperties`.

        Raises:
            UnexpectedAnswerError: the page is of another container, or repeats a blob.
        """
        if not container or container.rstrip("/").rpartition("/")[2] != self._container:
            raise UnexpectedAnswerError(LIST, f"the container {container}", self._container)
        for blob in blobs:
            if not blob.name or blob.name in self._names or blob.size is None or blob.last_modified is None:
                raise UnexpectedAnswerError(LIST, f"an incomplete or repeated entry ({blob.name})")
            self._names.add(blob.name)
            if _FOLDER_MARK not in (blob.metadata or {}):
                self.infos.append(ObjectInfo(blob.name, blob.size, blob.last_modified.timestamp()))


def _check_range(head: AnswerHead, wanted: Optional[str]) -> None:
    check_object(head)
    match = _RANGE.fullmatch(wanted or "")
    if not match:
        return
    start, last = int(match.group(1)), match.group(2)
    length = range_length(head, start, int(last) + 1 if last else None)
    if head.headers.get("content-length", str(length)) != str(length):
        raise UnexpectedAnswerError(
            GET, f"{head.headers['content-length']} bytes", f"the {length} of the range"
        )


def _name(request: Any) -> str:
    """Return the name of a request in Azure's documentation."""
    part = parse_qs(urlsplit(request.url).query).get("comp", [""])[0]
    names = {
        ("GET", "list"): LIST,
        ("GET", ""): GET,
        ("HEAD", ""): "Get Blob Properties",
        ("PUT", ""): "Put Blob",
        ("PUT", "block"): "Put Block",
        ("PUT", "blocklist"): "Put Block List",
        ("DELETE", ""): "Delete Blob",
    }
    return names.get((request.method, part), f"{request.method} {part}".strip())
