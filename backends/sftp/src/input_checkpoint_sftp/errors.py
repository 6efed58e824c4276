"""What can go wrong with an SFTP server, and what that is in the words of input-checkpoint."""

from __future__ import annotations

from typing import Union

import asyncssh

from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
)

_FULL = (asyncssh.SFTPFailure, asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
_REFUSED = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect)


class SftpError(Exception):
    """Base of what this package raises within itself. The message is fit for a user, and without secrets."""


class ConnectionLostError(SftpError):
    """There is no connection, or no answer in time."""


class LoginError(SftpError):
    """The server does not accept us, or we do not accept the server."""


class UnusableServerError(SftpError):
    """The server lacks something that is needed."""


class OptionsError(SftpError):
    """The URI or storage_options cannot be used."""


class NameTakenError(SftpError):
    """A new name was wanted, and it is not free."""


class NotAFolderError(SftpError):
    """A file is where a folder is needed."""


def translate(
    error: Union[SftpError, asyncssh.SFTPError], operation: str, uri: str, key: str
) -> BackendError:
    """Return the `BackendError` for an error of this package, or for what a server has answered.

    Args:
        error: the exception.
        operation: ``"create"``, ``"read"``, … for the message.
        uri: of the backend, without secrets.
        key: the object concerned; empty for the whole.
    """
    what = f"cannot {operation} {uri}/{key}".rstrip("/")
    message = redact(str(error) or type(error).__name__)
    if isinstance(error, asyncssh.SFTPError):
        return _refused(error, message, operation, what)
    if isinstance(error, ConnectionLostError):
        return BackendUnavailableError(
            f"{what}: {message}. Check that the host and port are right and the server is up; trying again "
            "may help."
        )
    if isinstance(error, LoginError):
        return BackendPermissionError(f"{what}: {message}")
    if isinstance(error, NameTakenError):
        return ObjectExistsError(f"{uri}/{key} already exists")
    if isinstance(error, NotAFolderError):
        return BackendNotFoundError(f"{what}: {message} is a file, and a folder is needed. Correct the URI.")
    return BackendError(f"{what}: {message}")


def _refused(error: asyncssh.SFTPError, message: str, operation: str, what: str) -> BackendError:
    if isinstance(error, asyncssh.SFTPNoSuchFile) and operation == "read":
        return ObjectNotFoundError(f"{what}: it does not exist")
    if isinstance(error, asyncssh.SFTPNoSuchFile):
        return BackendNotFoundError(f"{what}: the folder does not exist ({message}).")
    if isinstance(error, _REFUSED):
        return BackendPermissionError(
            f"{what}: permission denied. The user needs to read, write and search that folder, in a file "
            "system with hard links, and the server must not be read-only."
        )
    if isinstance(error, _FULL):
        return BackendError(
            f"{what}: the server refuses and gives no reason ({message}). Is its disk full, a quota reached, "
            "or the file system read-only?"
        )
    if isinstance(error, asyncssh.SFTPBadMessage):
        return BackendError(f"{what}: the server cannot make sense of it ({message}). Is the path too long?")
    return BackendError(f"{what}: {message}")
