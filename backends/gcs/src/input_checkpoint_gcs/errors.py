"""What Cloud Storage and its clients say, in the words of input-checkpoint."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Optional

import aiohttp
import google.auth.exceptions
import requests.exceptions

from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
)

OBJECT_IS_MISSING = "noSuchObject"
BUCKET_IS_MISSING = "noSuchBucket"

# https://cloud.google.com/storage/docs/retry-strategy#retryable. A 409 is a conflict with somebody else's
# request, which will be over.
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
# https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden
_TOO_FAST = {"rateLimitExceeded", "userRateLimitExceeded"}

_RIGHTS = {
    "create": "storage.objects.create",
    "write": "storage.objects.create and, to replace an object, storage.objects.delete",
    "read": "storage.objects.get",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
}
_LOG_IN = (
    "Run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or pass token in "
    "storage_options"
)


class GcsError(Exception):
    """The server's answer to a request that it has not carried out.

    Args:
        status: of HTTP.
        reason: Cloud Storage's word for it; empty if the answer has none.
        message: for people.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


def answered_error(status: int, body: bytes) -> GcsError:
    """Return the error that a server's answer states, as JSON or, to a download, as plain text."""
    reason, message = _stated(body)
    if status == 404:
        reason = _what_is_missing(message)
    return GcsError(status, reason, message)


def is_unavailable(error: BaseException) -> bool:
    """Whether trying again later may help."""
    if isinstance(error, GcsError):
        return _is_transient(error)
    if _tls_refusal(error) is not None or isinstance(error, aiohttp.InvalidURL):
        return False
    refusal = _credentials_refusal(error)
    if refusal is not None:
        return _is_away(refusal)
    return isinstance(error, (aiohttp.ClientError, asyncio.TimeoutError, OSError))


def is_worth_repeating(error: BaseException) -> bool:
    """Whether to try again at once. Not after a time-out, which has used up the patience by itself."""
    return is_unavailable(error) and not isinstance(error, (asyncio.TimeoutError, TimeoutError))


def translate(error: BaseException, operation: str, uri: str, key: str) -> BackendError:
    """Return the `BackendError` for what a request raised.

    Args:
        error: the exception.
        operation: ``"create"``, ``"write"``, ``"read"``, ``"list"`` or ``"delete"``.
        uri: of the backend, without secrets.
        key: the object concerned; empty for the whole.
    """
    what = f"cannot {operation} {uri}/{key}".rstrip("/")
    if isinstance(error, GcsError):
        return _refusal(error, operation, what)
    refusal = _credentials_refusal(error)
    if refusal is not None:
        return _credentials_failure(refusal, what)
    return _failure(error, what)


def translate_open(error: BaseException, uri: str) -> BackendError:
    """Return the `BackendError` for what gcsfs raised when it was opened, while it looked for credentials.

    The error must not be chained to the result: gcsfs sends access tokens in the query of a URL, and
    requests spells out the URL in its messages.
    """
    what = f"cannot open {uri}"
    if isinstance(error, (requests.exceptions.RequestException, google.auth.exceptions.TransportError)):
        return BackendUnavailableError(
            f"{what}: Google's servers for credentials did not answer ({type(error).__name__}). Check the "
            "network; trying again may help."
        )
    if isinstance(error, TypeError):
        return BackendError(f"{what}: storage_options are wrong: {_words(error)}")
    return BackendPermissionError(f"{what}: no usable credentials: {_words(error)}. {_LOG_IN}.")


def _refusal(error: GcsError, operation: str, what: str) -> BackendError:
    said = f"{error.status} {error.reason}".rstrip() + f": {redact(error.message)}"
    if error.status == 412 and operation == "create":
        return ObjectExistsError(f"{what}: it already exists")
    if error.reason == OBJECT_IS_MISSING:
        return ObjectNotFoundError(f"{what}: it does not exist")
    if error.status == 404:
        return BackendNotFoundError(
            f"{what}: the bucket does not exist. Create it, or correct the URI (or endpoint_url)."
        )
    if error.status == 429 or error.reason in _TOO_FAST:
        return BackendUnavailableError(f"{what}: Cloud Storage asks to slow down ({said}). Try again later.")
    if error.status in (401, 403):
        return BackendPermissionError(f"{what}: {_denied(error, operation)}. The server says: {said}")
    if _is_transient(error):
        return BackendUnavailableError(
            f"{what}: {said}. Check that the server is well; trying again may help."
        )
    if error.status < 400:
        return BackendError(
            f"{what}: {said}. What answers there is not Cloud Storage: correct endpoint_url, or log in to "
            "the proxy in between."
        )
    return BackendError(f"{what}: {said}. Correct the URI or storage_options.{_advice(error)}")


