"""Translates the errors of S3 and its client libraries."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Optional

from aiohttp import ClientConnectorCertificateError, ClientConnectorSSLError
from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    EndpointProviderError,
    MissingDependencyException,
    ParamValidationError,
    ProfileNotFound,
    SSLError,
    UnsupportedS3AccesspointConfigurationError,
    UnsupportedS3ArnError,
)
from botocore.parsers import ResponseParserError

from input_checkpoint.backends.answers import AnswerHead, UnexpectedAnswerError
from input_checkpoint.backends.object_store import (
    Advice,
    FailureCause,
    Operation,
    RangePastEndError,
    RequestFailure,
    conditional_writes_unsupported,
    credentials_not_accepted,
    explain_unanswered,
    is_caused_by,
)
from input_checkpoint.backends.redaction import excerpt
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
)

CREDENTIAL_REFUSALS = frozenset(
    {
        "LoginRefreshRequired",
        "LoginTokenLoadError",
        "NoAuthTokenError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "SSOTokenLoadError",
        "SourceCredentialsRefusedError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    }
)
"""Names of the exceptions that mean that there are no usable credentials."""

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html. Names with "Exception" are of STS.
_CREDENTIALS = {
    "401",
    "ExpiredTokenException",
    "InvalidIdentityToken",
    "Unauthorized",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidClientTokenId",
}
_FORBIDDEN = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_EXISTS = {"PreconditionFailed", "412"}
_NO_OBJECT = "NoSuchKey"
_NOT_FOUND_WITHOUT_CODE = "404"
_PAST_END = {"InvalidRange", "416"}
_NO_CONDITIONS = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "BadRequest", "400"}
_PERMANENT = {
    "InvalidArgument",
    "InvalidRequest",
    "InvalidBucketName",
    "EntityTooLarge",
    "MethodNotAllowed",
    "400",
}
# QuotaExceeded of Ceph, XMinioAdminBucketQuotaExceeded and XMinioStorageFull of MinIO,
# ServiceQuotaExceededException of AWS, InsufficientStorage and 507 of WebDAV gateways
_QUOTA = re.compile(r"quota|storage_?full|insufficient_?storage|storage_?cap_?exceeded|^507$", re.IGNORECASE)
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}

_CERTIFICATE_ERRORS = (SSLError, ClientConnectorCertificateError, ClientConnectorSSLError)
_OPTION_ERRORS = (
    ParamValidationError,
    ProfileNotFound,
    ConfigParseError,
    EndpointProviderError,
    MissingDependencyException,
    UnsupportedS3AccesspointConfigurationError,
    UnsupportedS3ArnError,
    TypeError,
    ValueError,
)

_ADVICE = Advice(
    credentials=(
        "Set them in storage_options (key, secret, token, profile) or in the configuration of the AWS tools."
    ),
    certificate=(
        "Check endpoint_url. For your own certificate authority, set "
        "client_kwargs={'verify': '/path/to/ca.pem'} or AWS_CA_BUNDLE."
    ),
    connection="Check that the endpoint is right and the server is up.",
)


class SourceCredentialsRefusedError(Exception):
    """AWS refused the credentials with which botocore asked for others, such as those of a role."""


def translate(error: Exception, operation: Operation) -> BackendError:
    """Return the `BackendError` for an exception of s3fs or botocore."""
    page = _page(error)
    if page:
        return operation.unexpected_answer(UnexpectedAnswerError("the request", page, "an answer from S3"))
    return explain(read_failure(error), operation)


def explain(failure: RequestFailure, operation: Operation) -> BackendError:
    """Return the `BackendError` for a failed request to S3."""
    if failure.reason:
        return _explain_answer(failure, failure.reason, operation)
    return explain_unanswered(failure, operation, _ADVICE)


def read_failure(error: Exception) -> RequestFailure:
    """Return what an exception of s3fs or botocore says."""
    answer = _server_answer(error)
    if answer is not None:
        message = str(answer.get("Message") or error)
        return RequestFailure(excerpt(message), code=str(answer.get("Code")))
    message = excerpt(f"{type(error).__name__}: {error}")
    # s3fs raises these two by itself as well.
    if isinstance(error, FileNotFoundError):
        return RequestFailure(message, status=404)
    if isinstance(error, PermissionError):
        return RequestFailure(message, status=403)
    return RequestFailure(message, cause=_cause(error))


def refuses_credentials(error: ClientError) -> bool:
    """Return whether an AWS service answered that the credentials are wrong or expired."""
    return error.response.get("Error", {}).get("Code") in _CREDENTIALS


def objects_not_deleted(
    operation: Operation, how_many: str, name: str, code: str, message: str
) -> BackendError:
    """Return the error for a bulk delete that left objects behind.

    Args:
        operation: the delete.
        how_many: the number of objects, or ``"some"``.
        name: one of them.
        code: why that one was not deleted, as S3's error code.
        message: the same, in S3's words.
    """
    cls = BackendPermissionError if code == "AccessDenied" else BackendError
    return cls(
        f"cannot delete {how_many} objects in {operation.uri}, for example {name} ({code}: {message}). The "
        "credentials need s3:DeleteObject on them.",
        uri=operation.uri,
    )


def _explain_answer(failure: RequestFailure, reason: str, operation: Operation) -> BackendError:
    if reason in _EXISTS:
        return operation.already_exists()
    if reason == "NoSuchBucket":
        return operation.error(
            BackendNotFoundError, f"the bucket does not exist ({reason}). Create it, or correct the URI."
        )
    if reason == _NO_OBJECT:
        return operation.does_not_exist()
    if reason == _NOT_FOUND_WITHOUT_CODE:
        # A proxy does not know whether the object exists.
        return operation.unexpected_answer(AnswerHead("the request", 404, {}).unexpected("an error from S3"))
    if reason in _PAST_END:
        return operation.error(RangePastEndError, "the range starts past the end of the object")
    if _QUOTA.search(reason):
        return operation.error(
            BackendError,
            f"the server has no space left for this user or bucket ({_answer(failure)}). Prune or delete "
            "checkpoints, or ask for a higher quota.",
        )
    if reason in _NO_CONDITIONS and operation.verb == "create":
        condition = f"If-None-Match on PutObject; it answers {reason}"
        return conditional_writes_unsupported(operation, condition)
    return _explain_denial(failure, reason, operation) or _explain_other(failure, reason, operation)


def _explain_denial(failure: RequestFailure, reason: str, operation: Operation) -> Optional[BackendError]:
    if reason == "RequestTimeTooSkewed":
        return operation.error(
            BackendPermissionError,
            f"this machine's clock and the server's differ by too much ({reason}). Set the clock.",
        )
    if reason in _CREDENTIALS:
        return credentials_not_accepted(operation, reason, _ADVICE)
    if reason in _FORBIDDEN:
        return operation.error(
            BackendPermissionError,
            f"access denied ({_answer(failure)}). The credentials need s3:GetObject, s3:PutObject and "
            "s3:DeleteObject on the objects, and s3:ListBucket on the bucket.",
        )
    return None


def _explain_other(failure: RequestFailure, reason: str, operation: Operation) -> BackendError:
    if reason in _OTHER_REGION:
        return operation.error(
            BackendError,
            f"the bucket is in another region ({reason}: {failure.message}). Set it: "
            "client_kwargs={'region_name': …}.",
        )
    if reason in _PERMANENT:
        return operation.error(BackendError, _answer(failure))
    return explain_unanswered(replace(failure, message=_answer(failure)), operation, _ADVICE)


def _answer(failure: RequestFailure) -> str:
    """Return the server's error code and message."""
    message = failure.message.rstrip(".")
    return message if failure.reason in message else f"{failure.reason}: {message}"


