"""Whole files: written aside and then named, so that a name never stands for a part of one."""

from __future__ import annotations

import contextlib
import posixpath
import re
import uuid
from collections.abc import Iterator
from typing import NoReturn, Optional

from input_checkpoint_sftp.errors import (
    NO_SUCH_FILE,
    ConnectionLostError,
    NameTakenError,
    NoSuchFileError,
    NotAFolderError,
    SftpError,
    StatusError,
    UnusableServerError,
)
from input_checkpoint_sftp.protocol import FSYNC, HARD_LINK, POSIX_RENAME, Attributes, OpenFlag, Sftp

_ASIDE = re.compile(r"\.[0-9a-f]{32}\.aside")
_FOLDER_ATTEMPTS = 20


def create_file(sftp: Sftp, path: str, data: bytes) -> None:
    """Write a file under a name that is free. Atomic: a hard link is one step, and never replaces.

    Renaming would not do. Though the protocol says that it does not replace, many servers look first and then
    rename, or do replace; OpenSSH itself does so on file systems without hard links.

    Raises:
        NameTakenError: the name is not free.
        UnusableServerError: the server makes no hard links.
    """
    if HARD_LINK not in sftp.extensions:
        _refuse_to_create(sftp, path)
    with _written_aside(sftp, path, data) as aside:
        try:
            sftp.extended(HARD_LINK, aside, path)
        except StatusError as error:
            if _look_at(sftp, path) is not None:
                raise NameTakenError(path) from error
            raise
        _sync_folder(sftp, posixpath.dirname(path))
        _remove_aside(sftp, aside)


def replace_file(sftp: Sftp, path: str, data: bytes) -> None:
    """Write a file in the place of one that may be there. Atomic for readers.

    Raises:
        UnusableServerError: there is one, and the server cannot replace it in one step.
    """
    with _written_aside(sftp, path, data) as aside:
        if POSIX_RENAME in sftp.extensions:
            sftp.extended(POSIX_RENAME, aside, path)
            return
        try:
            sftp.rename(aside, path)
        except StatusError as error:
            if _look_at(sftp, path) is None:
                raise
            raise UnusableServerError(
                f"it is there, and the server cannot replace it in one step ({POSIX_RENAME}). Choose another "
                "storage."
            ) from error


def read_file(sftp: Sftp, path: str, start: int, end: Optional[int]) -> bytes:
    """Return a slice of a file.

    Raises:
        NoSuchFileError: there is none; what has the name may be a folder.
    """
    handle = sftp.open(path, OpenFlag.READ)
    try:
        attributes = sftp.stat_handle(handle)
        if attributes.is_folder:
            raise NoSuchFileError(NO_SUCH_FILE, "a folder")
        size = attributes.size or 0
        stop = size if end is None else min(end, size)
        return sftp.read(handle, start, stop) if start < stop else b""
    finally:
        with contextlib.suppress(SftpError):  # what there was to know is known
            sftp.close(handle)


def remove_files(sftp: Sftp, paths: list[str]) -> dict[str, StatusError]:
    """Remove those files that are there. Return what went wrong, by path."""
    failures = sftp.remove(paths)
    return {path: error for path, error in failures.items() if not _is_no_file(sftp, path, error)}


def remove_folders_if_empty(sftp: Sftp, folders: set[str], root: str) -> None:
    """Remove empty folders, and those above them that are empty then, up to ``root``, which stays."""
    for folder in sorted(folders, key=len, reverse=True):
        while folder != root:
            try:
                sftp.remove_folder(folder)
            except StatusError:
                break
            folder = posixpath.dirname(folder)


def is_aside(name: str) -> bool:
    """Whether a file name is one that files are written aside under."""
    return _ASIDE.fullmatch(name) is not None


def check_folder(sftp: Sftp, path: str) -> None:
    """See that a path is a folder, if it is anything.

    Raises:
        NotAFolderError: it is a file.
    """
    # What is above it tells, too: below a file there is nothing, which is all that a server says.
    while path != "/":
        attributes = _look_at(sftp, path)
        if attributes is not None:
            if attributes.is_folder or attributes.mode is None:
                return
            raise NotAFolderError(path)
        path = posixpath.dirname(path)


def _refuse_to_create(sftp: Sftp, path: str) -> NoReturn:
    # A server that lets us write nothing does not tell of hard links either: then that is the answer.
    with _written_aside(sftp, path, b""):
        raise UnusableServerError(
            f"the server cannot make hard links ({HARD_LINK}), so a commit cannot be made atomic there. "
            "Choose another storage, or name one for the commits: "
            "storage_options={'commit_lock': 'file:///a/folder/that/all/share'}."
        )


@contextlib.contextmanager
def _written_aside(sftp: Sftp, path: str, data: bytes) -> Iterator[str]:
    folder = posixpath.dirname(path)
    # Not of the name itself, which may be as long as the file system allows.
    aside = f"{folder}/.{uuid.uuid4().hex}.aside"
    handle = _open_new(sftp, aside)
    try:
        _write(sftp, handle, data)
        yield aside
    except BaseException:
        _remove_aside(sftp, aside)
        raise


def _remove_aside(sftp: Sftp, aside: str) -> None:
    # Without a connection somebody's `list` does it, a day later.
    with contextlib.suppress(ConnectionLostError):
        sftp.remove([aside])


def _open_new(sftp: Sftp, path: str) -> bytes:
    flags = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE
    for _ in range(_FOLDER_ATTEMPTS):
        try:
            return sftp.open(path, flags)
        except NoSuchFileError:
            # After the first time: a concurrent delete has removed the folder, empty as it was.
            _make_folders(sftp, posixpath.dirname(path))
    return sftp.open(path, flags)


def _write(sftp: Sftp, handle: bytes, data: bytes) -> None:
    try:
        sftp.write(handle, data)
        if FSYNC in sftp.extensions:
            sftp.extended(FSYNC, handle)
    except StatusError:
        with contextlib.suppress(StatusError):
            sftp.close(handle)
        raise
    sftp.close(handle)


def _make_folders(sftp: Sftp, path: str) -> None:
    try:
        sftp.make_folder(path)
    except NoSuchFileError:
        above = posixpath.dirname(path)
        if above == path:
            raise
        _make_folders(sftp, above)
        _make_folder(sftp, path)
    except StatusError as error:
        _raise_unless_folder(sftp, path, error)


def _make_folder(sftp: Sftp, path: str) -> None:
    try:
        sftp.make_folder(path)
    except StatusError as error:
        _raise_unless_folder(sftp, path, error)


def _raise_unless_folder(sftp: Sftp, path: str, error: StatusError) -> None:
    attributes = _look_at(sftp, path)
    if attributes is None:
        raise error
    if not attributes.is_folder:
        raise NotAFolderError(path)


def _sync_folder(sftp: Sftp, folder: str) -> None:
    """Make the names in a folder outlast a power cut: fsync(2), "NOTES". Not every server can."""
    if FSYNC not in sftp.extensions:
        return
    with contextlib.suppress(StatusError):
        handle = sftp.open(folder, OpenFlag.READ)
        try:
            sftp.extended(FSYNC, handle)
        finally:
            sftp.close(handle)


def _look_at(sftp: Sftp, path: str) -> Optional[Attributes]:
    try:
        return sftp.stat(path)
    except NoSuchFileError:
        return None


def _is_no_file(sftp: Sftp, path: str, error: StatusError) -> bool:
    if isinstance(error, NoSuchFileError):
        return True
    attributes = _look_at(sftp, path)
    return attributes is None or attributes.is_folder
