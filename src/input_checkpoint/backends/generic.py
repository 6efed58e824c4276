"""Any fsspec filesystem that no plugin claims."""

from __future__ import annotations

import contextlib
import inspect
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Optional

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractFileSystem

from input_checkpoint.backends.base import TRIAL_PREFIX, Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.create_race import RACERS, race_create
from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
    UnknownBackendError,
)

_TRIED_NAMES = 4


class GenericBackend(Backend):
    """A folder of an fsspec filesystem.

    Commits need an atomic create-if-absent. fsspec's inherited ``pipe_file(mode="create")`` asks ``exists()``
    and then writes, which is not atomic; a filesystem that has no implementation of its own, or whose own one
    loses a race when it is tried, can be read here but not written.

    Args:
        uri: for messages only.
        filesystem: an open fsspec filesystem. Its listing cache is by-passed.
        root: path of the folder inside the filesystem.

    Example:
        >>> from fsspec.implementations.local import LocalFileSystem
        >>> GenericBackend("file:///tmp", LocalFileSystem(), "/tmp").commit_obstacle()
        'LocalFileSystem has no atomic create-if-absent'
    """

    def __init__(self, uri: str, filesystem: AbstractFileSystem, root: str) -> None:
        super().__init__(uri)
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._trying = threading.Lock()
        self._verdict: Optional[str] = None

    def commit_obstacle(self) -> Optional[str]:
        """Return why this storage cannot be written, or None if it can.

        Tries it out the first time, on a few small objects.

        Raises:
            BackendError: it could not be tried out.
        """
        if not _has_own_create(self._fs):
            return f"{type(self._fs).__name__} has no atomic create-if-absent"
        with self._trying:
            if self._verdict is None:
                self._verdict = self._try_create()
            return self._verdict or None

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        reason = self.commit_obstacle()
        if reason is not None:
            raise BackendError(
                f"{self.uri}: {reason}, so two writers could both believe that they committed. "
                "This storage can be read but not written: choose another one, or name one for the commits, "
                "storage_options={'commit_lock': 'file:///a/folder/that/all/share'}."
            )
        self._create(key, data)

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
        start = len(self._root)
        infos = (
            ObjectInfo(name[start:].lstrip("/"), details["size"], _modified(details))
            for name, details in sorted(found.items())
            if details["type"] == "file"
        )
        return (info for info in infos if info.key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        paths = {key: self._path(key) for key in keys}
        for key, path in paths.items():
            with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)

    def _cat_range(self, path: str, start: int, end: Optional[int]) -> bytes:
        size = self._fs.info(path)["size"]
        stop = size if end is None else min(end, size)
        return self._fs.cat_file(path, start=start, end=stop) if start < stop else b""

    def _create(self, key: str, data: Data) -> None:
        path = self._path(key)
        with self._errors("create", key):
            self._make_folder(path)
            try:
                self._fs.pipe_file(path, bytes(data), mode="create")
            except OSError as error:
                if _says_exists(error):
                    raise ObjectExistsError(f"{self.uri}/{key} already exists") from error
                raise

    def _try_create(self) -> str:
        """Return what is wrong with the filesystem's own create; nothing if nothing is."""
        names = [f"{TRIAL_PREFIX}{uuid.uuid4().hex}" for _ in range(_TRIED_NAMES)]
        try:
            winners = race_create(lambda name: self._create(name, b"race"), names)
        finally:
            with contextlib.suppress(BackendError):
                self.delete(names)
        if winners <= 1:
            return ""
        return f"of {RACERS} writers that create one object at once {winners} are told that they did"

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
            cls = ObjectNotFoundError if verb == "read" else BackendNotFoundError
            raise cls(f"cannot {verb} {self.uri}/{key}: not found") from error
        except PermissionError as error:
            raise BackendPermissionError(
                f"cannot {verb} {self.uri}/{key}: permission denied. Check the credentials in "
                "storage_options."
            ) from error
        except NotImplementedError as error:
            raise BackendError(
                f"cannot {verb} {self.uri}/{key}: {type(self._fs).__name__} cannot do that ({error}). "
                "Choose another storage."
            ) from error
        except Exception as error:
            # Drivers raise exceptions of their own that share no base class.
            raise BackendUnavailableError(
                f"cannot {verb} {self.uri}/{key}: {type(error).__name__}: {redact(str(error))}"
            ) from error


def open_generic(uri: str, storage_options: Mapping[str, Any]) -> GenericBackend:
    """Open any URI that fsspec knows."""
    options = {"use_listings_cache": False, "skip_instance_cache": True, **storage_options}
    try:
        filesystem, root = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise UnknownBackendError(f"{redact(uri)}: fsspec needs a package for it: {error}") from error
    except (OSError, ValueError) as error:
        raise BackendUnavailableError(
            f"cannot open {redact(uri)}: {type(error).__name__}: {redact(str(error))}"
        ) from error
    if isinstance(filesystem, CachingFileSystem):
        raise UnknownBackendError(
            f"{redact(uri)}: a store is not kept behind a cache, which shows what was there and not what is. "
            f"Leave {uri.partition('::')[0]}:: out."
        )
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
