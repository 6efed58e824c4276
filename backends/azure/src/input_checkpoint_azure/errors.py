"""Translates the errors of Azure and its client libraries."""

from __future__ import annotations

from typing import Optional

from aiohttp import ClientConnectorCertificateError, ClientConnectorSSLError
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

from input_checkpoint.backends.answers import AnswerHead
from input_checkpoint.backends.object_store import (
    RETRY_ADVICE,
    Advice,
    FailureCause,
    Operation,
    RangePastEndError,
    RequestFailure,
    credentials_not_accepted,
    explain_unanswered,
    is_caused_by,
)
from input_checkpoint.backends.redaction import excerpt
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
)

CREDENTIAL_REFUSALS = frozenset({"ClientAuthenticationError", "CredentialUnavailableError"})
"""Names of the exceptions that mean that there are no usable credentials."""

# https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
BLOB_NOT_FOUND = "BlobNotFound"
_EXISTS = {"BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite"}
_NO_CONTAINER = {"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled", "ResourceNotFound"}
_NOT_FOUND_WITHOUT_CODE = "404"
_PAST_END = {"InvalidRange", "416"}
_CREDENTIALS = {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation", "401"}
_TRANSIENT_CODES = {"ServerBusy", "InternalError", "OperationTimedOut"}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}

_CERTIFICATE_ERRORS = (ClientConnectorCertificateError, ClientConnectorSSLError)

_ADVICE = Advice(
    credentials=(
        "Set them in storage_options (account_name with account_key, sas_token or credential; or "
        "connection_string) or in the configuration of the Azure tools. A SAS may have expired."
    ),
    certificate=(
        "Check the account or connection string. For your own certificate authority, set the environment "
        "variable SSL_CERT_FILE."
    ),
    connection="Check that the account is right and reachable.",
)


def translate(error: Exception, operation: Operation) -> BackendError:
    """Return the `BackendError` for an exception of adlfs or of Azure's client libraries."""
    return explain(read_failure(error), operation)


def explain(failure: RequestFailure, operation: Operation) -> BackendError:
    """Return the `BackendError` for a failed request to Azure."""
    if failure.reason:
        return _explain_answer(failure, failure.reason, operation)
    return explain_unanswered(failure, operation, _ADVICE)


def read_failure(error: Exception) -> RequestFailure:
    """Return what an exception of adlfs or of Azure's client libraries says."""
    code = error_code(error)
    status = error.status_code if isinstance(error, HttpResponseError) else None
    return RequestFailure(_message(error), status, code, answer=str(error), cause=_cause(error))


def error_code(error: Exception) -> str:
    """Return Azure's code for an error; empty if it has none."""
    code = getattr(error, "error_code", None) if isinstance(error, HttpResponseError) else None
    return str(getattr(code, "value", code) or "")


def _explain_answer(failure: RequestFailure, reason: str, operation: Operation) -> BackendError:
    if reason in _EXISTS:
        return operation.already_exists()
    if reason in _NO_CONTAINER:
        return operation.error(
            BackendNotFoundError, "the container does not exist. Create it, or correct the URI."
        )
    if reason == BLOB_NOT_FOUND:
        return operation.does_not_exist()
    if reason == _NOT_FOUND_WITHOUT_CODE:
        # A proxy does not know whether the blob exists.
        return operation.unexpected_answer(
            AnswerHead("the request", 404, {}).unexpected("an error from Azure")
        )
    if reason in _PAST_END or failure.status == 416:
        return operation.error(RangePastEndError, "the range starts past the end of the blob")
    if reason in _TRANSIENT_CODES or failure.status in _TRANSIENT_STATUS:
        return operation.error(
            BackendUnavailableError, f"{reason}: {failure.message.rstrip('.')}; {RETRY_ADVICE}."
        )
    denial = _explain_denial(failure, reason, operation)
    return denial or operation.error(BackendError, f"{reason}: {failure.message}")


def _explain_denial(failure: RequestFailure, reason: str, operation: Operation) -> Optional[BackendError]:
    if reason in _CREDENTIALS and "date header" in failure.answer.lower():
        return operation.error(
            BackendPermissionError,
            f"this machine's clock and Azure's differ by too much ({reason}). Set the clock.",
        )
    if reason in _CREDENTIALS:
        return credentials_not_accepted(operation, reason, _ADVICE)
    if failure.status == 403:
        return operation.error(
            BackendPermissionError,
            f"access denied ({reason}). The identity needs the role Storage Blob Data Contributor on the "
            "container; a SAS needs the permissions r, w, c, d and l.",
        )
    return None


def _message(error: Exception) -> str:
    """Return the first line. The next ones repeat the request with its signature."""
    text = str(getattr(error, "message", None) or error).strip() or type(error).__name__
    return excerpt(text.splitlines()[0])


def _cause(error: Exception) -> FailureCause:
    if isinstance(error, ClientAuthenticationError) or type(error).__name__ in CREDENTIAL_REFUSALS:
        return FailureCause.CREDENTIALS
    if is_caused_by(error, _CERTIFICATE_ERRORS):
        return FailureCause.CERTIFICATE
    if isinstance(error, (TypeError, ValueError)):
        return FailureCause.OPTIONS
    return FailureCause.CONNECTION
