"""A backend that stores objects as files on an SFTP server."""

from __future__ import annotations

import contextlib
import os
import posixpath
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional
from urllib.parse import SplitResult, urlsplit, urlunsplit

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_UNKNOWN
from fsspec.config import apply_config

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.causes import raise_from
from input_checkpoint.backends.configuration import update_configuration
from input_checkpoint.backends.reopening import ReopeningClient
from input_checkpoint.backends.time_limits import TimeLimitExceededError, split_time_limits
from input_checkpoint.errors import BackendNotFoundError
from input_checkpoint_sftp.connection import Connection, Session
from input_checkpoint_sftp.errors import SftpError, translate
from input_checkpoint_sftp.files import (
    check_folder,
    create_file,
    is_temporary,
    list_folder,
    read_file,
    remove_files,
    remove_folders_if_empty,
    replace_file,
)
from input_checkpoint_sftp.login import Login

_STALE_AFTER_SECONDS = 24 * 3600
_LOGIN_FIELDS = ("known_hosts", "host_key_policy")
_FSSPEC_ONLY_OPTIONS = ("temppath", "skip_instance_cache", "use_listings_cache")
_NONE_MEANS_UNSET = ("username", "password", "port", "key_filename", "passphrase")

_WriteFile = Callable[[Session, str, bytes], Awaitable[None]]


class SftpBackend(Backend):
    """Stores each object as a file. The key is the file's path below the folder of the backend.

    An object is written to a temporary file, which then gets its name: `create` makes a hard link, which is
    atomic and never replaces a file; `put` renames. Temporary files have names that start with a dot. They
    are not listed, and `list` removes those that are older than a day.

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
        with self._errors("read", key):
            return self._connection.run(lambda session: read_file(session, path, start, end))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        folder = prefix.rpartition("/")[0]
        if folder and not _is_valid_key(folder):
            return iter(())
        with self._errors("list", folder=folder):
            found = self._connection.run(lambda session: self._walk(session, folder, prefix))
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        paths = {self._path(key): key for key in keys}
        if not paths:
            return

        async def remove(session: Session) -> dict[str, asyncssh.SFTPError]:
            failures = await remove_files(session, paths)
            folders = {posixpath.dirname(path) for path in paths if path not in failures}
            await remove_folders_if_empty(session, folders, self._root)
            return failures

        with self._errors("delete"):
            failures = self._connection.run(remove)
        for path, error in failures.items():
            with self._errors("delete", paths[path]):
                raise error

    def close(self) -> None:
        """See `Backend.close`."""
        self._reopening.close()

    @property
    def _connection(self) -> Connection:
        return self._reopening.get()

    def _write(self, operation: str, key: str, data: Data, write_file: _WriteFile) -> None:
        path = self._path(key)
        with self._errors(operation, key):
            self._connection.run(lambda session: write_file(session, path, bytes(data)))

    async def _walk(self, session: Session, folder: str, prefix: str) -> Sequence[ObjectInfo]:
        """Return the objects below a folder whose keys start with ``prefix``."""
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            entries = await list_folder(session, path)
        except asyncssh.SFTPNoSuchFile:
            if not folder:
                await check_folder(session, path)
            return []
        await _remove_stale_files(session, path, entries)
        found: list[ObjectInfo] = []
        for entry in entries:
            name, attributes = str(entry.filename), entry.attrs
            key = f"{folder}/{name}".lstrip("/")
            if name.startswith("."):
                continue
            if attributes.type == FILEXFER_TYPE_DIRECTORY:
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    found += await self._walk(session, key, prefix)
            elif attributes.type in (FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_UNKNOWN) and key.startswith(prefix):
                modified = None if attributes.mtime is None else float(attributes.mtime)
                found.append(ObjectInfo(key, attributes.size or 0, modified))
        return found

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


def _is_valid_key(text: str) -> bool:
    try:
        check_key(text)
    except ValueError:
        return False
    return True


async def _remove_stale_files(session: Session, path: str, entries: Sequence[asyncssh.SFTPName]) -> None:
    """Remove temporary files that crashed writers left in a folder more than a day ago."""
    times = {str(entry.filename): entry.attrs.mtime for entry in entries if entry.attrs.mtime is not None}
    # Our clock may be wrong, so age is measured from the newest file in the folder if that is older. A file
    # that is being written is never a day older than the newest one.
    now = min(time.time(), max(times.values(), default=0))
    stale = [name for name, then in times.items() if is_temporary(name) and now - then > _STALE_AFTER_SECONDS]
    # Failures are ignored: another process may have removed the file, or we may lack the permission.
    await remove_files(session, [f"{path}/{name}" for name in stale])
