"""A backend for any fsspec filesystem that has no plugin."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Callable, Optional, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractFileSystem

from input_checkpoint.backends.base import PROBE_PREFIX, Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.causes import raise_from, redact_causes
from input_checkpoint.backends.commit_lock import COMMIT_LOCK_ADVICE
from input_checkpoint.backends.create_race import RACERS, race_create
from input_checkpoint.backends.location import parse_for_fsspec
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.backends.reopening import ReopeningClient
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
    UnknownBackendError,
)

_RACED_OBJECTS = 4
_UNAUTHORIZED = 401

_Result = TypeVar("_Result")


class GenericBackend(Backend):
    """Stores objects in a folder of an fsspec filesystem.

    Commits need an atomic create-if-absent. fsspec's default implementation, ``pipe_file(mode="create")``,
    calls ``exists()`` and then writes, which is not atomic. So `create` refuses to work on a filesystem that
    inherits this default, and on one whose own implementation fails a race. Such a store can only be read.

    A forked child opens a filesystem of its own. When the filesystem denies access, it is opened again, and
    the operation is repeated once: the credentials may have been renewed.

    Args:
        uri: URI to show in messages.
        filesystem: an open fsspec filesystem. Its listing cache is not used.
        root: path of the folder in the filesystem.
        reopen: opens the filesystem again. Default: with the arguments that it was opened with.

    Example:
        >>> from fsspec.implementations.local import LocalFileSystem
        >>> GenericBackend("file:///tmp", LocalFileSystem(), "/tmp").commit_obstacle()
        'LocalFileSystem has no atomic create-if-absent'
    """

    def __init__(
        self,
        uri: str,
        filesystem: AbstractFileSystem,
        root: str,
        reopen: Optional[Callable[[], AbstractFileSystem]] = None,
    ) -> None:
        cls, args, options = type(filesystem), filesystem.storage_args, filesystem.storage_options
        super().__init__(uri, options)
        self._reopening = ReopeningClient(
            reopen or (lambda: _open_again(cls, args, options)), lambda _: None, filesystem
        )
        self._root = root.rstrip("/")
        self._race_lock = threading.Lock()
        self._race_obstacle: Optional[str] = None

    def commit_obstacle(self) -> Optional[str]:
        """Return why the filesystem cannot commit, or None if it can.

        The first call runs a race on a few small objects.

        Raises:
            BackendError: the race could not be run.
        """
        if not _has_own_create(self._fs):
            return f"{type(self._fs).__name__} has no atomic create-if-absent"
        with self._race_lock:
            if self._race_obstacle is None:
                self._race_obstacle = self._race()
            return self._race_obstacle or None

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        obstacle = self.commit_obstacle()
        if obstacle is not None:
            raise BackendError(
                f"cannot create {self.uri}/{key}: {obstacle}, so two writers could both believe that "
                f"they committed. This storage can be read but not written. {COMMIT_LOCK_ADVICE}",
                uri=self.uri,
                key=key,
            )
        self._create(key, data)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        path = self._path(key)

        def put() -> None:
            self._make_folder(path)
            self._fs.pipe_file(path, bytes(data))

        self._run("write", put, key=key)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        path = self._path(key)

        def get() -> bytes:
            if end is not None and end <= start:
                self._fs.info(path)
                return b""
            whole = start == 0 and end is None
            return bytes(self._fs.cat_file(path) if whole else self._cat_range(path, start, end))

        return self._run("read", get, key=key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        folder = prefix.rpartition("/")[0]
        path = f"{self._root}/{folder}".rstrip("/")

        def find() -> Mapping[str, Any]:
            self._fs.invalidate_cache()
            try:
                found: Mapping[str, Any] = self._fs.find(path, detail=True)
            except FileNotFoundError:
                return {}
            return found

        found = self._run("list", find, prefix=folder)
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

        def remove(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)

        for key, path in paths.items():
            self._run("delete", functools.partial(remove, path), key=key)

    @property
    def _fs(self) -> AbstractFileSystem:
        return self._reopening.get()

    def _cat_range(self, path: str, start: int, end: Optional[int]) -> bytes:
        size = self._fs.info(path)["size"]
        stop = size if end is None else min(end, size)
        return self._fs.cat_file(path, start=start, end=stop) if start < stop else b""

    def _create(self, key: str, data: Data) -> None:
        path = self._path(key)

        def create() -> None:
            self._make_folder(path)
            try:
                self._fs.pipe_file(path, bytes(data), mode="create")
            except OSError as error:
                if not _means_exists(error):
                    raise
                raise_from(
                    ObjectExistsError(f"{self.uri}/{key} already exists", uri=self.uri, key=key), error
                )

        self._run("create", create, key=key)

    def _race(self) -> str:
        """Return why the filesystem's own create is not atomic, or an empty string if no race shows it."""
        names = [f"{PROBE_PREFIX}{uuid.uuid4().hex}" for _ in range(_RACED_OBJECTS)]
        try:
            winners = race_create(lambda name: self._create(name, b"race"), names)
        finally:
            with contextlib.suppress(BackendError):
                self.delete(names)
        if winners <= 1:
            return ""
        return f"{winners} of {RACERS} writers that created the same object at the same time succeeded"

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def _make_folder(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _run(
        self, operation: str, work: Callable[[], _Result], key: Optional[str] = None, prefix: str = ""
    ) -> _Result:
        """Run an operation. Repeat it once on a filesystem that is opened again if access is denied.

        For the arguments, see `_errors`.
        """
        filesystem = self._reopening.opened
        try:
            with self._errors(operation, key, prefix):
                return work()
        except BackendPermissionError:
            if filesystem is None:
                raise
        with self._errors("open"):
            self._reopening.replace(filesystem)
        with self._errors(operation, key, prefix):
            return work()

    @contextlib.contextmanager
    def _errors(self, operation: str, key: Optional[str] = None, prefix: str = "") -> Iterator[None]:
        """Translate the filesystem's exceptions.

        Args:
            operation: verb for the message.
            key: the object that the operation is about, if it is about one.
            prefix: otherwise, the folder that it is about.
        """
        try:
            yield
        except BackendError as error:
            redact_causes(error)
            raise
        except Exception as error:
            # Drivers raise exceptions of their own that share no base class.
            cls, problem = self._diagnose(error, operation)
            where = f"{self.uri}/{prefix if key is None else key}"
            raise_from(cls(f"cannot {operation} {where}: {problem}", uri=self.uri, key=key), error)

    def _diagnose(self, error: Exception, operation: str) -> tuple[type[BackendError], str]:
        if isinstance(error, FileNotFoundError):
            return ObjectNotFoundError if operation == "read" else BackendNotFoundError, "not found"
        if isinstance(error, PermissionError) or getattr(error, "status", None) == _UNAUTHORIZED:
            return BackendPermissionError, "permission denied. Check the credentials in storage_options."
        if isinstance(error, NotImplementedError):
            name = type(self._fs).__name__
            return BackendError, f"{name} does not support this operation ({error}). Choose another storage."
        return BackendUnavailableError, f"{type(error).__name__}: {error}"


def open_generic(uri: str, storage_options: Mapping[str, Any]) -> GenericBackend:
    """Open any URI that fsspec knows.

    Raises:
        InvalidLocationError: the URI has a query, or the end of a chain is no location.
        UnknownBackendError: fsspec needs another package for the URI, or the URI names a cache.
        BackendUnavailableError: fsspec cannot open the URI now.
        BackendError: fsspec cannot open the URI at all.
    """
    shown = redact_uri(uri)
    filesystem, root = _open_filesystem(uri, storage_options)
    if isinstance(filesystem, CachingFileSystem):
        cache = uri.partition("::")[0]
        raise UnknownBackendError(
            f"cannot open {shown}: a store cannot be used through a cache, because a cache may show old "
            f"data. Remove {cache}:: from the URI.",
            uri=shown,
        )
    return GenericBackend(uri, filesystem, root, lambda: _open_filesystem(uri, storage_options)[0])


def _open_filesystem(uri: str, storage_options: Mapping[str, Any]) -> tuple[AbstractFileSystem, str]:
    shown, address = redact_uri(uri), parse_for_fsspec(uri)
    # A cached instance would have the old credentials, and a cached listing the old objects.
    options = {**storage_options, "use_listings_cache": False, "skip_instance_cache": True}
    try:
        filesystem, root = fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        raise_from(
            UnknownBackendError(
                f"cannot open {shown}: fsspec needs another package for it ({error})", uri=shown
            ),
            error,
        )
    except (OSError, ValueError) as error:
        raise_from(
            BackendUnavailableError(f"cannot open {shown}: {type(error).__name__}: {error}", uri=shown), error
        )
    except Exception as error:
        # Drivers raise exceptions of their own that share no base class.
        raise_from(BackendError(f"cannot open {shown}: {type(error).__name__}: {error}", uri=shown), error)
    return filesystem, root


def _open_again(
    cls: type[AbstractFileSystem], args: Sequence[Any], options: Mapping[str, Any]
) -> AbstractFileSystem:
    """Open a filesystem with the arguments of another one, which it may contain."""

    def fresh(value: Any) -> Any:
        if isinstance(value, AbstractFileSystem):
            return _open_again(type(value), value.storage_args, value.storage_options)
        return value

    again = {name: fresh(value) for name, value in options.items()}
    return cls(*map(fresh, args), **{**again, "skip_instance_cache": True})


def _has_own_create(filesystem: AbstractFileSystem) -> bool:
    """Return whether a filesystem implements create-if-absent itself, instead of inheriting the default."""
    if isinstance(filesystem, DirFileSystem):
        return _has_own_create(filesystem.fs)
    cls = type(filesystem)
    return _overrides_pipe_file(cls) and _accepts_mode(cls)


def _overrides_pipe_file(cls: type) -> bool:
    inherited = (AbstractFileSystem, AsyncFileSystem)
    for method in ("_pipe_file", "pipe_file"):
        owner = next((base for base in cls.__mro__ if method in vars(base)), None)
        if owner is not None and owner not in inherited:
            return True
    return False


def _accepts_mode(cls: type) -> bool:
    """Return whether the filesystem's own write has a ``mode``. Without it, a create silently replaces."""
    method = getattr(cls, "_pipe_file" if issubclass(cls, AsyncFileSystem) else "pipe_file")
    return "mode" in inspect.signature(method).parameters


def _means_exists(error: OSError) -> bool:
    # On servers that do not name the failed condition, s3fs turns a 412 into a plain OSError.
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
