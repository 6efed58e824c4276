"""Whole files: written aside and then named, so that a name never stands for a part of one."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Collection
from typing import Callable, NoReturn, Optional, TypeVar

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_UNKNOWN

from input_checkpoint_sftp.connection import Session
from input_checkpoint_sftp.errors import (
    ConnectionLostError,
    NameTakenError,
    NotAFolderError,
    SftpError,
    UnusableServerError,
)

_ASIDE = re.compile(r"\.[0-9a-f]{32}\.aside")
_FOLDER_ATTEMPTS = 20
_LEAST_PIECE_BYTES = 32_000
"""Of a read or write. With its header it fits into one SSH packet, and every server takes that much."""
_BYTES_IN_FLIGHT = 4 << 20
_REQUESTS_IN_FLIGHT = 64
"""As OpenSSH's own client has them."""

_Item = TypeVar("_Item")


async def create_file(session: Session, path: str, data: bytes) -> None:
    """Write a file under a name that is free. Atomic: a hard link is one step, and never replaces.

    Renaming would not do. Though the protocol says that it does not replace, many servers look first and then
    rename, or do replace; OpenSSH itself does so on file systems without hard links.

    Raises:
        NameTakenError: the name is not free.
        UnusableServerError: the server makes no hard links.
    """
    if not await _makes_hard_links(session):
        await _refuse_to_create(session, path)
    async with _written_aside(session, path, data) as aside:
        try:
            await session.ask(session.sftp.link(aside, path))
        except asyncssh.SFTPError as error:
            if await _look_at(session, path) is not None:
                raise NameTakenError(path) from error
            raise
        await _sync_folder(session, posixpath.dirname(path))
        await _remove_aside(session, aside)


async def replace_file(session: Session, path: str, data: bytes) -> None:
    """Write a file in the place of one that may be there. Atomic for readers.

    Raises:
        UnusableServerError: there is one, and the server cannot replace it in one step.
    """
    async with _written_aside(session, path, data) as aside:
        try:
            await session.ask(session.sftp.posix_rename(aside, path))
        except asyncssh.SFTPOpUnsupported as unsupported:
            try:
                await session.ask(session.sftp.rename(aside, path))
            except asyncssh.SFTPError:
                if await _look_at(session, path) is None:
                    raise
                raise UnusableServerError(
                    "it is there, and the server cannot replace it in one step (posix-rename@openssh.com). "
                    "Choose another storage."
                ) from unsupported


async def read_file(session: Session, path: str, start: int, end: Optional[int]) -> bytes:
    """Return a slice of a file.

    Raises:
        asyncssh.SFTPNoSuchFile: there is none; what has the name may be a folder.
    """
    file = await session.ask(session.sftp.open(path, "rb", block_size=0))
    try:
        attributes = await session.ask(file.stat())
        if attributes.type == FILEXFER_TYPE_DIRECTORY:
            raise asyncssh.SFTPNoSuchFile("a folder")
        size = attributes.size or 0
        return await _read(session, file, start, size if end is None else min(end, size))
    finally:
        with contextlib.suppress(asyncssh.SFTPError, SftpError):  # what there was to know is known
            await session.ask(file.close())


async def list_folder(session: Session, path: str) -> list[asyncssh.SFTPName]:
    """Return what is in a folder."""

    async def read() -> list[asyncssh.SFTPName]:
        found = []
        async for entry in session.sftp.scandir(path):
            session.is_answering()
            found.append(entry)
        return found

    return await session.ask(read())


async def remove_files(session: Session, paths: Collection[str]) -> dict[str, asyncssh.SFTPError]:
    """Remove those files that are there. Return what went wrong, by path."""
    failures = {}

    async def remove(path: str) -> None:
        try:
            await session.ask(session.sftp.remove(path))
        except asyncssh.SFTPNoSuchFile:
            pass
        except asyncssh.SFTPError as error:
            attributes = await _look_at(session, path)
            if attributes is not None and attributes.type != FILEXFER_TYPE_DIRECTORY:
                failures[path] = error

    await _each(remove, paths, _REQUESTS_IN_FLIGHT)
    return failures


async def remove_folders_if_empty(session: Session, folders: set[str], root: str) -> None:
    """Remove empty folders, and those above them that are empty then, up to ``root``, which stays."""
    for folder in sorted(folders, key=len, reverse=True):
        while folder != root:
            try:
                await session.ask(session.sftp.rmdir(folder))
            except asyncssh.SFTPError:
                break
            folder = posixpath.dirname(folder)


def is_aside(name: str) -> bool:
    """Whether a file name is one that files are written aside under."""
    return _ASIDE.fullmatch(name) is not None


async def check_folder(session: Session, path: str) -> None:
    """See that a path is a folder, if it is anything.

    Raises:
        NotAFolderError: it is a file.
    """
    # What is above it tells, too: below a file there is nothing, which is all that a server says.
    while path != "/":
        attributes = await _look_at(session, path)
        if attributes is not None:
            if attributes.type in (FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_UNKNOWN):
                return
            raise NotAFolderError(path)
        path = posixpath.dirname(path)


