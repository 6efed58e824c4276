"""Translates the errors of Cloud Storage, requests and google-auth."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Union

import requests.exceptions
import urllib3.exceptions
from google.auth.exceptions import GoogleAuthError, TransportError
from urllib3.util.ssl_match_hostname import CertificateError as HostnameMismatch

from input_checkpoint.backends.answers import AnswerHead, UnexpectedAnswerError
from input_checkpoint.backends.object_store import (
    RETRY_ADVICE,
    Advice,
    FailureCause,
    Operation,
    RangePastEndError,
    RequestFailure,
    explain_unanswered,
)
from input_checkpoint.backends.redaction import excerpt
from input_checkpoint.backends.time_limits import TimeLimitExceededError
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
)

OBJECT_IS_MISSING = "noSuchObject"
BUCKET_IS_MISSING = "noSuchBucket"

_RANGE_NOT_SATISFIABLE = 416
# https://cloud.google.com/storage/docs/retry-strategy#retryable. A 409 is a conflict with another request,
# which ends soon.
_TRANSIENT_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
# https://cloud.google.com/storage/docs/json_api/v1/status-codes#403-forbidden
_TOO_FAST = {"rateLimitExceeded", "userRateLimitExceeded"}

_PERMISSIONS = {
    "create": "storage.objects.create",
    "write": "storage.objects.create and, to replace an object, storage.objects.delete",
    "read": "storage.objects.get",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
}
_LOG_IN = (
    "Run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or pass token in "
    "storage_options."
)
_ADVICE = Advice(
    credentials=f"They are wrong or revoked, or this machine's clock is wrong. {_LOG_IN}",
    certificate=(
        "Check endpoint_url and this machine's clock. For a private certificate authority, set SSL_CERT_FILE "
        "before Python starts."
    ),
    connection="Check that the endpoint is right and the server is up.",
)

_TIMEOUTS = (
    requests.exceptions.Timeout,
    urllib3.exceptions.ReadTimeoutError,
    TimeLimitExceededError,
    TimeoutError,
    socket.timeout,  # on Python 3.9 not the same as TimeoutError
)
_TLS_CONNECTION_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


class GcsError(Exception):
    """The server refused a request.

    Args:
        status: HTTP status.
        reason: Cloud Storage's code for the error; empty if the answer has none.
        message: for people.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


def read_answer(status: int, body: bytes) -> Union[GcsError, UnexpectedAnswerError]:
    """Return the error that an answer states, as JSON or, after a download, as plain text."""
    if status == 404 and body.lstrip().startswith(b"<"):
        # A page of a proxy, which does not know whether the object exists.
        return AnswerHead("the request", status, {}).unexpected("an error from Cloud Storage")
    reason, message = _reason_and_message(body)
    if status == 404:
        reason = _missing_resource(message)
    return GcsError(status, reason, message)


def read_failure(error: BaseException) -> RequestFailure:
    """Return why a request failed."""
    if isinstance(error, GcsError):
        return RequestFailure(excerpt(error.message), error.status, error.reason)
    causes = list(_causes(error))
    if isinstance(error, GoogleAuthError):
        unreachable = error.retryable or any(isinstance(cause, TransportError) for cause in causes)
        return RequestFailure(
            f"the access token could not be renewed: {_describe(error)}",
            cause=FailureCause.CONNECTION if unreachable else FailureCause.CREDENTIALS,
        )
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RequestFailure(excerpt(cause.verify_message), cause=FailureCause.CERTIFICATE)
        if isinstance(cause, HostnameMismatch):
            return RequestFailure(excerpt(str(cause)), cause=FailureCause.CERTIFICATE)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _TLS_CONNECTION_LOST):
            return RequestFailure(
                f"no secure connection to endpoint_url: {_describe(cause)}", cause=FailureCause.OPTIONS
            )
    if any(isinstance(cause, _TIMEOUTS) for cause in causes):
        return RequestFailure("no answer in time")
    # Requests raises an error of both kinds for a URL that cannot be used.
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return RequestFailure(excerpt(f"{type(error).__name__}: {causes[-1]}"))
    return RequestFailure(_describe(error), cause=FailureCause.OPTIONS)


def is_unavailable(error: BaseException) -> bool:
    """Return whether trying again later may help."""
    if isinstance(error, UnexpectedAnswerError):
        return True
    failure = read_failure(error)
    if failure.status is None:
        return failure.cause is FailureCause.CONNECTION
    return _is_transient(failure)


def is_worth_repeating(error: BaseException) -> bool:
    """Return whether to repeat the request now. A request that timed out has waited long enough already."""
    return is_unavailable(error) and not any(isinstance(cause, _TIMEOUTS) for cause in _causes(error))


