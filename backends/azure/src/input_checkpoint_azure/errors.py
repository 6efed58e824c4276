"""What Azure and its client say, in the words of input-checkpoint."""

from __future__ import annotations

from typing import Optional

from aiohttp import ClientConnectorCertificateError, ClientConnectorSSLError
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

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

# https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
_EXISTS = {"BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite"}
_NO_CONTAINER = {"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled", "ResourceNotFound"}
_NO_BLOB = {"BlobNotFound", "404"}
_CREDENTIALS = {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation", "401"}
_PASSING = {"ServerBusy", "InternalError", "OperationTimedOut", "429", "500", "502", "503", "504", "408"}
_NOT_LOGGED_IN = {"ClientAuthenticationError", "CredentialUnavailableError"}
_TLS = (ClientConnectorCertificateError, ClientConnectorSSLError)


def translate(error: BaseException, operation: str, uri: str, key: str) -> BackendError:
    """Return the `BackendError` for what adlfs or Azure's client raised, or for what obstore said.

    Args:
        error: the exception.
        operation: ``"create"``, ``"read"``, … for the message.
        uri: of the backend, without secrets.
        key: the object concerned; empty for the whole.
    """
    what = f"cannot {operation} {uri}/{key}".rstrip("/")
    code, message = error_code(error), _message(error)
    if code is not None:
        return _answered(code, message, what, f"{uri}/{key}", error)
    if isinstance(error, ClientAuthenticationError) or _raised(error) in _NOT_LOGGED_IN:
        return _not_accepted(what, message)
    if _is_untrusted(error):
        return BackendError(
            f"{what}: the server's certificate is not trusted ({message}). Check the account or connection "
            "string; a certificate authority of your own is named in the environment variable SSL_CERT_FILE."
        )
    if _is_mistaken(error):
        return BackendError(f"{what}: the URI or storage_options are wrong: {message}")
    return BackendUnavailableError(
        f"{what}: {message}. Check that the account is right and reachable; trying again may help."
    )


def error_code(error: BaseException) -> Optional[str]:
    """Return Azure's code for an error, or its HTTP status; None if it did not come from the server."""
    if isinstance(error, ObjectStoreError):
        return error.code or (str(error.status) if error.status else None)
    if not isinstance(error, HttpResponseError):
        return None
    code = getattr(error, "error_code", None) or error.status_code
    return None if code is None else str(getattr(code, "value", code))


def _answered(code: str, message: str, what: str, name: str, error: BaseException) -> BackendError:
    status = str(error.status if isinstance(error, ObjectStoreError) else getattr(error, "status_code", ""))
    if code in _EXISTS:
        return ObjectExistsError(f"{name} already exists")
    if code in _NO_CONTAINER:
        return BackendNotFoundError(f"{what}: the container does not exist. Create it, or correct the URI.")
    if code in _NO_BLOB:
        return ObjectNotFoundError(f"{what}: it does not exist")
    if code in _PASSING or status in _PASSING:
        return BackendUnavailableError(f"{what}: {code}: {message}. Trying again may help.")
    if code in _CREDENTIALS and "date header" in _whole_answer(error).lower():
        return BackendPermissionError(
            f"{what}: this machine's clock and Azure's differ by too much ({code}). Set the clock."
        )
    if code in _CREDENTIALS:
        return _not_accepted(what, code)
    if status == "403":
        return BackendPermissionError(
            f"{what}: access denied ({code}). The identity needs the role Storage Blob Data Contributor on "
            "the container; a SAS needs the permissions r, w, c, d and l."
        )
    return BackendError(f"{what}: {code}: {message}")


def _not_accepted(what: str, why: str) -> BackendError:
    return BackendPermissionError(
        f"{what}: the credentials are not accepted ({why}). Set them in storage_options (account_name with "
        "account_key, sas_token or credential; connection_string) or where Azure's tools look for them. A "
        "SAS may have expired."
    )


def _message(error: BaseException) -> str:
    """Return the first line: what follows repeats the request, signature and all."""
    text = str(getattr(error, "message", None) or error).strip() or type(error).__name__
    return redact(text.splitlines()[0])


def _raised(error: BaseException) -> str:
    return error.raised if isinstance(error, ObjectStoreError) else type(error).__name__


def _whole_answer(error: BaseException) -> str:
    return error.body if isinstance(error, ObjectStoreError) else str(error)


def _is_mistaken(error: BaseException) -> bool:
    if isinstance(error, ObjectStoreError):
        return error.unsuitable
    return isinstance(error, (TypeError, ValueError))


def _is_untrusted(error: BaseException) -> bool:
    if isinstance(error, ObjectStoreError):
        return error.untrusted
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, _TLS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
