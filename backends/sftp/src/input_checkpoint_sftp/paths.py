"""Looks at paths below the root of a backend, and follows no link on the way."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Iterable, Sequence
from typing import Optional

import asyncssh
from asyncssh.constants import (
    FILEXFER_TYPE_BLOCK_DEVICE,
    FILEXFER_TYPE_CHAR_DEVICE,
    FILEXFER_TYPE_DIRECTORY,
    FILEXFER_TYPE_FIFO,
    FILEXFER_TYPE_REGULAR,
    FILEXFER_TYPE_SOCKET,
    FILEXFER_TYPE_SYMLINK,
    FILEXFER_TYPE_UNKNOWN,
)

from input_checkpoint_sftp.connection import Session
from input_checkpoint_sftp.errors import LinkError, NotRegularError

_KINDS = {
    FILEXFER_TYPE_DIRECTORY: "a folder",
    FILEXFER_TYPE_SYMLINK: "a symbolic link",
    FILEXFER_TYPE_SOCKET: "a socket",
    FILEXFER_TYPE_CHAR_DEVICE: "a device",
    FILEXFER_TYPE_BLOCK_DEVICE: "a device",
    FILEXFER_TYPE_FIFO: "a named pipe",
}


async def look_up(session: Session, root: str, key: str) -> Optional[asyncssh.SFTPAttrs]:
    """Return the attributes of a file, or None if nothing has its name.

    Args:
        session: of the server.
        root: the folder of the backend, which may be a link.
        key: path of the file below it.

    Raises:
        LinkError: the file, or a folder between it and the root, is a link.
        NotRegularError: it is not a file.
    """
    paths = [*_folders_of(root, [posixpath.dirname(key)]), f"{root}/{key}"]
    attributes = (await _check_no_links(session, paths))[-1]
    if attributes is not None and not is_file(attributes):
        raise NotRegularError(describe_kind(attributes))
    return attributes


async def check_folders(session: Session, root: str, folders: Iterable[str]) -> None:
    """Check that no folder, and none between it and the root, is a link. Folders need not exist.

    Raises:
        LinkError: one of them is a link.
    """
    await _check_no_links(session, _folders_of(root, folders))


async def lstat_if_exists(session: Session, path: str) -> Optional[asyncssh.SFTPAttrs]:
    """Return the attributes of a path, or None. Those of a link are its own."""
    try:
        return await session.wait_for(session.sftp.lstat(path))
    except asyncssh.SFTPNoSuchFile:
        return None


def is_file(attributes: asyncssh.SFTPAttrs) -> bool:
    """Return whether something is a regular file, as far as the server reports it."""
    return attributes.type in (FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_UNKNOWN)


def describe_kind(attributes: asyncssh.SFTPAttrs) -> str:
    """Return the kind of something that is not a file, with an article."""
    return _KINDS.get(attributes.type, "a special file")


async def _check_no_links(session: Session, paths: Sequence[str]) -> Sequence[Optional[asyncssh.SFTPAttrs]]:
    """Return the attributes of each path, or None. All are asked for at the same time."""
    answers = await asyncio.gather(
        *(lstat_if_exists(session, path) for path in paths), return_exceptions=True
    )
    found: list[Optional[asyncssh.SFTPAttrs]] = []
    for path, answer in zip(paths, answers):
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None and answer.type == FILEXFER_TYPE_SYMLINK:
            raise LinkError(path)
        found.append(answer)
    return found


def _folders_of(root: str, folders: Iterable[str]) -> list[str]:
    """Return the paths of folders and of those between them and the root, from the top."""
    found: dict[str, None] = {}
    for folder in folders:
        names = [name for name in folder.split("/") if name]
        found.update((f"{root}/{'/'.join(names[:depth])}", None) for depth in range(1, len(names) + 1))
    return sorted(found, key=len)