def explain(error: BaseException, operation: Operation) -> BackendError:
    """Return the `BackendError` for the exception of a request."""
    if isinstance(error, UnexpectedAnswerError):
        return operation.unexpected_answer(error)
    failure = read_failure(error)
    if failure.status is None:
        return explain_unanswered(failure, operation, _ADVICE)
    if failure.status == _RANGE_NOT_SATISFIABLE:
        return operation.error(RangePastEndError, "the range starts past the end")
    if failure.status == 412 and operation.verb == "create":
        return operation.already_exists()
    if failure.code == OBJECT_IS_MISSING:
        return operation.does_not_exist()
    return _explain_refusal(failure, operation)


def explain_open(error: BaseException, operation: Operation) -> BackendError:
    """Return the `BackendError` for an exception of gcsfs while it looked for credentials.

    Do not chain the exception to the result: gcsfs sends access tokens in the query of a URL, and requests
    repeats the URL in its messages.
    """
    if isinstance(error, (requests.exceptions.RequestException, TransportError)):
        return operation.error(
            BackendUnavailableError,
            f"Google's servers for credentials did not answer ({type(error).__name__}). Check the network; "
            f"{RETRY_ADVICE}.",
        )
    if isinstance(error, TypeError):
        return operation.error(BackendError, f"storage_options are wrong: {_describe(error)}")
    return operation.error(
        BackendPermissionError, f"there are no usable credentials: {_describe(error).rstrip('.')}. {_LOG_IN}"
    )


def _explain_refusal(failure: RequestFailure, operation: Operation) -> BackendError:
    status = failure.status or 0
    answer = ": ".join(filter(None, (f"{status} {failure.code}".rstrip(), failure.message)))
    if status == 404:
        return operation.error(
            BackendNotFoundError,
            "the bucket does not exist. Create it, or correct the URI (or endpoint_url).",
        )
    if status == 429 or failure.code in _TOO_FAST:
        return operation.error(
            BackendUnavailableError, f"Cloud Storage asks to slow down ({answer}). Try again later."
        )
    if status in (401, 403):
        text = f"{_explain_denial(failure, operation)} The server's answer: {answer}"
        if status == 401:
            return operation.credentials_refused(text)
        return operation.error(BackendPermissionError, text)
    if _is_transient(failure):
        return operation.error(
            BackendUnavailableError, f"{answer}. Check that the server is healthy; {RETRY_ADVICE}."
        )
    if status < 400:
        # Only redirects. None of them is followed.
        return operation.unexpected_answer(
            AnswerHead("the request", status, {}).unexpected("an answer from Cloud Storage")
        )
    return operation.error(
        BackendError, f"{answer}. Correct the URI or storage_options.{_option_advice(failure)}"
    )


def _explain_denial(failure: RequestFailure, operation: Operation) -> str:
    if failure.message.startswith("Anonymous caller"):
        return f"no credentials were found. {_LOG_IN}"
    if failure.status == 401:
        return (
            "the credentials are not accepted: they are wrong or expired (a plain access token expires after "
            f"an hour), or this machine's clock is wrong. {_LOG_IN}"
        )
    permission = _PERMISSIONS.get(operation.verb, "more permissions")
    return f"access denied. The account needs {permission} on the bucket."


def _option_advice(failure: RequestFailure) -> str:
    if "requester pays" in failure.message.lower():
        return " Pass requester_pays='the-project-that-pays' in storage_options."
    return ""


def _is_transient(failure: RequestFailure) -> bool:
    # A mismatch of the CRC32C means that the data was damaged in transit.
    return (
        failure.status in _TRANSIENT_STATUS
        or failure.code in _TOO_FAST
        or (failure.status == 400 and "crc32c" in failure.message.lower())
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, and what led to it, outermost first.

    requests, urllib3 and google-auth carry the cause among the arguments. ``__context__`` is left out: it may
    lead to exceptions that the caller was handling.
    """
    yield error
    for inner in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(inner, BaseException):
            yield from _causes(inner)


def _reason_and_message(body: bytes) -> tuple[str, str]:
    text = body.decode("utf-8", "replace").strip()
    try:
        error: Any = json.loads(text)["error"]
        return str(error["errors"][0]["reason"]), str(error["message"])
    except (ValueError, LookupError, TypeError):
        return "", excerpt(text)


def _missing_resource(message: str) -> str:
    """Return the reason for a 404; empty if the message does not tell, as those of emulators."""
    if message.startswith("No such object"):
        return OBJECT_IS_MISSING
    return BUCKET_IS_MISSING if "bucket does not exist" in message else ""


def _describe(error: BaseException) -> str:
    # google-auth adds the whole answer of the server as a second argument.
    message = error.args[0] if isinstance(error, GoogleAuthError) and error.args else error
    return excerpt(f"{type(error).__name__}: {message}")
