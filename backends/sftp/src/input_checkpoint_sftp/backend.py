"""A backend that stores objects as files on an SFTP server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import posixpath
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional
from urllib.parse import SplitResult, urlsplit, urlunsplit

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR
from fsspec.config import apply_config

from input_checkpoint.backends.base import (
    Backend,
    Data,
    ObjectInfo,
    check_key,
    is_key,
    may_begin_keys,
    may_hold_keys,
)
from input_checkpoint.backends.causes import raise_from
from input_checkpoint.backends.configuration import update_configuration
from input_checkpoint.backends.ignored_files import IgnoredFiles
from input_checkpoint.backends.leftovers import FolderPatterns, is_temporary, stale_files
from input_checkpoint.backends.reopening import ReopeningClient
from input_checkpoint.backends.time_limits import TimeLimitExceededError, split_time_limits
from input_checkpoint.errors import BackendNotFoundError
from input_checkpoint_sftp.connection import Connection, Session
from input_checkpoint_sftp.errors import SftpError, translate
from input_checkpoint_sftp.files import (
    Removal,
    check_folder,
    create_file,
    list_folder,
    read_file,
    remove_files,
    remove_folders_if_empty,
    replace_file,
)
from input_checkpoint_sftp.login import Login
from input_checkpoint_sftp.paths import check_folders, describe_kind, is_file, look_up

_LOGIN_FIELDS = ("known_hosts", "host_key_policy")
_FSSPEC_ONLY_OPTIONS = ("temppath", "skip_instance_cache", "use_listings_cache")
_NONE_MEANS_UNSET = ("username", "password", "port", "key_filename", "passphrase")

_WriteFile = Callable[[Session, str, bytes], Awaitable[None]]


class SftpBackend(Backend):
    """Stores each object as a file. The key is the file's path below the folder of the backend.

    An object is written to a temporary file, which then gets its name: `create` makes a hard link, which is
    atomic and never replaces a file; `put` renames. Temporary files have names that start with a dot. They
    are not listed. `remove_leftovers` removes those that crashed writers left behind.

    Objects are regular files in real folders. The folder of the backend may be a link, but no link below it
    is followed: where one is in the way, an operation fails. Listings leave links and special files out, and
    log a warning.

    Args:
        uri: ``sftp://user@host:port/absolute/path``. User and port are optional. The host may be an alias
            from ``~/.ssh/config``.
        storage_options: ``username``, ``password``, ``port``, ``key_filename``, ``passphrase``,
            ``allow_agent``, ``look_for_keys``, and the options of `asyncssh.SSHClientConnectionOptions` for
            the login (``tunnel``, ``config``, …); ``known_hosts``, a file with the server's host key;
            ``host_key_policy``, what to do about an unknown host key (``reject``, the default, ``warning`` or
            ``auto_add``); and the time limits, see `input_checkpoint.backends.time_limits`.

    Raises:
        BackendNotFoundError: ``uri`` is invalid, or contains credentials or options.
        BackendError: ``storage_options`` are invalid.

    Example:
        ```python
        backend = SftpBackend("sftp://trainer@host/data/run-7/input", {"key_filename": "/home/me/.ssh/id"})
        ```
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__(uri, storage_options)
        address = _split(uri)
        if address.password is not None or address.query or address.fragment:
            raise BackendNotFoundError(
                f"cannot open {self.uri}: credentials and options must not be part of the URI. Write "
                "sftp://user@host/path, and use a key or storage_options.",
                uri=self.uri,
            )
        if not address.hostname or not address.path.strip("/"):
            raise BackendNotFoundError(
                f"cannot open {self.uri}: it names no host or no folder. Write sftp://host/absolute/path.",
                uri=self.uri,
            )
        self._root = posixpath.normpath("/" + address.path.strip("/"))
        self._ignored = IgnoredFiles()

        def login() -> Login:
            update_configuration()
            return _login(address, storage_options)

        with self._errors("open"):
            login()
        self._reopening = ReopeningClient(lambda: Connection(login), Connection.close)

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._write("create", key, data, create_file)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._write("write", key, data, replace_file)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        path = self._path(key)

        async def read(session: Session) -> bytes:
            await look_up(session, self._root, key)
            return await read_file(session, path, start, end)

        with self._errors("read", key):
            return self._connection.run(read)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        if not may_begin_keys(prefix):
            return iter(())
        top = prefix.rpartition("/")[0]

        async def find(session: Session) -> Sequence[ObjectInfo]:
            return [
                ObjectInfo(key, attributes.size or 0, _modified(attributes))
                async for folder, entries in self._walk(
                    session, top, lambda below: may_hold_keys(below, prefix)
                )
                for key, attributes in _named(folder, entries)
                if key.startswith(prefix) and is_key(key) and self._is_object(key, attributes)
            ]

        with self._errors("list", folder=top):
            found = self._connection.run(find)
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        paths = {self._path(key): key for key in keys}
        if not paths:
            return

        async def remove(session: Session) -> Mapping[str, asyncssh.SFTPError]:
            await check_folders(session, self._root, map(posixpath.dirname, paths.values()))
            return (await self._remove(session, paths)).failures

        with self._errors("delete"):
            failures = self._connection.run(remove)
        for path, error in failures.items():
            with self._errors("delete", paths[path]):
                raise error

    def remove_leftovers(self, folders: Sequence[str]) -> None:
        """See `Backend.remove_leftovers`."""
        patterns = FolderPatterns(folders)

        async def remove(session: Session) -> None:
            times: dict[str, float] = {}
            newest = -math.inf
            async for folder, entries in self._walk(session, "", patterns.lead_to):
                for key, attributes in _named(folder, entries):
                    if attributes.type != FILEXFER_TYPE_REGULAR or attributes.mtime is None:
                        continue
                    newest = max(newest, attributes.mtime)
                    if is_temporary(posixpath.basename(key)) and patterns.include(folder):
                        times[f"{self._root}/{key}"] = attributes.mtime
            # Failures are ignored: another process may have removed a file, or we may lack the permission.
            await self._remove(session, stale_files(times, newest, time.time()))

        with self._errors("list"):
            self._connection.run(remove)

    def close(self) -> None:
        """See `Backend.close`."""
        self._reopening.close()

    @property
    def _connection(self) -> Connection:
        return self._reopening.get()

    def _write(self, operation: str, key: str, data: Data, write_file: _WriteFile) -> None:
        path = self._path(key)

        async def write(session: Session) -> None:
            await look_up(session, self._root, key)
            await write_file(session, path, bytes(data))

        with self._errors(operation, key):
            self._connection.run(write)

    async def _walk(
        self, session: Session, top: str, wanted: Callable[[str], bool]
    ) -> AsyncIterator[tuple[str, Sequence[asyncssh.SFTPName]]]:
        """Yield the folder ``top``, and the folders below it that are wanted, each with its entries."""
        pending = [top]
        while pending:
            folder = pending.pop()
            entries = await self._entries(session, folder, check=folder == top)
            yield folder, entries
            below = _named(folder, entries)
            pending += [key for key, found in below if found.type == FILEXFER_TYPE_DIRECTORY and wanted(key)]

    async def _entries(self, session: Session, folder: str, check: bool) -> Sequence[asyncssh.SFTPName]:
        """Return what is in a folder.

        Args:
            session: of the server.
            folder: its path below the root. It need not exist.
            check: whether links may lead to it. There are none on the way to what a listing has called a
                folder.
        """
        path = f"{self._root}/{folder}".rstrip("/")
        # Both at the same time. If there is a link, what was read behind it is discarded.
        checked, entries = await asyncio.gather(
            check_folders(session, self._root, [folder] if check else []),
            list_folder(session, path),
            return_exceptions=True,
        )
        if isinstance(checked, BaseException):
            raise checked
        if isinstance(entries, asyncssh.SFTPNoSuchFile):
            if not folder:
                await check_folder(session, path)
            return []
        if isinstance(entries, BaseException):
            raise entries
        return [entry for entry in entries if str(entry.filename) not in (".", "..")]

    async def _remove(self, session: Session, paths: Collection[str]) -> Removal:
        """Remove files, and the folders that become empty."""
        removal = await remove_files(session, paths)
        await remove_folders_if_empty(session, set(map(posixpath.dirname, removal.removed)), self._root)
        return removal

    def _is_object(self, key: str, attributes: asyncssh.SFTPAttrs) -> bool:
        """Return whether something is a file. Log a warning about links and special files."""
        if is_file(attributes):
            return True
        if attributes.type != FILEXFER_TYPE_DIRECTORY:
            self._ignored.warn_of(f"{self.uri}/{key}", describe_kind(attributes))
        return False

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    @contextlib.contextmanager
    def _errors(self, operation: str, key: Optional[str] = None, folder: str = "") -> Iterator[None]:
        """Translate errors of the server and the connection. For the arguments, see `translate`."""
        try:
            yield
        except (SftpError, asyncssh.SFTPError, TimeLimitExceededError) as error:
            raise_from(translate(error, operation, self.uri, key, folder), error)


