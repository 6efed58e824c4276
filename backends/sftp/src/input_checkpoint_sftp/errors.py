"""Errors of an SFTP server, and their translation to the errors of input-checkpoint."""

from __future__ import annotations

from typing import Optional, Union

import asyncssh

from input_checkpoint.backends.base import LINK_ADVICE, NOT_A_FILE_ADVICE
from input_checkpoint.backends.redaction import excerpt
from input_checkpoint.backends.time_limits import TimeLimitExceededError
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
)

_REFUSED = (asyncssh.SFTPFailure, asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
_DENIED = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)


class SftpError(Exception):
    """Base of the errors that this package raises internally. Their messages contain no credentials."""


class ConnectionLostError(SftpError):
    """There is no connection to the server, or it did not answer in time."""


class LoginError(SftpError):
    """The server refused the login, or its host key was refused."""


class UnusableServerError(SftpError):
    """The server lacks a feature that the backend needs."""


class OptionsError(SftpError):
    """The storage_options are invalid."""


class NameTakenError(SftpError):
    """The name of a new file exists."""


class LinkError(SftpError):
    """A symbolic link is in the way. The message is its path."""


class NotRegularError(SftpError):
    """The name of an object is not that of a file. The message says what it is."""


class NotAFolderError(SftpError):
    """A file is where a folder is needed. The message is its path."""


def translate(
    error: Union[SftpError, asyncssh.SFTPError, TimeLimitExceededError],
    operation: str,
    uri: str,
    key: Optional[str] = None,
    folder: str = "",
) -> BackendError:
    """Return the `BackendError` for an error of this package or of the server.

    Args:
        error: the exception.
        operation: verb for the message: ``"create"``, ``"read"``, …
        uri: URI of the backend, without credentials.
        key: the object that the operation is about, if it is about one.
        folder: otherwise, the folder that it is about.
    """
    cls, problem = _diagnose(error, operation)
    where = f"{uri}/{folder if key is None else key}".rstrip("/")
    return cls(f"cannot {operation} {where}: {problem}", uri=uri, key=key)


def _diagnose(
    error: Union[SftpError, asyncssh.SFTPError, TimeLimitExceededError], operation: str
) -> tuple[type[BackendError], str]:
    message = excerpt(str(error) or type(error).__name__)
    if isinstance(error, asyncssh.SFTPError):
        return _diagnose_refusal(error, message, operation)
    if isinstance(error, TimeLimitExceededError):
        return BackendUnavailableError, f"{message}; trying again may help."
    if isinstance(error, ConnectionLostError):
        advice = "Check that the host and port are right and the server is up; trying again may help."
        return BackendUnavailableError, f"{message}. {advice}"
    if isinstance(error, LoginError):
        return BackendPermissionError, message
    if isinstance(error, NameTakenError):
        return ObjectExistsError, "it already exists"
    if isinstance(error, LinkError):
        return BackendError, f"{message} {LINK_ADVICE}"
    if isinstance(error, NotRegularError):
        cls = ObjectNotFoundError if operation == "read" else BackendError
        return cls, f"it is {message}, {NOT_A_FILE_ADVICE}"
    if isinstance(error, NotAFolderError):
        return BackendNotFoundError, f"{message} is a file, not a folder. Correct the URI."
    return BackendError, message


def _diagnose_refusal(
    error: asyncssh.SFTPError, message: str, operation: str
) -> tuple[type[BackendError], str]:
    if isinstance(error, asyncssh.SFTPNoSuchFile) and operation == "read":
        return ObjectNotFoundError, "it does not exist"
    if isinstance(error, asyncssh.SFTPNoSuchFile):
        return BackendNotFoundError, f"the folder does not exist ({message})"
    if isinstance(error, _DENIED):
        return BackendPermissionError, (
            "permission denied. The user must be able to read, write and search the folder, its file system "
            "must have hard links, and the server must not be read-only."
        )
    if isinstance(error, _REFUSED):
        return BackendError, (
            f"the server refused ({message}). Check whether its disk is full, a quota is reached, or the "
            "file system is read-only."
        )
    if isinstance(error, asyncssh.SFTPBadMessage):
        return BackendError, f"the server rejected the request ({message}). The path may be too long."
    return BackendError, message
