"""Checks that S3 has answered, and not a proxy or a login page in its place.

botocore reads an empty body, and any XML, as an answer without fields. So each function here looks for the
fields that S3 promises: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional
from urllib.parse import unquote_plus

from input_checkpoint.backends.answers import AnswerHead, UnexpectedAnswerError, requested_bytes
from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint_s3.uri import is_access_point

_LIST = "ListObjectsV2"
_DELETE = "DeleteObjects"

# Of an object stored in one part: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
ETAG = re.compile(r'"?[0-9a-f]{32}"?')
"""The form of S3's ETags. A web server has others. After an upload, what they name is looked up."""

Answer = Mapping[str, Any]
"""An answer as botocore parses it."""


def check_stored(answer: Answer) -> None:
    """Check the answer to a PutObject: an ETag, and no body."""
    head = _head("PutObject", answer)
    if not answer.get("ETag") or head.headers.get("content-length", "0") != "0":
        raise head.unexpected("the ETag of the stored object")


def check_stored_as(answer: Answer, found: Answer, size: int) -> None:
    """Check the answer to a HeadObject against the one to the PutObject before it.

    Args:
        answer: to the PutObject.
        found: to the HeadObject.
        size: of the object that was stored.
    """
    if (found.get("ETag"), found.get("ContentLength")) != (answer["ETag"], size):
        raise UnexpectedAnswerError("PutObject", f"the ETag {answer['ETag']}", "that of the stored object")


def object_bytes(answer: Answer, body: bytes, start: int, end: Optional[int]) -> bytes:
    """Return bytes ``start`` to ``end`` from the answer to a GetObject and its body."""
    head = _head("GetObject", answer)
    if not answer.get("ETag"):
        raise head.unexpected("an object")
    return requested_bytes(head, body, start, end)


def listed_objects(answer: Answer, bucket: str, prefix: str) -> list[ObjectInfo]:
    """Return the objects on a page of a listing.

    Args:
        answer: to a ListObjectsV2.
        bucket: that was listed.
        prefix: that was asked for.
    """
    head = _head(_LIST, answer)
    contents: Sequence[Mapping[str, Any]] = answer.get("Contents", ())
    if not answer.get("Name") or "KeyCount" not in answer:
        raise head.unexpected("a listing")
    # S3 does not say which name it gives a bucket that was named by an access point.
    if answer["Name"] != bucket and not is_access_point(bucket):
        raise UnexpectedAnswerError(_LIST, f"a listing of the bucket {answer['Name']}", bucket)
    # A server may encode the prefix without saying so.
    if unquote_plus(answer.get("Prefix", prefix)) != unquote_plus(prefix):
        raise UnexpectedAnswerError(_LIST, f"a listing of {answer['Prefix']}", f"one of {prefix}")
    if len(contents) + len(answer.get("CommonPrefixes", ())) < answer["KeyCount"]:
        raise UnexpectedAnswerError(_LIST, f"{len(contents)} objects", f"KeyCount={answer['KeyCount']}")
    if not all({"Key", "Size", "LastModified"} <= set(entry) for entry in contents):
        raise UnexpectedAnswerError(_LIST, "an object without Key, Size or LastModified")
    return [ObjectInfo(entry["Key"], entry["Size"], entry["LastModified"].timestamp()) for entry in contents]


def next_page_token(answer: Answer) -> Optional[str]:
    """Return the token of the page that follows a page of a listing; None if it is the last one."""
    token: str = answer.get("NextContinuationToken", "")
    if answer.get("IsTruncated") and not token:
        raise UnexpectedAnswerError(_LIST, "a truncated listing without NextContinuationToken")
    return token or None


def failed_deletes(answer: Answer, names: Iterable[str]) -> list[Mapping[str, str]]:
    """Return the errors in the answer to a DeleteObjects that was not quiet.

    Args:
        answer: the answer.
        names: that were to be deleted. The answer must mention each one.
    """
    errors: Sequence[Mapping[str, str]] = answer.get("Errors", ())
    mentioned = {entry.get("Key") for entry in (*answer.get("Deleted", ()), *errors)}
    missing = [name for name in names if name not in mentioned]
    if missing and not mentioned:
        raise _head(_DELETE, answer).unexpected("the deleted objects")
    if missing:
        raise UnexpectedAnswerError(_DELETE, f"nothing about {len(missing)} objects such as {missing[0]}")
    return [error for error in errors if error.get("Code") != "NoSuchKey"]


def _head(request: str, answer: Answer) -> AnswerHead:
    metadata = answer["ResponseMetadata"]
    return AnswerHead(request, metadata["HTTPStatusCode"], metadata["HTTPHeaders"])