def _page(error: Exception) -> str:
    """Return what the server sent if it was not XML, so not from S3; otherwise an empty string."""
    if is_caused_by(error, ResponseParserError):
        return "a body that is not XML"  # the text of the exception repeats the body
    response = _response(error)
    metadata = response.get("ResponseMetadata", {})
    # botocore turns a success whose body it cannot parse into this status.
    if metadata.get("HTTPStatusCode") != 500 or response.get("Error", {}).get("Code") != "500":
        return ""
    media_type = AnswerHead("", 500, metadata.get("HTTPHeaders", {})).media_type
    return media_type if media_type and "xml" not in media_type else ""


def _server_answer(error: BaseException) -> Optional[dict[str, Any]]:
    answer: Optional[dict[str, Any]] = _response(error).get("Error")
    return answer


def _response(error: BaseException) -> dict[str, Any]:
    """Return the answer that made botocore raise; empty if there was none."""
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, ClientError):
            return {"Error": {}, **cause.response}
        cause = cause.__cause__
    return {}


def _cause(error: Exception) -> FailureCause:
    if type(error).__name__ in CREDENTIAL_REFUSALS:
        return FailureCause.CREDENTIALS
    if is_caused_by(error, _CERTIFICATE_ERRORS):
        return FailureCause.CERTIFICATE
    if isinstance(error, _OPTION_ERRORS):
        return FailureCause.OPTIONS
    return FailureCause.CONNECTION
