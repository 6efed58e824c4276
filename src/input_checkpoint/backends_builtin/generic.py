"""Any fsspec filesystem that no plugin claims."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Optional

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractFileSystem

from input_checkpoint.backend import Backend, Data, ObjectInfo, check_key, redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFound,
    BackendPermissionError,
    BackendUnavailable,
    ObjectExists,
    ObjectNotFound,
    UnknownBackend,
)


class GenericBackend(Backend):
    """A folder of an fsspec filesystem.

    Commits need an atomic create-if-absent. fsspec's inherited ``pipe_file(mode="create")`` asks ``exists()``
    and then writes, which is not atomic; a filesystem that has no implementation of its own can be read here
    but not written.

    Args:
        uri: for messages only.
        filesystem: an open fsspec filesystem. Its listing cache is by-passed.
        root: path of the folder inside the filesystem.

    Example:
        >>> from fsspec.implementations.local import LocalFileSystem
        >>> GenericBackend("file:///tmp", LocalFileSystem(), "/tmp").can_commit
        False
    """

    def __init__(self, uri: str, filesystem: AbstractFileSystem, root: str) -> None:
        super().__init__(uri)
        self._fs = filesystem
        self._root = root.rstrip("/")

    @property
    def can_commit(self) -> bool:
        """Whether the filesystem brings a create-if-absent of its own."""
        return _has_own_create(self._fs)

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        if not self.can_commit:
            raise BackendError(
                f"{self.uri}: {type(self._fs).__name__} has no atomic create-if-absent, so two writers "
                "could both believe that they committed. "
                "This storage can be read but not written; choose another one."
            )
        path = self._path(key)
        with self._errors("create", key):
            self._make_folder(path)
            try:
                self._fs.pipe_file(path, bytes(data), mode="create")
            except OSError as error:
                if _says_exists(error):
                    raise ObjectExists(f"{path} already exists") from error
                raise

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        path = self._path(key)
        with self._errors("write", key):
            self._make_folder(path)
            self._fs.pipe_file(path, bytes(data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        path = self._path(key)
        with self._errors("read", key):
            if end is not None and end <= start:
                self._fs.info(path)
                return b""
            whole = start == 0 and end is None
            return bytes(self._fs.cat_file(path) if whole else self._cat_range(path, start, end))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        folder = prefix.rpartition("/")[0]
        path = f"{self._root}/{folder}".rstrip("/")
        with self._errors("list", folder):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(path, detail=True)
            except FileNotFoundError:
                found = {}
        start = len(self._root) + 1
        infos = (
            ObjectInfo(name[start:], details["size"], _modified(details))
            for name, details in sorted(found.items())
            if details["type"] == "file"
        )
        return (info for info in infos if info.key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        for key in keys:
            with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))

    def _cat_range(self, path: str, start: int, end: Optional[int]) -> bytes:
        size = self._fs.info(path)["size"]
        stop = size if end is None else min(end, size)
        return self._fs.cat_file(path, start=start, end=stop) if start < stop else b""

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _make_folder(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except BackendError:
            raise
        except FileNotFoundError as error:
            cls = ObjectNotFound if verb == "read" else BackendNotFound
            raise cls(f"cannot {verb} {self.uri}/{key}: not found") from error
        except PermissionError as error:
            raise BackendPermissionError(
                f"cannot {verb} {self.uri}/{key}: permission denied. Check the credentials in "
                "storage_options."
            ) from error
        except Exception as error:
            # Drivers raise exceptions of their own that share no base class.
            raise BackendUnavailable(
                f"cannot {verb} {self.uri}/{key}: {type(error).__name__}: {redact(str(error))}"
            ) from error


def open_generic(uri: str, storage_options: Mapping[str, Any]) -> GenericBackend:
    """Open any URI that fsspec knows."""
    options = {"use_listings_cache": False, "skip_instance_cache": True, **storage_options}
    try:
        filesystem, root = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise UnknownBackend(f"{redact(uri)}: fsspec needs a package for it: {error}") from error
    except (OSError, ValueError) as error:
        raise BackendUnavailable(
            f"cannot open {redact(uri)}: {type(error).__name__}: {redact(str(error))}"
        ) from error
    return GenericBackend(uri, filesystem, root)


def generic_can_open(scheme: str) -> bool:
    """Whether fsspec has a filesystem for ``scheme``: known by name, or registered by the program."""
    return scheme in fsspec.available_protocols() or scheme in fsspec.registry


def _has_own_create(filesystem: AbstractFileSystem) -> bool:
    """Whether a filesystem, or the one it is a folder of, implements create-if-absent itself."""
    if isinstance(filesystem, DirFileSystem):
        return _has_own_create(filesystem.fs)
    cls = type(filesystem)
    return _overrides_create(cls) and not _takes_no_mode(cls)


def _overrides_create(cls: type) -> bool:
    inherited = (AbstractFileSystem, AsyncFileSystem)
    for method in ("_pipe_file", "pipe_file"):
        owner = next((base for base in cls.__mro__ if method in vars(base)), None)
        if owner is not None and owner not in inherited:
            return True
    return False


def _takes_no_mode(cls: type) -> bool:
    """Whether the filesystem's own write has no place for ``mode``, and so drops it or hands it on unread."""
    method = getattr(cls, "_pipe_file" if issubclass(cls, AsyncFileSystem) else "pipe_file")
    return "mode" not in inspect.signature(method).parameters


def _says_exists(error: OSError) -> bool:
    # s3fs turns a 412 into a plain OSError on servers that do not name the failed condition.
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412")


def _modified(details: Mapping[str, Any]) -> Optional[float]:
    for name in ("LastModified", "mtime", "last_modified", "created"):
        value = details.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None