def _denied(error: GcsError, operation: str) -> str:
    if error.message.startswith("Anonymous caller"):
        return f"no credentials were found. {_LOG_IN}"
    if error.status == 401:
        return (
            "the credentials are not accepted: wrong, or expired (a plain access token lives for an hour), "
            f"or this machine's clock is wrong. {_LOG_IN}"
        )
    return f"access denied. The account needs {_RIGHTS.get(operation, 'more rights')} on the bucket"


def _advice(error: GcsError) -> str:
    if "requester pays" in error.message.lower():
        return " Pass requester_pays=<the project that pays> in storage_options."
    return ""


def _credentials_refusal(error: BaseException) -> Optional[google.auth.exceptions.GoogleAuthError]:
    """Return what google-auth said, on its own or as the cause of an exception of gcsfs; None if nothing."""
    for said in (error, error.__cause__):
        if isinstance(said, google.auth.exceptions.GoogleAuthError):
            return said
    return None


def _credentials_failure(error: google.auth.exceptions.GoogleAuthError, what: str) -> BackendError:
    said = _words(error)
    if _is_away(error):
        return BackendUnavailableError(
            f"{what}: the access token could not be renewed: {said}. Check the network; trying again "
            "may help."
        )
    return BackendPermissionError(
        f"{what}: the access token could not be renewed: {said}. The credentials are wrong or withdrawn, or "
        f"this machine's clock is wrong. {_LOG_IN}."
    )


def _failure(error: BaseException, what: str) -> BackendError:
    refusal = _tls_refusal(error)
    if refusal is not None:
        return BackendError(
            f"{what}: no secure connection: {refusal}. Check endpoint_url and this machine's clock; if the "
            "server's authority is a private one, name its certificates in SSL_CERT_FILE before the start."
        )
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return BackendUnavailableError(
            f"{what}: no answer in time. Check the network; trying again may help."
        )
    if is_unavailable(error):
        return BackendUnavailableError(
            f"{what}: {_words(error)}. Check that the endpoint is right and the server is up; trying again "
            "may help."
        )
    return BackendError(f"{what}: the URI or storage_options are wrong: {_words(error)}")


def _is_transient(error: GcsError) -> bool:
    # A CRC32C that does not match is data damaged on the way.
    return (
        error.status in _TRANSIENT_STATUS
        or error.reason in _TOO_FAST
        or (error.status == 400 and "crc32c" in error.message.lower())
    )


def _is_away(error: google.auth.exceptions.GoogleAuthError) -> bool:
    """Whether credentials could not be had because a server of Google's was not to be reached."""
    transport = google.auth.exceptions.TransportError
    return isinstance(error, transport) or isinstance(error.__cause__, transport) or error.retryable


def _tls_refusal(error: BaseException) -> Optional[str]:
    """Return why a secure connection will never come about; None if that is not what is wrong.

    A connection that is dropped in the middle of the handshake is another error, a plain `ClientOSError`.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return str(error.os_error)
    return None


def _stated(body: bytes) -> tuple[str, str]:
    text = body.decode("utf-8", "replace").strip()
    try:
        error: Any = json.loads(text)["error"]
        return str(error["errors"][0]["reason"]), str(error["message"])
    except (ValueError, LookupError, TypeError):
        return "", text[:500]


def _what_is_missing(message: str) -> str:
    """Return what a 404 is about; empty if it does not say, as emulators' do not."""
    if message.startswith("No such object"):
        return OBJECT_IS_MISSING
    return BUCKET_IS_MISSING if "bucket does not exist" in message else ""


def _words(error: BaseException) -> str:
    return redact(f"{type(error).__name__}: {error}")
