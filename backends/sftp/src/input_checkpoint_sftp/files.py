"""Reads and writes whole files: data goes to a temporary file, which then gets its name in one step."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Collection
from dataclasses import dataclass, field
from typing import Callable, NoReturn, Optional, TypeVar

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_UNKNOWN

from input_checkpoint.backends.commit_lock import COMMIT_LOCK_ADVICE
from input_checkpoint.backends.leftovers import new_temporary_name
from input_checkpoint.backends.time_limits import finish_in_time
from input_checkpoint_sftp.connection import Session
from input_checkpoint_sftp.errors import (
    ConnectionLostError,
    NameTakenError,
    NotAFolderError,
    NotRegularError,
    SftpError,
    UnusableServerError,
)
from input_checkpoint_sftp.paths import describe_kind, is_file, lstat_if_exists

_FOLDER_ATTEMPTS = 20
_MIN_REQUEST_BYTES = 32_000
"""Data of one read or write request. It fits into one SSH packet, and every server accepts that much."""
_BYTES_IN_FLIGHT = 4 << 20
_REQUESTS_IN_FLIGHT = 64
"""The same number as OpenSSH's own client."""

_Item = TypeVar("_Item")


async def create_file(session: Session, path: str, data: bytes) -> None:
    """Write a new file atomically. Its name is set by a hard link, which never replaces a file.

    A rename would not be safe. The protocol forbids it to replace a file, but many servers check first and
    then rename, or replace. OpenSSH does so on file systems without hard links.

    Raises:
        NameTakenError: the name exists.
        NotRegularError: the path is not that of a file.
        UnusableServerError: the server cannot make hard links.
    """
    if not await _supports_hard_links(session):
        await _raise_no_hard_links(session, path)
    async with _temporary_file(session, path, data) as temporary:
        try:
            await session.wait_for(session.sftp.link(temporary, path))
        except asyncssh.SFTPError as error:
            existing = await lstat_if_exists(session, path)
            if existing is None:
                raise
            if not is_file(existing):
                raise NotRegularError(describe_kind(existing)) from error
            raise NameTakenError(path) from error
        await _sync_folder(session, posixpath.dirname(path))
        await _remove_temporary(session, temporary)


async def replace_file(session: Session, path: str, data: bytes) -> None:
    """Write a file, replacing any file of the same name. Readers see the old file or the new one.

    Raises:
        UnusableServerError: the file exists, and the server cannot replace it in one step.
    """
    async with _temporary_file(session, path, data) as temporary:
        try:
            await session.wait_for(session.sftp.posix_rename(temporary, path))
        except asyncssh.SFTPOpUnsupported as unsupported:
            try:
                await session.wait_for(session.sftp.rename(temporary, path))
            except asyncssh.SFTPError:
                if await _stat_if_exists(session, path) is None:
                    raise
                raise UnusableServerError(
                    "it exists, and the server cannot replace it in one step, because it does not support "
                    "posix-rename@openssh.com. Choose another storage."
                ) from unsupported


async def read_file(session: Session, path: str, start: int, end: Optional[int]) -> bytes:
    """Return a slice of a file.

    Raises:
        asyncssh.SFTPNoSuchFile: the file does not exist.
        NotRegularError: it is not a file. Call `look_up` first: the server may wait forever when it opens a
            named pipe.
    """
    file = await session.wait_for(session.sftp.open(path, "rb", block_size=0))
    try:
        attributes = await session.wait_for(file.stat())
        if not is_file(attributes):
            raise NotRegularError(describe_kind(attributes))
        size = attributes.size or 0
        return await _read(session, file, start, size if end is None else min(end, size))
    finally:
        with contextlib.suppress(asyncssh.SFTPError, SftpError):  # the read has its result by now
            await session.wait_for(file.close())


