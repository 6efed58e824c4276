"""Opens folders and files through descriptors, so that no link below a root is followed.

Every system call would resolve a path again, and it could lead elsewhere each time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Union

from input_checkpoint.backends.base import LINK_ADVICE, NOT_A_FILE_ADVICE

_SEARCH = getattr(os, "O_PATH", os.O_RDONLY)
"""To open a folder only to look up names in it. With O_PATH, the folder need not be readable."""

_NO_FOLDER = {errno.ENOTDIR, errno.ELOOP, errno.EMLINK}

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotFollowedError(Exception):
    """A symbolic link is in the way. The message continues a sentence that begins with the path."""

    def __init__(self, path: str) -> None:
        super().__init__(LINK_ADVICE)
        self.path = path


class NotRegularError(Exception):
    """An object is not a regular file. The message continues a sentence that begins with the path."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(f"is {kind}, {NOT_A_FILE_ADVICE}")
        self.path = path


def describe_kind(mode: int) -> str:
    """Return the kind of something that is not a regular file, with an article.

    Example:
        >>> describe_kind(stat.S_IFIFO | 0o600)
        'a named pipe'
    """
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


@contextlib.contextmanager
def open_folder(root: Path, names: Sequence[str], flags: int = _SEARCH) -> Iterator[int]:
    """Open a folder below a root, and close it at the end of the block. The root may be a link.

    Args:
        root: an existing folder.
        names: the names of the folders between ``root`` and the folder, and of the folder itself.
        flags: ``os.O_RDONLY`` for a folder to list.

    Yields:
        The descriptor.

    Raises:
        NotFollowedError: one of these folders is a link.
        OSError: the folder does not exist, or cannot be opened.
    """
    descriptor = _open(root, flags if not names else _SEARCH)
    try:
        for depth, name in enumerate(names, 1):
            is_last = depth == len(names)
            below = open_below(descriptor, name, "/".join(names[:depth]), flags if is_last else _SEARCH)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def open_below(folder: int, name: str, path: str, flags: int = _SEARCH) -> int:
    """Return the descriptor of a folder in another one.

    Args:
        folder: the descriptor of the other one.
        name: of the folder.
        path: of the folder, for the error.
        flags: see `open_folder`.

    Raises:
        NotFollowedError: it is a link.
        OSError: it does not exist, or cannot be opened.
    """
    try:
        return _open(name, flags | os.O_NOFOLLOW, folder)
    except OSError as error:
        if error.errno in _NO_FOLDER and stat.S_ISLNK(status_of(folder, name).st_mode):
            raise NotFollowedError(path) from error
        raise


def open_regular(folder: int, name: str, path: str) -> BinaryIO:
    """Open a file in a folder to read it.

    Args:
        folder: the descriptor of the folder.
        name: of the file.
        path: of the file, for the error.

    Raises:
        NotFollowedError: it is a link.
        NotRegularError: it is not a regular file.
        OSError: it does not exist, or cannot be opened.
    """
    # Opening a named pipe would unblock its writer, and opening a device may do anything.
    check_regular(status_of(folder, name), path)
    # If something else has replaced it since, the open must not wait.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        check_regular(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def status_of(folder: int, name: str) -> os.stat_result:
    """Return the status of an entry of a folder. Of a link, it is that of the link itself."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def check_regular(status: os.stat_result, path: str) -> None:
    """Check that something is a regular file.

    Raises:
        NotFollowedError: it is a link.
        NotRegularError: it is something else.
    """
    if stat.S_ISLNK(status.st_mode):
        raise NotFollowedError(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(path, describe_kind(status.st_mode))


def sync_folder(folder: int) -> None:
    """Flush the names in a folder to the disk: see fsync(2), "NOTES". A power cut can lose them otherwise."""
    descriptor = _open(".", os.O_RDONLY, folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Union[str, Path], flags: int, folder: Union[int, None] = None) -> int:
    return os.open(path, flags | os.O_DIRECTORY, dir_fd=folder)
