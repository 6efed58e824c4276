"""A backend that stores objects as files in a folder."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional

from input_checkpoint.backends.base import (
    Backend,
    Data,
    ObjectInfo,
    check_key,
    is_key,
    may_begin_keys,
    may_hold_keys,
)
from input_checkpoint.backends.folder_permissions import warn_if_anybody_may_write
from input_checkpoint.backends.ignored_files import IgnoredFiles
from input_checkpoint.backends.leftovers import (
    FolderPatterns,
    is_temporary,
    new_temporary_name,
    stale_files,
)
from input_checkpoint.backends.local_folders import (
    NotFollowedError,
    NotRegularError,
    check_regular,
    describe_kind,
    open_below,
    open_folder,
    open_regular,
    status_of,
    sync_folder,
)
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
    the machine may write to causes a warning.

    Temporary files have names that start with a dot. They are not listed. `remove_leftovers` removes those
    that crashed writers left behind.

    Objects are regular files in real folders. The folder of the backend may be a link, but no link below it
    is followed: where one is in the way, an operation fails. Listings leave links and special files out, and
    log a warning.

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
        self._durable_folders: set[str] = set()
        self._ignored = IgnoredFiles()
        with self._errors("open"):
            is_file = self._root.exists() and not self._root.is_dir()
        if is_file:
            raise BackendNotFoundError(
                f"{self.uri} is a file, not a folder. Choose a folder; it need not exist yet.", uri=self.uri
            )
        warn_if_anybody_may_write(location.path)

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        with self._temporary_file(key, data) as (folder, temporary):
            self._link(folder, temporary, key)
            sync_folder(folder)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        with self._temporary_file(key, data) as (folder, temporary):
            name = _split(key)[1]
            with contextlib.suppress(FileNotFoundError):
                check_regular(status_of(folder, name), key)
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            sync_folder(folder)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        names, name = _split(check_key(key))
        with self._errors("read", key=key):
            with open_folder(self._root, names) as folder:
                opened = open_regular(folder, name, key)
            with opened as file:
                size = os.fstat(file.fileno()).st_size
                # Python allocates what it is asked to read, however small the file is.
                end = size if end is None else min(end, size)
                if start >= end:
                    return b""
                file.seek(start)
                return file.read(end - start)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        if not may_begin_keys(prefix):
            return iter(())
        top = prefix.rpartition("/")[0]
        found: dict[str, ObjectInfo] = {}
        with self._errors("list", prefix=top):
            for folder, entries in self._walk(top, lambda below: may_hold_keys(below, prefix)):
                for name, status in entries:
                    key = f"{folder}/{name}" if folder else name
                    if key.startswith(prefix) and is_key(key) and self._is_object(key, status):
                        found[key] = ObjectInfo(key, status.st_size, status.st_mtime)
        return (found[key] for key in sorted(found))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        for key in keys:
            names, name = _split(check_key(key))
            with self._errors("delete", key=key), contextlib.suppress(*_NO_OBJECT):
                with open_folder(self._root, names) as folder:
                    if not stat.S_ISREG(status_of(folder, name).st_mode):
                        continue
                    os.unlink(name, dir_fd=folder)
                self._remove_empty_folders(names)

    def remove_leftovers(self, folders: Sequence[str]) -> None:
        """See `Backend.remove_leftovers`."""
        patterns = FolderPatterns(folders)
        times: dict[str, float] = {}
        newest = -math.inf
        with self._errors("list"):
            for folder, entries in self._walk("", patterns.lead_to):
                for name, status in entries:
                    if stat.S_ISREG(status.st_mode):
                        newest = max(newest, status.st_mtime)
                        if is_temporary(name) and patterns.include(folder):
                            times[f"{folder}/{name}".lstrip("/")] = status.st_mtime
        for path in stale_files(times, newest, time.time()):
            names, name = _split(path)
            # Another process may have removed the file, or we may lack the permission.
            with contextlib.suppress(OSError, NotFollowedError), open_folder(self._root, names) as folder_:
                if stat.S_ISREG(status_of(folder_, name).st_mode):
                    os.unlink(name, dir_fd=folder_)
                    self._remove_empty_folders(names)

    @contextlib.contextmanager
    def _temporary_file(self, key: str, data: Data) -> Iterator[tuple[int, str]]:
        """Write the data of an object to a temporary file beside it. The end of the block removes the file.

        Yields:
            The descriptor of its folder, and its name.
        """
        names, _ = _split(check_key(key))
        with self._errors("write", key=key), contextlib.ExitStack() as opened:
            folder, temporary, file = self._open_new(names)
            opened.callback(os.close, folder)
            try:
                with file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield folder, temporary
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)

    def _open_new(self, names: Sequence[str]) -> tuple[int, str, BinaryIO]:
        """Open a new temporary file in a folder. Return the folder's descriptor, the name and the file."""
        for _ in range(_FOLDER_ATTEMPTS):
            # A concurrent delete() may remove the folder again, because it is empty.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                return self._try_open_new(names)
        return self._try_open_new(names)

    def _try_open_new(self, names: Sequence[str]) -> tuple[int, str, BinaryIO]:
        folder = self._make_durable_folder(names)
        try:
            temporary = new_temporary_name()
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
        except BaseException:
            os.close(folder)
            raise
        return folder, temporary, open(descriptor, "wb")

    def _make_durable_folder(self, names: Sequence[str]) -> int:
        """Make a folder and those above it, and flush their names to the disk. Return its descriptor."""
        self._make_root()
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(open_folder(self._root, ()))
            for depth, name in enumerate(names, 1):
                path = "/".join(names[:depth])
                below, is_new = _open_or_make(folder, name, path)
                opened.callback(os.close, below)
                # One that exists may have just been made by another process, which has not flushed it yet.
                if is_new or path not in self._durable_folders:
                    with contextlib.suppress(PermissionError):  # it may be writable without being readable
                        sync_folder(folder)
                    self._durable_folders.add(path)
                folder = below
            return os.dup(folder)

    def _make_root(self) -> None:
        # Folders above the root are not ours: they exist already, or have to be made.
        missing = list(itertools.takewhile(lambda each: not each.exists(), (self._root, *self._root.parents)))
        if not missing:
            return
        self._root.mkdir(parents=True, exist_ok=True)
        for each in reversed(missing):
            with contextlib.suppress(PermissionError), open_folder(each.parent, ()) as above:
                sync_folder(above)
        warn_if_anybody_may_write(str(self._root))

    def _link(self, folder: int, temporary: str, key: str) -> None:
        path, name = self._root / key, _split(key)[1]
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError as error:
            check_regular(status_of(folder, name), key)
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

    def _walk(
        self, top: str, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, Sequence[tuple[str, os.stat_result]]]]:
        """Yield the folder ``top``, and the folders below it that are wanted, each with its entries."""
        # Not recursive: other programs may have nested their folders deeper than Python can call.
        pending = [top]
        while pending:
            folder = pending.pop()
            entries = self._entries(folder)
            yield folder, entries
            below = (
                f"{folder}/{name}".lstrip("/") for name, status in entries if stat.S_ISDIR(status.st_mode)
            )
            pending.extend(filter(wanted, below))

    def _entries(self, folder: str) -> Sequence[tuple[str, os.stat_result]]:
        entries = []
        names = folder.split("/") if folder else ()
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            open_folder(self._root, names, os.O_RDONLY) as descriptor,
        ):
            for entry in list(os.scandir(descriptor)):
                with contextlib.suppress(FileNotFoundError):  # deleted since the folder was read
                    entries.append((entry.name, entry.stat(follow_symlinks=False)))
        return entries

    def _is_object(self, key: str, status: os.stat_result) -> bool:
        """Return whether something is a file. Log a warning about links and special files."""
        if stat.S_ISREG(status.st_mode):
            return True
        if not stat.S_ISDIR(status.st_mode):
            self._ignored.warn_of(str(self._root / key), describe_kind(status.st_mode))
        return False

    def _remove_empty_folders(self, names: Sequence[str]) -> None:
        for depth in range(len(names), 0, -1):
            try:
                with open_folder(self._root, names[: depth - 1]) as folder:
                    os.rmdir(names[depth - 1], dir_fd=folder)
            except (OSError, NotFollowedError):
                return

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
        except (NotFollowedError, NotRegularError) as error:
            cls = self._class_of_misplaced(error, operation)
            path = self._root / (prefix if key is None else key)
            message = f"cannot {operation} {path}: {self._root / error.path} {error}"
            raise cls(message, uri=self.uri, key=key) from error
        except OSError as error:
            cls, advice = self._diagnose(error, operation)
            path = self._root / (prefix if key is None else key)
            message = f"cannot {operation} {path}: {error.strerror or error}{advice}"
            raise cls(message, uri=self.uri, key=key) from error

    def _class_of_misplaced(self, error: Exception, operation: str) -> type[BackendError]:
        # To a reader, what is not an object does not exist. A link is different: it may lead to the object.
        is_link = isinstance(error, NotFollowedError)
        return ObjectNotFoundError if operation == "read" and not is_link else BackendError

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


def _split(path: str) -> tuple[Sequence[str], str]:
    """Return the names of the folders above a file, and its own name."""
    *names, name = path.split("/")
    return names, name


def _open_or_make(above: int, name: str, path: str) -> tuple[int, bool]:
    """Return the descriptor of a folder, and whether it was made. For the arguments, see `open_below`."""
    try:
        return open_below(above, name, path), False
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # another process has just made it
            os.mkdir(name, dir_fd=above)
        return open_below(above, name, path), True