async def list_folder(session: Session, path: str) -> list[asyncssh.SFTPName]:
    """Return the entries of a folder."""

    async def read() -> list[asyncssh.SFTPName]:
        found = []
        async for entry in session.sftp.scandir(path):
            session.note_answer()
            found.append(entry)
        return found

    return await session.wait_for(read())


@dataclass(frozen=True)
class Removal:
    """What `remove_files` has done."""

    removed: set[str] = field(default_factory=set)
    """Paths of the files that were removed."""
    failures: dict[str, asyncssh.SFTPError] = field(default_factory=dict)
    """Why others were not, by path."""


async def remove_files(session: Session, paths: Collection[str]) -> Removal:
    """Remove files. Paths that do not exist are ignored, and so is what is not a file."""
    removal = Removal()

    async def remove(path: str) -> None:
        existing = await lstat_if_exists(session, path)
        if existing is None or not is_file(existing):
            return
        try:
            await session.wait_for(session.sftp.remove(path))
            removal.removed.add(path)
        except asyncssh.SFTPNoSuchFile:
            pass
        except asyncssh.SFTPError as error:
            if await lstat_if_exists(session, path) is not None:
                removal.failures[path] = error

    await _for_each(remove, paths, _REQUESTS_IN_FLIGHT)
    return removal


async def remove_folders_if_empty(session: Session, folders: set[str], root: str) -> None:
    """Remove folders that are empty, and then their parents if these are empty. ``root`` always stays."""
    for folder in sorted(folders, key=len, reverse=True):
        while folder != root:
            try:
                await session.wait_for(session.sftp.rmdir(folder))
            except asyncssh.SFTPError:
                break
            folder = posixpath.dirname(folder)


async def check_folder(session: Session, path: str) -> None:
    """Check that a path is a folder or does not exist.

    Raises:
        NotAFolderError: a part of the path is a file.
    """
    # The folders above are checked too: a path below a file does not exist, and the server says no more.
    while path != "/":
        attributes = await _stat_if_exists(session, path)
        if attributes is not None:
            if attributes.type in (FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_UNKNOWN):
                return
            raise NotAFolderError(path)
        path = posixpath.dirname(path)


async def _supports_hard_links(session: Session) -> bool:
    if session.supports_hard_links is None:
        try:
            # This link always fails. If the server lacks the extension, asyncssh does not even send it.
            await session.wait_for(session.sftp.link("/", "/"))
        except asyncssh.SFTPError as error:
            session.supports_hard_links = not isinstance(error, asyncssh.SFTPOpUnsupported)
        else:
            session.supports_hard_links = True
    return session.supports_hard_links


async def _raise_no_hard_links(session: Session, path: str) -> NoReturn:
    # A read-only server does not announce hard links either. Then the write raises the better error.
    async with _temporary_file(session, path, b""):
        raise UnusableServerError(
            "the server does not support hard links (hardlink@openssh.com), so commits cannot be atomic. "
            f"{COMMIT_LOCK_ADVICE}"
        )


@contextlib.asynccontextmanager
async def _temporary_file(session: Session, path: str, data: bytes) -> AsyncIterator[str]:
    """Write a temporary file beside ``path``. It is removed if the block fails."""
    folder = posixpath.dirname(path)
    temporary = f"{folder}/{new_temporary_name()}"
    file = await _open_new(session, temporary)
    try:
        await _write(session, file, data)
        yield temporary
    except BaseException:
        await _remove_temporary(session, temporary)
        raise


async def _remove_temporary(session: Session, temporary: str) -> None:
    # If the connection is lost, `SftpBackend.remove_leftovers` removes the file, a day after.
    with contextlib.suppress(asyncssh.SFTPError, ConnectionLostError):
        await session.wait_for(session.sftp.remove(temporary))


async def _open_new(session: Session, path: str) -> asyncssh.SFTPClientFile:
    for _ in range(_FOLDER_ATTEMPTS):
        try:
            return await session.wait_for(session.sftp.open(path, "xb", block_size=0))
        except asyncssh.SFTPNoSuchFile:
            # On later attempts, a concurrent delete has removed the empty folder again.
            await _make_folders(session, posixpath.dirname(path))
    return await session.wait_for(session.sftp.open(path, "xb", block_size=0))