async def _makes_hard_links(session: Session) -> bool:
    if session.makes_hard_links is None:
        try:
            # It does not come true in any case. Without the extension asyncssh does not even send it.
            await session.ask(session.sftp.link("/", "/"))
        except asyncssh.SFTPError as error:
            session.makes_hard_links = not isinstance(error, asyncssh.SFTPOpUnsupported)
        else:
            session.makes_hard_links = True
    return session.makes_hard_links


async def _refuse_to_create(session: Session, path: str) -> NoReturn:
    # A server that lets us write nothing does not tell of hard links either: then that is the answer.
    async with _written_aside(session, path, b""):
        raise UnusableServerError(
            "the server cannot make hard links (hardlink@openssh.com), so a commit cannot be made atomic "
            "there. Choose another storage, or name one for the commits: "
            "storage_options={'commit_lock': 'file:///a/folder/that/all/share'}."
        )


@contextlib.asynccontextmanager
async def _written_aside(session: Session, path: str, data: bytes) -> AsyncIterator[str]:
    folder = posixpath.dirname(path)
    # Not of the name itself, which may be as long as the file system allows.
    aside = f"{folder}/.{uuid.uuid4().hex}.aside"
    file = await _open_new(session, aside)
    try:
        await _write(session, file, data)
        yield aside
    except BaseException:
        await _remove_aside(session, aside)
        raise


async def _remove_aside(session: Session, aside: str) -> None:
    # Without a connection somebody's `list` does it, a day later.
    with contextlib.suppress(asyncssh.SFTPError, ConnectionLostError):
        await session.ask(session.sftp.remove(aside))


async def _open_new(session: Session, path: str) -> asyncssh.SFTPClientFile:
    for _ in range(_FOLDER_ATTEMPTS):
        try:
            return await session.ask(session.sftp.open(path, "xb", block_size=0))
        except asyncssh.SFTPNoSuchFile:
            # After the first time: a concurrent delete has removed the folder, empty as it was.
            await _make_folders(session, posixpath.dirname(path))
    return await session.ask(session.sftp.open(path, "xb", block_size=0))


async def _write(session: Session, file: asyncssh.SFTPClientFile, data: bytes) -> None:
    length = max(session.sftp.limits.max_write_len, _LEAST_PIECE_BYTES)

    async def write(start: int) -> None:
        await session.ask(file.write(data[start : start + length], start))

    try:
        # Not in one request of asyncssh's own, which would have to be answered in time however long it is.
        await _each(write, range(0, len(data), length), _at_once(length))
        with contextlib.suppress(asyncssh.SFTPOpUnsupported):
            await session.ask(file.fsync())
    except asyncssh.SFTPError:
        with contextlib.suppress(asyncssh.SFTPError):
            await session.ask(file.close())
        raise
    await session.ask(file.close())


async def _read(session: Session, file: asyncssh.SFTPClientFile, start: int, stop: int) -> bytes:
    data = bytearray(max(0, stop - start))
    length = max(session.sftp.limits.max_read_len, _LEAST_PIECE_BYTES)

    async def read(offset: int) -> None:
        end = min(offset + length, stop)
        while offset < end:
            piece: bytes = await session.ask(file.read(end - offset, offset))
            if not 0 < len(piece) <= end - offset:
                raise asyncssh.SFTPFailure("the server answers a read with the wrong number of bytes")
            data[offset - start : offset - start + len(piece)] = piece
            offset += len(piece)

    await _each(read, range(start, stop, length), _at_once(length))
    return bytes(data)


def _at_once(length: int) -> int:
    return min(_REQUESTS_IN_FLIGHT, max(1, _BYTES_IN_FLIGHT // length))


async def _each(work: Callable[[_Item], Awaitable[None]], items: Collection[_Item], at_once: int) -> None:
    """Do something for each item, several at once. After a failure no other is begun."""
    left = iter(items)

    async def go_on() -> None:
        for item in left:
            try:
                await work(item)
            except BaseException:
                deque(left, maxlen=0)
                raise

    workers = [go_on() for _ in range(min(at_once, len(items)))]
    for failure in await asyncio.gather(*workers, return_exceptions=True):
        if failure is not None:
            raise failure


async def _make_folders(session: Session, path: str) -> None:
    try:
        await _make_folder(session, path)
    except asyncssh.SFTPNoSuchFile:
        above = posixpath.dirname(path)
        if above == path:
            raise
        await _make_folders(session, above)
        await _make_folder(session, path)


async def _make_folder(session: Session, path: str) -> None:
    try:
        await session.ask(session.sftp.mkdir(path))
    except asyncssh.SFTPNoSuchFile:
        raise
    except asyncssh.SFTPError:
        attributes = await _look_at(session, path)
        if attributes is None:
            raise
        if attributes.type != FILEXFER_TYPE_DIRECTORY:
            raise NotAFolderError(path) from None


async def _sync_folder(session: Session, folder: str) -> None:
    """Make the names in a folder outlast a power cut: fsync(2), "NOTES". Not every server can."""
    with contextlib.suppress(asyncssh.SFTPError):
        file = await session.ask(session.sftp.open(folder, "rb"))
        try:
            await session.ask(file.fsync())
        finally:
            await session.ask(file.close())


async def _look_at(session: Session, path: str) -> Optional[asyncssh.SFTPAttrs]:
    try:
        return await session.ask(session.sftp.stat(path))
    except asyncssh.SFTPNoSuchFile:
        return None
