"""A backend that stores objects as files in a folder."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Optional

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.folder_permissions import warn_if_anybody_may_write
from input_checkpoint.backends.location import parse_location
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    InvalidLocationError,
    ObjectExistsError,
    ObjectNotFoundError,
)

_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.aside")
_STALE_AFTER_SECONDS = 24 * 3600
_FOLDER_ATTEMPTS = 20
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_PERMISSION_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
# Reported by a network file system whose server is unavailable, and by a busy disk.
_TRANSIENT_ERRORS = {
    getattr(errno, name)
    for name in (
        "EIO",
        "EAGAIN",
        "EINTR",
        "EBUSY",
        "ESTALE",
        "ETIMEDOUT",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ECONNRESET",
        "ECONNREFUSED",
        "ENOTCONN",
        "EREMOTEIO",
        "EMFILE",
        "ENFILE",
        "ENOMEM",
    )
    if hasattr(errno, name)
}
# The key does not exist, is a folder, or lies below a file.
_NO_OBJECT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class LocalBackend(Backend):
    """Stores each object as a file. The key is the file's path below the folder of the backend.

    The first write creates the folder. New data goes to a temporary file beside its target, is flushed to the
    disk, and gets its name in one atomic step. `create` makes a hard link, which fails if the name exists, on
    NFS too. `put` renames. Some file systems, such as BeeGFS, link only within one folder.

    Files and folders get the permissions that the umask of the process leaves. A folder that every user of
    the machine may write is warned of.

    Temporary files have names that start with a dot. They are not listed. Writes and deletions remove those
    that crashed writers left behind more than a day ago. Reading changes nothing.

    Args:
        uri: a path or a ``file://`` URI. See `parse_location`.

    Raises:
        BackendNotFoundError: ``uri`` names a file.
        InvalidLocationError: ``uri`` is neither a path nor a ``file://`` URI with one.

    Example:
        >>> import tempfile
        >>> backend = LocalBackend(tempfile.mkdtemp())
        >>> backend.create("a/b", b"1")
        >>> [info.key for info in backend.list()]
        ['a/b']
    """

    def __init__(self, uri: str) -> None:
        location = parse_location(uri)
        if location.path is None:
            raise InvalidLocationError(f"{redact_uri(uri)} is not local. Open it with open_backend().")
        super().__init__(location.uri)
        self._root = Path(location.path)
        self._durable_folders: set[Path] = set()
        self._searched: dict[str, float] = {}
        with self._errors("open"):
            is_file = self._root.exists() and not self._root.is_dir()
        if is_file:
            raise BackendNotFoundError(
                f"{self.uri} is a file, not a folder. Choose a folder; it need not exist yet.", uri=self.uri
            )
        warn_if_anybody_may_write(location.path)

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        with self._temporary_file(key, data) as temporary:
            self._link(temporary, key)
            _sync_folder(temporary.parent)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        with self._temporary_file(key, data) as temporary:
            os.replace(temporary, self._path(key))
            _sync_folder(temporary.parent)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        with self._errors("read", key=key), open(self._path(key), "rb") as file:
            if start >= os.fstat(file.fileno()).st_size:
                return b""
            file.seek(start)
            return file.read(-1 if end is None else max(0, end - start))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        folder = prefix.rpartition("/")[0]
        with self._errors("list", prefix=folder):
            found = sorted(self._walk(self._root / folder, folder), key=lambda info: info.key)
        return (info for info in found if info.key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        for key in keys:
            path = self._path(key)
            with self._errors("delete", key=key), contextlib.suppress(*_NO_OBJECT):
                path.unlink()
                # The deletion has just set the time of the folder.
                self._remove_stale_files(key, path.parent.stat().st_mtime)
            self._remove_empty_folders(path.parent)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextlib.contextmanager
    def _temporary_file(self, key: str, data: Data) -> Iterator[Path]:
        """Write the data of an object to a temporary file beside it, which the end of the block removes."""
        # The file's own name is not part of it, because it may be as long as the file system allows.
        temporary = self._path(key).parent / f".{uuid.uuid4().hex}.aside"
        with self._errors("write", key=key):
            file = self._open_new(temporary)
            try:
                with file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    modified = os.fstat(file.fileno()).st_mtime
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
        self._remove_stale_files(key, modified)

    def _open_new(self, temporary: Path) -> BinaryIO:
        for _ in range(_FOLDER_ATTEMPTS):
            # A concurrent delete() may remove the folder again, because it is empty.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                self._make_durable_folder(temporary.parent)
                return open(temporary, "xb")
        self._make_durable_folder(temporary.parent)
        return open(temporary, "xb")

    def _make_durable_folder(self, folder: Path) -> None:
        """Make a folder and the folders above it, and flush their names to the disk."""
        unflushed: list[Path] = []
        for each in (folder, *folder.parents):
            # A folder that exists may be one that another process has just made and not flushed yet. Folders
            # above the root are not ours: they exist already, or have to be made.
            if each.exists() and (each in self._durable_folders or self._root not in each.parents):
                break
            unflushed.append(each)
        folder.mkdir(parents=True, exist_ok=True)
        for each in reversed(unflushed):
            with contextlib.suppress(PermissionError):  # a folder may be writable without being readable
                _sync_folder(each.parent)
            self._durable_folders.add(each)
        if self._root in unflushed:
            warn_if_anybody_may_write(str(self._root))

    def _link(self, temporary: Path, key: str) -> None:
        path = self._path(key)
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise ObjectExistsError(f"{path} already exists", uri=self.uri, key=key) from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise BackendError(
                f"cannot create {path}: this file system has no hard links, so commits cannot be atomic. "
                "Choose another file system or an object store.",
                uri=self.uri,
                key=key,
            ) from error

    def _walk(self, folder: Path, key: str) -> Iterator[ObjectInfo]:
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{key}/{entry.name}" if key else entry.name
            if entry.is_dir():
                yield from self._walk(Path(entry.path), name)
                continue
            with contextlib.suppress(FileNotFoundError):  # deleted since the folder was read
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(name, status.st_size, status.st_mtime)

    def _remove_empty_folders(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _remove_stale_files(self, key: str, now: float) -> None:
        """Remove temporary files that crashed writers left behind. No write takes as long as a day.

        Searches all folders below the first one in ``key``, and the files beside it. A day passes until the
        next search there.

        Args:
            key: an object that was just written or deleted.
            now: the time by the clock of the file system, which may differ from ours.
        """
        first, slash, _ = key.partition("/")
        top = first if slash else ""
        if now - self._searched.get(top, -math.inf) < _STALE_AFTER_SECONDS:
            return
        self._searched[top] = now
        self._remove_stale_files_in(self._root, now, recursive=False)
        if top and not (self._root / top).is_symlink():
            self._remove_stale_files_in(self._root / top, now, recursive=True)

    def _remove_stale_files_in(self, folder: Path, now: float, recursive: bool) -> None:
        # Failures are ignored: another process may have removed the file, or we may lack the permission.
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(folder)):
                if recursive and entry.is_dir(follow_symlinks=False):
                    self._remove_stale_files_in(Path(entry.path), now, recursive)
                elif _is_stale(entry, now):
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
                    self._remove_empty_folders(folder)

    @contextlib.contextmanager
    def _errors(self, operation: str, key: Optional[str] = None, prefix: str = "") -> Iterator[None]:
        """Translate errors of the file system.

        Args:
            operation: verb for the message.
            key: the object that the operation is about, if it is about one.
            prefix: otherwise, the folder that it is about.
        """
        try:
            yield
        except OSError as error:
            cls, advice = self._diagnose(error, operation)
            path = self._root / (prefix if key is None else key)
            message = f"cannot {operation} {path}: {error.strerror or error}{advice}"
            raise cls(message, uri=self.uri, key=key) from error

    def _diagnose(self, error: OSError, operation: str) -> tuple[type[BackendError], str]:
        """Return the class for an error, and advice to append to its message."""
        if isinstance(error, _NO_OBJECT) and operation == "read":
            return ObjectNotFoundError, ""
        if error.errno in _PERMISSION_ERRORS:
            user = f"this user (uid {os.getuid()})"
            return BackendPermissionError, f". Give {user} access to {self._root}, or choose another URI."
        if error.errno in _BAD_PATH_ERRORS:
            return BackendNotFoundError, ". A part of this path is a file, is missing, or is too long."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return BackendError, ". Free some space, or keep fewer checkpoints."
        return BackendUnavailableError if error.errno in _TRANSIENT_ERRORS else BackendError, ""


def open_local(uri: str, storage_options: Mapping[str, Any]) -> LocalBackend:
    """Open a path or a ``file://`` URI.

    Raises:
        ValueError: ``storage_options`` is not empty.
        InvalidLocationError: the URI has no path.
    """
    if storage_options:
        raise ValueError(f"local files accept no storage_options, got {sorted(storage_options)}")
    return LocalBackend(uri)


def _is_stale(entry: os.DirEntry[str], now: float) -> bool:
    if not _TEMPORARY_NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
        return False
    try:
        return now - entry.stat(follow_symlinks=False).st_mtime > _STALE_AFTER_SECONDS
    except FileNotFoundError:  # another process has just removed it
        return False


def _sync_folder(folder: Path) -> None:
    # Without this, a power cut can lose the new name: see fsync(2), "NOTES".
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
