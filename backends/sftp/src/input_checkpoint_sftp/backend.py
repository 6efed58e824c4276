"""Objects as files in a folder of an SFTP server."""

from __future__ import annotations

import contextlib
import os
import posixpath
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Optional
from urllib.parse import SplitResult, urlsplit

import asyncssh
from asyncssh.constants import FILEXFER_TYPE_DIRECTORY, FILEXFER_TYPE_REGULAR, FILEXFER_TYPE_UNKNOWN
from fsspec.config import apply_config

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.errors import BackendNotFoundError
from input_checkpoint_sftp.connection import Connection, Session
from input_checkpoint_sftp.errors import SftpError, translate
from input_checkpoint_sftp.files import (
    check_folder,
    create_file,
    is_aside,
    list_folder,
    read_file,
    remove_files,
    remove_folders_if_empty,
    replace_file,
)
from input_checkpoint_sftp.login import Login

_LEFT_BEHIND_SECONDS = 24 * 3600
_OPTIONS = ("known_hosts", "host_key_policy", "timeout")
_OF_FSSPEC_ALONE = ("temppath", "skip_instance_cache", "use_listings_cache")
_NONE_IS_NONE_GIVEN = ("username", "password", "port", "key_filename", "passphrase")

_Store = Callable[[Session, str, bytes], Awaitable[None]]


class SftpBackend(Backend):
    """A folder of an SFTP server.

    An object is written under a temporary name and then given its own: by a hard link, which is atomic and
    never replaces (`create`), or by a rename, which replaces (`put`). What a crash leaves behind has a name
    that begins with a dot; it is never listed, and removed a day later.

    Args:
        uri: ``sftp://user@host:port/absolute/path``; user and port may be left out, and the host may be one
            of ``~/.ssh/config``.
        storage_options: ``username``, ``password``, ``port``, ``key_filename``, ``passphrase``,
            ``allow_agent``, ``look_for_keys``, and what else `asyncssh.SSHClientConnectionOptions` takes for
            logging in (``tunnel``, ``config``, …); ``known_hosts``, a file with the server's host key;
            ``host_key_policy``, what to do about one that is not known (``reject``, the default,
            ``warning``, ``auto_add``); ``timeout``, in seconds, 20 by default.

    Example:
        ```python
        backend = SftpBackend("sftp://trainer@host/data/run-7/input", {"key_filename": "/home/me/.ssh/id"})
        ```
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        where = _split(uri)
        if where.password is not None or where.query or where.fragment:
            raise BackendNotFoundError(
                f"{self.uri}: credentials and options do not belong into the URI. Write "
                "sftp://user@host/path, and pass storage_options or use a key."
            )
        if not where.hostname or not where.path.strip("/"):
            raise BackendNotFoundError(
                f"{self.uri} names no host, or no folder on it. Write sftp://host/absolute/path."
            )
        self._root = posixpath.normpath("/" + where.path.strip("/"))
        with self._errors("open", ""):
            self._connection = Connection(_login(where, storage_options))

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
        if folder and not _is_key(folder):
            return iter(())
        with self._errors("list", folder):
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

        with self._errors("delete", ""):
            failures = self._connection.run(remove)
        for path, error in failures.items():
            with self._errors("delete", paths[path]):
                raise error

    def close(self) -> None:
        """See `Backend.close`."""
        self._connection.close()

    def _write(self, operation: str, key: str, data: Data, store: _Store) -> None:
        path = self._path(key)
        with self._errors(operation, key):
            self._connection.run(lambda session: store(session, path, bytes(data)))

    async def _walk(self, session: Session, folder: str, prefix: str) -> Sequence[ObjectInfo]:
        """Return the objects below a folder whose keys begin with ``prefix``."""
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            entries = await list_folder(session, path)
        except asyncssh.SFTPNoSuchFile:
            if not folder:
                await check_folder(session, path)
            return []
        await _remove_left_behind(session, path, entries)
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
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except (SftpError, asyncssh.SFTPError) as error:
            raise translate(error, operation, self.uri, key) from error


def open_sftp(uri: str, storage_options: Mapping[str, Any]) -> SftpBackend:
    """Open ``sftp://user@host:port/absolute/path`` or ``ssh://…``."""
    return SftpBackend(uri, storage_options)


def _split(uri: str) -> SplitResult:
    try:
        where = urlsplit(uri)
        where.port  # noqa: B018 - it is here that it is looked at
        return where
    except ValueError:
        pass
    # Neither the URI nor the error is shown: the port may be a piece of a password with a slash in it.
    raise BackendNotFoundError(
        "the sftp URI cannot be read: its host or port is wrong. Write sftp://user@host:22/path, without a "
        "password."
    )


def _login(where: SplitResult, storage_options: Mapping[str, Any]) -> Login:
    options = apply_config(_Filesystem, dict(storage_options))
    for name in _OF_FSSPEC_ALONE:
        options.pop(name, None)
    for name in _NONE_IS_NONE_GIVEN:
        if options.get(name, "") is None:
            del options[name]
    ours = {name: options.pop(name) for name in _OPTIONS if name in options}
    if where.username is not None:
        options.setdefault("username", where.username)
    if where.port is not None:
        options.setdefault("port", where.port)
    if "key_filename" in options:
        names = options.pop("key_filename")
        # A tuple would be a key and its certificate.
        options["client_keys"] = [names] if isinstance(names, (str, os.PathLike)) else list(names)
    if not options.pop("allow_agent", True):
        options["agent_path"] = None
    if not options.pop("look_for_keys", True):
        options.setdefault("client_keys", None)
    return Login(_host(where), options, **ours)


def _host(where: SplitResult) -> str:
    """Return the host as it is written: names in ``~/.ssh/config`` may have capitals."""
    name = where.hostname or ""
    place = where.netloc.rpartition("@")[2]
    start = place.lower().find(name)
    return place[start : start + len(name)]


class _Filesystem:
    """What fsspec's configuration knows of the filesystem for these URIs, which needs paramiko."""

    protocol = ("sftp", "ssh")


def _is_key(text: str) -> bool:
    try:
        check_key(text)
    except ValueError:
        return False
    return True


async def _remove_left_behind(session: Session, path: str, entries: Sequence[asyncssh.SFTPName]) -> None:
    """Remove what crashed writers have left in a folder; others may be writing there just now."""
    times = {str(entry.filename): entry.attrs.mtime for entry in entries if entry.attrs.mtime is not None}
    # By the server's clock as well as ours, which may be wrong: what is in flight is not older than all else.
    now = min(time.time(), max(times.values(), default=0))
    old = [name for name, then in times.items() if is_aside(name) and now - then > _LEFT_BEHIND_SECONDS]
    # Somebody else may have been faster, or we may not be allowed to.
    await remove_files(session, [f"{path}/{name}" for name in old])