async def _write(session: Session, file: asyncssh.SFTPClientFile, data: bytes) -> None:
    length = max(session.sftp.limits.max_write_len, _MIN_REQUEST_BYTES)

    async def write(start: int) -> None:
        await session.wait_for(file.write(data[start : start + length], start))

    try:
        # asyncssh would write all data in one call, which would have to finish within the timeout.
        writes = _for_each(write, range(0, len(data), length), _concurrency(length))
        await finish_in_time(lambda: writes, session.limits.start(len(data)))
        with contextlib.suppress(asyncssh.SFTPOpUnsupported):
            await session.wait_for(file.fsync())
    except asyncssh.SFTPError:
        with contextlib.suppress(asyncssh.SFTPError):
            await session.wait_for(file.close())
        raise
    await session.wait_for(file.close())


async def _read(session: Session, file: asyncssh.SFTPClientFile, start: int, stop: int) -> bytes:
    data = bytearray(max(0, stop - start))
    length = max(session.sftp.limits.max_read_len, _MIN_REQUEST_BYTES)
    deadline = session.limits.start(len(data))

    async def read(offset: int) -> None:
        end = min(offset + length, stop)
        while offset < end:
            chunk: bytes = await session.wait_for(file.read(end - offset, offset))
            if not 0 < len(chunk) <= end - offset:
                raise asyncssh.SFTPFailure("the server returned the wrong number of bytes for a read")
            data[offset - start : offset - start + len(chunk)] = chunk
            offset += len(chunk)

    reads = _for_each(read, range(start, stop, length), _concurrency(length))
    await finish_in_time(lambda: reads, deadline)
    return bytes(data)


def _concurrency(length: int) -> int:
    return min(_REQUESTS_IN_FLIGHT, max(1, _BYTES_IN_FLIGHT // length))


async def _for_each(
    work: Callable[[_Item], Awaitable[None]], items: Collection[_Item], concurrency: int
) -> None:
    """Run ``work`` for each item, several at the same time. Starts no more items after a failure."""
    remaining = iter(items)

    async def run_worker() -> None:
        for item in remaining:
            try:
                await work(item)
            except BaseException:
                deque(remaining, maxlen=0)
                raise

    workers = [run_worker() for _ in range(min(concurrency, len(items)))]
    for failure in await asyncio.gather(*workers, return_exceptions=True):
        if failure is not None:
            raise failure


async def _make_folders(session: Session, path: str) -> None:
    try:
        await _make_folder(session, path)
    except asyncssh.SFTPNoSuchFile:
        parent = posixpath.dirname(path)
        if parent == path:
            raise
        await _make_folders(session, parent)
        await _make_folder(session, path)


async def _make_folder(session: Session, path: str) -> None:
    try:
        await session.wait_for(session.sftp.mkdir(path))
    except asyncssh.SFTPNoSuchFile:
        raise
    except asyncssh.SFTPError:
        attributes = await _stat_if_exists(session, path)
        if attributes is None:
            raise
        if attributes.type != FILEXFER_TYPE_DIRECTORY:
            raise NotAFolderError(path) from None


async def _sync_folder(session: Session, folder: str) -> None:
    """Flush the names in a folder to the disk: see fsync(2), "NOTES". Not every server can do it."""
    with contextlib.suppress(asyncssh.SFTPError):
        file = await session.wait_for(session.sftp.open(folder, "rb"))
        try:
            await session.wait_for(file.fsync())
        finally:
            await session.wait_for(file.close())


async def _stat_if_exists(session: Session, path: str) -> Optional[asyncssh.SFTPAttrs]:
    try:
        return await session.wait_for(session.sftp.stat(path))
    except asyncssh.SFTPNoSuchFile:
        return None
