"""What S3 and its client say, in the words of input-checkpoint."""

from __future__ import annotations

from typing import Any, Optional

from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from input_checkpoint.backend import redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFound,
    BackendPermissionError,
    BackendUnavailable,
    ObjectExists,
    ObjectNotFound,
)

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
    "InvalidClientTokenId",
}
_FORBIDDEN = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_EXISTS = {"PreconditionFailed", "412"}
_NOT_IMPLEMENTED = {"NotImplemented", "501"}
_PERMANENT = {"InvalidArgument", "InvalidBucketName", "EntityTooLarge", "MethodNotAllowed", "400"}


def translate(error: BaseException, operation: str, uri: str, key: str) -> BackendError:
    """Return the `BackendError` for what s3fs raised.

    Args:
        error: the exception from s3fs.
        operation: ``"create"``, ``"read"``, … for the message.
        uri: of the backend, without secrets.
        key: the object concerned; empty for the whole.
    """
    code, message = _answer(error)
    message = redact(message)
    what = f"cannot {operation} {uri}/{key}".rstrip("/")
    if code in _EXISTS:
        return ObjectExists(f"{uri}/{key} already exists")
    if code == "NoSuchBucket":
        return BackendNotFound(f"{what}: the bucket does not exist. Create it, or correct the URI.")
    if code in ("NoSuchKey", "404") or (code is None and isinstance(error, FileNotFoundError)):
        return ObjectNotFound(f"{what}: it does not exist")
    if code in _CREDENTIALS or isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return BackendPermissionError(
            f"{what}: the credentials are not accepted ({code or type(error).__name__}). Set them in "
            "storage_options "
            "(key, secret, token, profile) or where the AWS tools look for them."
        )
    if code in _FORBIDDEN or (code is None and isinstance(error, PermissionError)):
        return BackendPermissionError(
            f"{what}: access denied. The key needs s3:GetObject, s3:PutObject, s3:DeleteObject and "
            "s3:ListBucket there."
        )
    if code in _NOT_IMPLEMENTED and operation == "create":
        return BackendError(
            f"{what}: this server does not know conditional writes (If-None-Match), so commits cannot be "
            "made safe on it."
        )
    if isinstance(error, (ParamValidationError, ProfileNotFound, ConfigParseError, TypeError, ValueError)):
        return BackendError(f"{what}: the URI or storage_options are wrong: {message}")
    if code in _PERMANENT:
        return BackendError(f"{what}: {code}: {message}")
    return BackendUnavailable(
        f"{what}: {message}. Check that the endpoint is right and the server is up; trying again may help."
    )


def error_code(error: BaseException) -> Optional[str]:
    """Return S3's code for an error, or None if it did not come from the server."""
    return _answer(error)[0]


def _answer(error: BaseException) -> tuple[Optional[str], str]:
    """Return S3's error code, if the server answered at all, and a message."""
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, ClientError):
            answer: dict[str, Any] = cause.response.get("Error", {})
            return str(answer.get("Code")), str(answer.get("Message") or cause)
        cause = cause.__cause__
    return None, f"{type(error).__name__}: {error}"
