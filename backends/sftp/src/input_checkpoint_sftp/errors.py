"""What can go wrong with an SFTP server, and what that is in the words of input-checkpoint."""

from __future__ import annotations

from input_checkpoint.backend import redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFound,
    BackendPermissionError,
    BackendUnavailable,
    ObjectExists,
    ObjectNotFound,
)

# https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02#section-7
NO_SUCH_FILE = 2
PERMISSION_DENIED = 3
FAILURE = 4
BAD_MESSAGE = 5
NO_CONNECTION = 6
CONNECTION_LOST = 7
UNSUPPORTED = 8


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


class StatusError(SftpError):
    """The server has answered a request with a status that is not success.

    Args:
        code: as in the protocol.
        text: what the server says with it, which is hardly ever more than the name of the code.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text or f"status {code}")
        self.code = code


class NoSuchFileError(StatusError):
    """There is no file or folder of that name."""


def status_error(code: int, text: str) -> StatusError:
    """Return the error for a status."""
    return (NoSuchFileError if code == NO_SUCH_FILE else StatusError)(code, text)


def translate(error: SftpError, operation: str, uri: str, key: str) -> BackendError:
    """Return the `BackendError` for an error of this package.

    Args:
        error: the exception.
        operation: ``"create"``, ``"read"``, … for the message.
        uri: of the backend, without secrets.
        key: the object concerned; empty for the whole.
    """
    what = f"cannot {operation} {uri}/{key}".rstrip("/")
    message = redact(str(error))
    if isinstance(error, ConnectionLostError):
        return BackendUnavailable(
            f"{what}: {message}. Check that the host and port are right and the server is up; trying again "
            "may help."
        )
    if isinstance(error, LoginError):
        return BackendPermissionError(f"{what}: {message}")
    if isinstance(error, NameTakenError):
        return ObjectExists(f"{uri}/{key} already exists")
    if isinstance(error, NotAFolderError):
        return BackendNotFound(f"{what}: {message} is a file, and a folder is needed. Correct the URI.")
    if isinstance(error, StatusError):
        return _refused(error.code, message, operation, what)
    return BackendError(f"{what}: {message}")


def _refused(code: int, message: str, operation: str, what: str) -> BackendError:
    if code == NO_SUCH_FILE and operation == "read":
        return ObjectNotFound(f"{what}: it does not exist")
    if code == NO_SUCH_FILE:
        return BackendNotFound(f"{what}: the folder does not exist ({message}).")
    if code == PERMISSION_DENIED:
        return BackendPermissionError(
            f"{what}: permission denied. The user needs to read, write and search that folder, in a file "
            "system with hard links, and the server must not be read-only."
        )
    if code == FAILURE:
        return BackendError(
            f"{what}: the server refuses and gives no reason ({message}). Is its disk full, a quota reached, "
            "or the file system read-only?"
        )
    if code == BAD_MESSAGE:
        return BackendError(f"{what}: the server cannot make sense of it ({message}). Is the path too long?")
    if code in (NO_CONNECTION, CONNECTION_LOST):
        return BackendUnavailable(f"{what}: {message}. Trying again may help.")
    return BackendError(f"{what}: {message}")