def open_sftp(uri: str, storage_options: Mapping[str, Any]) -> SftpBackend:
    """Open ``sftp://user@host:port/absolute/path`` or ``ssh://…``. See `SftpBackend`."""
    return SftpBackend(uri, storage_options)


def _split(uri: str) -> SplitResult:
    try:
        address = urlsplit(uri)
        address.port  # noqa: B018 - parsed on access
        return address
    except ValueError:
        pass
    # The message contains neither the URI nor the error: a password with a slash may end up in the port.
    raise BackendNotFoundError(
        "cannot open the SFTP URI: its host or port is invalid. Write sftp://user@host:22/path, without a "
        "password."
    )


def _login(address: SplitResult, storage_options: Mapping[str, Any]) -> Login:
    uri = urlunsplit(address)
    limits, options = split_time_limits(uri, apply_config(_FsspecProtocols, dict(storage_options)))
    for name in _FSSPEC_ONLY_OPTIONS:
        options.pop(name, None)
    for name in _NONE_MEANS_UNSET:
        if options.get(name, "") is None:
            del options[name]
    fields = {name: options.pop(name) for name in _LOGIN_FIELDS if name in options}
    if address.username is not None:
        options.setdefault("username", address.username)
    if address.port is not None:
        options.setdefault("port", address.port)
    if "key_filename" in options:
        names = options.pop("key_filename")
        # asyncssh would read a tuple as a key and its certificate.
        options["client_keys"] = [names] if isinstance(names, (str, os.PathLike)) else list(names)
    if not options.pop("allow_agent", True):
        options["agent_path"] = None
    if not options.pop("look_for_keys", True):
        options.setdefault("client_keys", None)
    return Login(_host(address), options, limits=limits, **fields)


def _host(address: SplitResult) -> str:
    """Return the host as written in the URI, since aliases in ``~/.ssh/config`` are case-sensitive."""
    name = address.hostname or ""
    host_and_port = address.netloc.rpartition("@")[2]
    start = host_and_port.lower().find(name)
    return host_and_port[start : start + len(name)]


class _FsspecProtocols:
    """Stands in for fsspec's own SFTP filesystem, which needs paramiko, to look up its configuration."""

    protocol = ("sftp", "ssh")


def _named(folder: str, entries: Iterable[asyncssh.SFTPName]) -> Iterator[tuple[str, asyncssh.SFTPAttrs]]:
    """Return the path of each entry below the root, and its attributes."""
    return ((f"{folder}/{entry.filename!s}".lstrip("/"), entry.attrs) for entry in entries)


def _modified(attributes: asyncssh.SFTPAttrs) -> Optional[float]:
    return None if attributes.mtime is None else float(attributes.mtime)
