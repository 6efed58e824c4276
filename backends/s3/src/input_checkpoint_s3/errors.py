"""What S3 and its client say, in the words of input-checkpoint."""

from __future__ import annotations

from typing import Any, Optional

from aiohttp import ClientConnectorCertificateError, ClientConnectorSSLError
from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)

from input_checkpoint.backends.obstore import ObjectStoreError
from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
)

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidClientTokenId",
}
_FORBIDDEN = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_EXISTS = {"PreconditionFailed", "412"}
_NO_CONDITIONS = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "BadRequest", "400"}
_PERMANENT = {
    "InvalidArgument",
    "InvalidRequest",
    "InvalidBucketName",
    "EntityTooLarge",
    "MethodNotAllowed",
    "400",
}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_TLS = (SSLError, ClientConnectorCertificateError, ClientConnectorSSLError)


def translate(error: BaseException, operation: str, uri: str, key: str) -> BackendError:
    """Return the `BackendError` for what s3fs raised, or for what obstore said.

    Args:
        error: the exception.
        operation: ``"create"``, ``"read"``, … for the message.
        uri: of the backend, without secrets.
        key: the object concerned; empty for the whole.
    """
    code, message = _answer(error)
    message = redact(message)
    what = f"cannot {operation} {uri}/{key}".rstrip("/")
    if isinstance(error, ObjectStoreError) and error.key and code != "NoSuchKey":
        return _not_deleted(error, uri)
    if code in _EXISTS:
        return ObjectExistsError(f"{uri}/{key} already exists")
    if code == "NoSuchBucket":
        return BackendNotFoundError(f"{what}: the bucket does not exist. Create it, or correct the URI.")
    if code in ("NoSuchKey", "404") or (code is None and isinstance(error, FileNotFoundError)):
        return ObjectNotFoundError(f"{what}: it does not exist")
    if code == "RequestTimeTooSkewed":
        return BackendPermissionError(
            f"{what}: this machine's clock and the server's differ by too much ({code}). Set the clock."
        )
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
    if code in _NO_CONDITIONS and operation == "create":
        return BackendError(
            f"{what}: this server does not know conditional writes (If-None-Match on PutObject; it answers "
            f"{code}), so commits cannot be made safe on it. Choose another one, or name a storage for the "
            "commits: storage_options={'commit_lock': 'file:///a/folder/that/all/share'}."
        )
    if code in _OTHER_REGION:
        return BackendError(
            f"{what}: the bucket is in another region ({code}: {message}). Name it: "
            "client_kwargs={'region_name': …}."
        )
    if _is_untrusted(error):
        return BackendError(
            f"{what}: the server's certificate is not trusted ({message}). Check endpoint_url; for a "
            "certificate of your own set client_kwargs={'verify': '/path/to/ca.pem'} or AWS_CA_BUNDLE."
        )
    if _is_mistaken(error):
        return BackendError(f"{what}: the URI or storage_options are wrong: {message}")
    if code in _PERMANENT:
        return BackendError(f"{what}: {code}: {message}")
    return BackendUnavailableError(
        f"{what}: {message}. Check that the endpoint is right and the server is up; trying again may help."
    )


def error_code(error: BaseException) -> Optional[str]:
    """Return S3's code for an error, or None if it did not come from the server."""
    return _answer(error)[0]


def _not_deleted(error: ObjectStoreError, uri: str) -> BackendError:
    cls = BackendPermissionError if error.code == "AccessDenied" else BackendError
    return cls(
        f"cannot delete all objects in {uri}, {error.key} for one: {error.code}: {error.message}. The key "
        "needs s3:DeleteObject there."
    )


def _is_mistaken(error: BaseException) -> bool:
    if isinstance(error, ObjectStoreError):
        return error.unsuitable
    return isinstance(error, (ParamValidationError, ProfileNotFound, ConfigParseError, TypeError, ValueError))


def _is_untrusted(error: BaseException) -> bool:
    if isinstance(error, ObjectStoreError):
        return error.untrusted
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, _TLS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _answer(error: BaseException) -> tuple[Optional[str], str]:
    """Return S3's error code, if the server answered at all, and a message."""
    if isinstance(error, ObjectStoreError):
        return error.code or (str(error.status) if error.status else None), error.message
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, ClientError):
            answer: dict[str, Any] = cause.response.get("Error", {})
            return str(answer.get("Code")), str(answer.get("Message") or cause)
        cause = cause.__cause__
    return None, f"{type(error).__name__}: {error}"
