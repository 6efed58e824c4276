"""Objects as files in a folder of an SFTP server."""

from __future__ import annotations

import contextlib
import posixpath
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, Optional
from urllib.parse import SplitResult, urlsplit

from fsspec.config import apply_config
from fsspec.implementations.sftp import SFTPFileSystem

from input_checkpoint.backend import Backend, Data, ObjectInfo, check_key
from input_checkpoint.errors import BackendNotFound
from input_checkpoint_sftp.connection import Connection
from input_checkpoint_sftp.errors import NoSuchFileError, SftpError, translate
from input_checkpoint_sftp.files import (
    check_folder,
    create_file,
    is_aside,
    read_file,
    remove_files,
    remove_folders_if_empty,
    replace_file,
)
from input_checkpoint_sftp.login import Login
from input_checkpoint_sftp.protocol import Entry, Sftp

_SSH_PORT = 22
_LEFT_BEHIND_SECONDS = 24 * 3600
_OPTIONS = ("known_hosts", "host_key_policy", "timeout")
_OF_FSSPEC_ALONE = ("temppath", "skip_instance_cache", "use_listings_cache")


class SftpBackend(Backend):
    """A folder of an SFTP server.

    An object is written under a temporary name and then given its own: by a hard link, which is atomic and
    never replaces (`create`), or by a rename, which replaces (`put`). What a crash leaves behind has a name
    that begins with a dot; it is never listed, and removed a day later.

    Args:
        uri: ``sftp://user@host:port/absolute/path``; user and port may be left out.
        storage_options: ``username``, ``password``, ``port``, and what else `paramiko.SSHClient.connect`
            takes for logging in (``key_filename``, ``passphrase``, ``pkey``, ``allow_agent``,
            ``look_for_keys``, …); ``known_hosts``, a file with the server's host key; ``host_key_policy``,
            what to do about one that is not known (``reject``, the default, ``warning``, ``auto_add``);
            ``timeout``, in seconds, 20 by default.

    Example:
        ```python
        backend = SftpBackend("sftp://trainer@host/data/run-7/input", {"key_filename": "/home/me/.ssh/id"})
        ```
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        where = _split(uri)
        if where.password is not None or where.query or where.fragment:
            raise BackendNotFound(
                f"{self.uri}: credentials and options do not belong into the URI. Write "
                "sftp://user@host/path, and pass storage_options or use a key."
            )
        if not where.hostname or not where.path.strip("/"):
            raise BackendNotFound(
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
        with self._errors("read", key), self._connection.channel() as sftp:
            return read_file(sftp, path, start, end)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        folder = prefix.rpartition("/")[0]
        if folder and not _is_key(folder):
            return iter(())
        with self._errors("list", folder), self._connection.channel() as sftp:
            found = list(self._walk(sftp, folder, prefix))
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        paths = {self._path(key): key for key in keys}
        if not paths:
            return
        with self._errors("delete", ""), self._connection.channel() as sftp:
            failures = remove_files(sftp, list(paths))
            folders = {posixpath.dirname(path) for path in paths if path not in failures}
            remove_folders_if_empty(sftp, folders, self._root)
        for path, error in failures.items():
            with self._errors("delete", paths[path]):
                raise error

    def close(self) -> None:
        """See `Backend.close`."""
        self._connection.close()

    def _write(self, operation: str, key: str, data: Data, store: Callable[[Sftp, str, bytes], None]) -> None:
        path = self._path(key)
        with self._errors(operation, key), self._connection.channel() as sftp:
            store(sftp, path, bytes(data))

    def _walk(self, sftp: Sftp, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a folder whose keys begin with ``prefix``."""
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            entries = sftp.list_folder(path)
        except NoSuchFileError:
            if not folder:
                check_folder(sftp, path)
            return
        _remove_left_behind(sftp, path, entries)
        for entry in entries:
            key, attributes = f"{folder}/{entry.name}".lstrip("/"), entry.attributes
            if entry.name.startswith("."):
                continue
            if attributes.is_folder:
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._walk(sftp, key, prefix)
            elif attributes.is_file and key.startswith(prefix):
                modified = None if attributes.modified is None else float(attributes.modified)
                yield ObjectInfo(key, attributes.size or 0, modified)

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except SftpError as error:
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
    raise BackendNotFound(
        "the sftp URI cannot be read: its host or port is wrong. Write sftp://user@host:22/path, without a "
        "password."
    )


def _login(where: SplitResult, storage_options: Mapping[str, Any]) -> Login:
    options = apply_config(SFTPFileSystem, dict(storage_options))
    for name in _OF_FSSPEC_ALONE:
        options.pop(name, None)
    ours = {name: options.pop(name) for name in _OPTIONS if name in options}
    port = options.pop("port", None) or where.port or _SSH_PORT
    if where.username is not None:
        options.setdefault("username", where.username)
    return Login(where.hostname or "", port, options, **ours)


def _is_key(text: str) -> bool:
    try:
        check_key(text)
    except ValueError:
        return False
    return True


def _remove_left_behind(sftp: Sftp, path: str, entries: list[Entry]) -> None:
    """Remove what crashed writers have left in a folder; others may be writing there just now."""
    times = [entry.attributes.modified for entry in entries if entry.attributes.modified is not None]
    # By the server's clock as well as ours, which may be wrong: what is in flight is not older than all else.
    now = min(time.time(), max(times, default=0))
    old = [
        f"{path}/{entry.name}"
        for entry in entries
        if is_aside(entry.name)
        and entry.attributes.modified is not None
        and now - entry.attributes.modified > _LEFT_BEHIND_SECONDS
    ]
    sftp.remove(old)  # somebody else may have been faster, or we may not be allowed to
