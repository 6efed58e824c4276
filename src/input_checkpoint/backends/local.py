"""Objects as files: write aside, fsync, link. A crash leaves no half object under a final name."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.parse import unquote, urlsplit

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
)

_ASIDE = ".aside"
_STALE_AFTER_SECONDS = 24 * 3600
_FOLDER_ATTEMPTS = 20
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
# What a network file system says when its server is away for a moment, and a disk that is busy.
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
# Where an object should be there is nothing, a folder, or a file half-way up.
_NO_OBJECT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class LocalBackend(Backend):
    """A folder of files; keys are paths below it. The folder is made at the first write.

    New bytes go to ``.aside/`` in the same folder, are flushed to the disk, and get their name by one
    atomic call: ``link`` for `create` (fails if the name is taken, also on NFS), ``rename`` for `put`.

    Example:
        >>> import tempfile
        >>> backend = LocalBackend(tempfile.mkdtemp())
        >>> backend.create("a/b", b"1")
        >>> [info.key for info in backend.list()]
        ['a/b']
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._root = _root_of(uri)
        self._lasting: set[Path] = set()
        with self._errors("open", ""):
            is_file = self._root.exists() and not self._root.is_dir()
        if is_file:
            raise BackendNotFoundError(
                f"{self.uri} is a file, and a folder is needed. Give the path of a folder (it may not exist "
                "yet)."
            )
        self._remove_stale()

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        with self._written_aside(key, data) as aside:
            self._name(aside, key, self._link)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        with self._written_aside(key, data) as aside:
            self._name(aside, key, os.replace)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        with self._errors("read", key), open(self._path(key), "rb") as file:
            if start >= os.fstat(file.fileno()).st_size:
                return b""
            file.seek(start)
            return file.read(-1 if end is None else max(0, end - start))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        folder = prefix.rpartition("/")[0]
        with self._errors("list", folder):
            found = sorted(self._walk(self._root / folder, folder), key=lambda info: info.key)
        return (info for info in found if info.key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        for key in keys:
            path = self._path(key)
            with self._errors("delete", key), contextlib.suppress(*_NO_OBJECT):
                path.unlink()
            self._remove_empty_folders(path.parent)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextlib.contextmanager
    def _written_aside(self, key: str, data: Data) -> Iterator[Path]:
        self._path(key)
        aside = self._root / _ASIDE / uuid.uuid4().hex
        with self._errors("write", key):
            self._make_folder(aside.parent)
            try:
                _write_synced(aside, data)
                yield aside
            finally:
                aside.unlink(missing_ok=True)

    def _name(self, aside: Path, key: str, give_name: Callable[[Path, Path], None]) -> None:
        path = self._path(key)
        for attempts_left in reversed(range(_FOLDER_ATTEMPTS)):
            try:
                self._make_folder(path.parent)
                give_name(aside, path)
                break
            except (FileNotFoundError, FileExistsError):
                # A concurrent delete() may have removed the folder that it had just emptied.
                if not attempts_left:
                    raise
        _sync_folder(path.parent)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder that outlasts a power cut: its name, and those of the new ones above, are flushed."""
        doubtful: list[Path] = []
        for each in (folder, *folder.parents):
            # One that is there may have been made a moment ago by a process that has not flushed it yet. What
            # is above the root was there before us, or is missing.
            if each.exists() and (each in self._lasting or self._root not in each.parents):
                break
            doubtful.append(each)
        folder.mkdir(parents=True, exist_ok=True)
        for each in reversed(doubtful):
            with contextlib.suppress(PermissionError):  # a folder may be written to without being readable
                _sync_folder(each.parent)
            self._lasting.add(each)

    def _link(self, aside: Path, path: Path) -> None:
        try:
            os.link(aside, path)
        except FileExistsError as error:
            raise ObjectExistsError(f"{path} already exists") from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise BackendError(
                f"{self.uri}: this filesystem has no hard links, so a commit cannot be made atomic there. "
                "Use another filesystem or an object store."
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

    def _remove_stale(self) -> None:
        """Remove what a crash left aside. A day is longer than any write in flight can take."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self._root / _ASIDE)):
                if time.time() - entry.stat().st_mtime > _STALE_AFTER_SECONDS:
                    os.unlink(entry.path)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(error, verb, key) from error

    def _translate(self, error: OSError, verb: str, key: str) -> BackendError:
        what = f"cannot {verb} {self._root / key}: {error.strerror or error}"
        if isinstance(error, _NO_OBJECT) and verb == "read":
            return ObjectNotFoundError(what)
        if error.errno in _PERMISSION:
            return BackendPermissionError(
                f"{what}. Give this user (uid {os.getuid()}) access to {self._root}, or choose another URI."
            )
        if error.errno in _BAD_PATH:
            return BackendNotFoundError(f"{what}. A part of this path is a file, is missing, or is too long.")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return BackendError(f"{what}. Free some space, or keep fewer checkpoints.")
        return BackendUnavailableError(what) if error.errno in _TRANSIENT_ERRORS else BackendError(what)


def open_local(uri: str, storage_options: Mapping[str, Any]) -> LocalBackend:
    """Open a bare path or a ``file://`` URI. It takes no storage options."""
    if storage_options:
        raise ValueError(f"local files take no storage_options, got {sorted(storage_options)}")
    return LocalBackend(uri)


def _root_of(uri: str) -> Path:
    if "://" not in uri:
        return Path(uri).expanduser().absolute()
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise BackendNotFoundError(
            f"{redact(uri)}: a file URI names no host. Write file:///absolute/path (three "
            "slashes) or a bare path."
        )
    return Path(unquote(parts.path))


def _write_synced(path: Path, data: Data) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # Without this the new name itself can be lost in a power cut: fsync(2), "NOTES".
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
