"""A backend for any fsspec filesystem that has no plugin."""

from __future__ import annotations

import contextlib
import functools
import inspect
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Callable, Optional, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractFileSystem

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key, is_key, may_begin_keys
from input_checkpoint.backends.causes import raise_from, redact_causes
from input_checkpoint.backends.commit_lock import COMMIT_LOCK_ADVICE
from input_checkpoint.backends.create_race import RACERS, race_create
from input_checkpoint.backends.location import parse_for_fsspec
from input_checkpoint.backends.probe_keys import new_probe_key
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.backends.reopening import ReopeningClient
from input_checkpoint.backends.time_limits import (
    DEFAULT_TIME_LIMITS,
    Deadline,
    TimeLimitExceededError,
    TimeLimits,
    run_in_thread,
    split_time_limits,
)
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
_MAX_DEPTH = 64
_UNKNOWN_SIZE = 32 << 20
_SIZES_AT_ONCE = 64
_PERMISSION_STATUS = {401, 403}
_NOT_FOUND_STATUS = {404, 410}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_UNREADABLE_HTTP = "aiohttp.http_exceptions"
"""Where the causes of errors are defined that say that an answer is not HTTP."""
_BROKEN_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error)

_UNSAFE_WRITES = {
    "JupyterFileSystem": "it does not notice when the server refuses a write",
    "ReferenceFileSystem": "it keeps what is written in memory",
}
"""Why a store must not be written through these filesystems, even if another storage decides its commits."""

_Result = TypeVar("_Result")


class _WrongLengthError(OSError):
    """A read returned another number of bytes than it should."""


class GenericBackend(Backend):
    """Stores objects in a folder of an fsspec filesystem.

    Commits need an atomic create-if-absent. fsspec's default implementation, ``pipe_file(mode="create")``,
    calls ``exists()`` and then writes, which is not atomic. So `create` refuses to work on a filesystem that
    inherits this default, and on one whose own implementation fails a race. Such a store can only be read.

    A forked child opens a filesystem of its own. When the filesystem denies access, it is opened again, and
    the operation is repeated once: the credentials may have been renewed.

    Each operation runs in a thread of its own, which is left alone if it takes too long; see
    `input_checkpoint.backends.time_limits.run_in_thread`.

    Args:
        uri: URI to show in messages.
        filesystem: an open fsspec filesystem. Its listing cache is not used.
        root: path of the folder in the filesystem.
        reopen: opens the filesystem again. Default: with the arguments that it was opened with.
        limits: of each operation.

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
        limits: TimeLimits = DEFAULT_TIME_LIMITS,
    ) -> None:
        cls, args, options = type(filesystem), filesystem.storage_args, filesystem.storage_options
        super().__init__(uri, options)
        self._limits = limits
        self._reopening = ReopeningClient(
            reopen or (lambda: _open_again(cls, args, options)), lambda _: None, filesystem
        )
        self._root = root.rstrip("/")
        self._prefix = f"{self._root}/" if root else ""
        self._race_lock = threading.Lock()
        self._race_obstacle: Optional[str] = None

    def commit_obstacle(self) -> Optional[str]:
        """Return why the filesystem cannot commit, or None if it can.

        The first call runs a race on a few small objects.

        Raises:
            BackendError: the race could not be run.
        """
        filesystem = self._run("open", lambda _: self._fs)
        if not _has_own_create(filesystem):
            return f"{_innermost(filesystem)} has no atomic create-if-absent"
        self._check_writes(filesystem, "")
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
                f"they committed. This storage can be read but not written. {self._advice()}",
                uri=self.uri,
                key=key,
            )
        self._create(key, data)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        path = self._path(key)

        def put(_: Deadline) -> None:
            self._check_writes(self._fs, key)
            self._check_replaceable(key, path)
            self._make_folder(path)
            self._fs.pipe_file(path, bytes(data))

        self._run("write", put, key=key, size=len(data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        path = self._path(key)

        def get(deadline: Deadline) -> bytes:
            size = self._size(path)
            # The whole size, because a web server may ignore the range.
            deadline.extend(_UNKNOWN_SIZE if size is None else size)
            if size is None:
                return bytes(self._fs.cat_file(path))[start:end]
            return self._slice(path, start, size if end is None else min(end, size), size)

        def get_again_if_replaced(deadline: Deadline) -> bytes:
            # Not every filesystem replaces a file in one step, so its size may have just changed.
            with contextlib.suppress(_WrongLengthError):
                return get(deadline)
            return get(deadline)

        return self._run("read", get_again_if_replaced, key=key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        if not may_begin_keys(prefix):
            return iter(())
        folder = prefix.rpartition("/")[0]
        path = (self._prefix + folder).rstrip("/")

        def find(deadline: Deadline) -> Mapping[str, Any]:
            self._fs.invalidate_cache()
            try:
                found = _find(self._fs, path, deadline)
            except FileNotFoundError:
                return {}
            return _with_sizes(self._fs, found, deadline)

        found = self._run("list", find, prefix=folder)
        start = len(self._root)
        infos = (
            ObjectInfo(name[start:].lstrip("/"), details["size"], _modified(details))
            for name, details in sorted(found.items())
            if _is_object(details)
        )
        return (info for info in infos if info.key.startswith(prefix) and is_key(info.key))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        paths = {key: self._path(key) for key in keys}

        def remove(path: str, _: Deadline) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(path)

        for key, path in paths.items():
            self._run("delete", functools.partial(remove, path), key=key)

    @property
    def _fs(self) -> AbstractFileSystem:
        return self._reopening.get()

    def _size(self, path: str) -> Optional[int]:
        """Return the size of a file; None if the filesystem does not know it."""
        details = self._details(path)
        if details is None:
            # fsspec's filesystem for the web also says so if the server cannot be reached.
            self._fs.cat_file(path, start=0, end=1)
            return None
        if not _is_object(details):
            raise FileNotFoundError(path)  # a read of what is not a file may wait forever
        size: Optional[int] = details["size"]
        return size

    def _slice(self, path: str, start: int, stop: int, size: int) -> bytes:
        """Return bytes ``start`` to ``stop`` of a file of ``size`` bytes."""
        if start >= stop:
            return b""
        whole = start == 0 and stop == size
        data = bytes(self._fs.cat_file(path) if whole else self._fs.cat_file(path, start=start, end=stop))
        if len(data) == stop - start:
            return data
        if len(data) == size:  # some web servers ignore the range and send everything
            return data[start:stop]
        raise _WrongLengthError(f"asked for bytes {start} to {stop} of {size}, got {len(data)} bytes")

    def _check_writes(self, filesystem: AbstractFileSystem, key: str) -> None:
        reason = _UNSAFE_WRITES.get(_innermost(filesystem))
        if reason is not None:
            raise BackendError(
                f"cannot write {self.uri}/{key}: a store cannot be written through {_innermost(filesystem)}, "
                f"because {reason}. It can be read. Choose another storage.",
                uri=self.uri,
                key=key or None,
            )

    def _advice(self) -> str:
        wrapper, _, below = self.uri.partition("::")
        if wrapper in ("dir", "dir://"):
            return f"Remove {wrapper}:: from the URI: {below} has a backend of its own, or says what to do."
        return COMMIT_LOCK_ADVICE

    def _create(self, key: str, data: Data) -> None:
        path = self._path(key)

        def create(_: Deadline) -> None:
            self._make_folder(path)
            try:
                self._fs.pipe_file(path, bytes(data), mode="create")
            except OSError as error:
                if not _means_exists(error):
                    raise
                raise_from(
                    ObjectExistsError(f"{self.uri}/{key} already exists", uri=self.uri, key=key), error
                )

        self._run("create", create, key=key, size=len(data))

    def _race(self) -> str:
        """Return why the filesystem's own create is not atomic, or an empty string if no race shows it."""
        names = [new_probe_key() for _ in range(_RACED_OBJECTS)]
        try:
            winners = race_create(lambda name: self._create(name, b"race"), names)
        finally:
            with contextlib.suppress(BackendError):
                self.delete(names)
        if winners <= 1:
            return ""
        return f"{winners} of {RACERS} writers that created the same object at the same time succeeded"

    def _details(self, path: str) -> Optional[Mapping[str, Any]]:
        """Return what the filesystem knows about a path, or None if nothing is there."""
        try:
            details: Mapping[str, Any] = self._fs.info(path)
        except FileNotFoundError:
            return None
        return details

    def _check_replaceable(self, key: str, path: str) -> None:
        """Raise if the name of an object is that of something else. A write to it may wait forever."""
        details = self._details(path)
        if details is not None and not _is_object(details):
            kind = "a link" if details.get("islink") else f"of type {details['type']!r}"
            raise BackendError(
                f"cannot write {self.uri}/{key}: it exists and is {kind}, not a file. Move it elsewhere.",
                uri=self.uri,
                key=key,
            )

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _make_folder(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _run(
        self,
        operation: str,
        work: Callable[[Deadline], _Result],
        key: Optional[str] = None,
        prefix: str = "",
        size: int = 0,
    ) -> _Result:
        """Run an operation. Repeat it once on a filesystem that is opened again if access is denied.

        Args:
            operation: see `_errors`.
            work: what to do. It gets its deadline.
            key: see `_errors`.
            prefix: see `_errors`.
            size: bytes that it moves, as far as they are known.
        """
        filesystem = self._reopening.opened
        try:
            with self._errors(operation, key, prefix):
                return self._within(work, size)
        except BackendPermissionError:
            if filesystem is None:
                raise
        with self._errors("open"):
            self._within(lambda _: self._reopening.replace(filesystem))
        with self._errors(operation, key, prefix):
            return self._within(work, size)

    def _within(self, work: Callable[[Deadline], _Result], size: int = 0) -> _Result:
        deadline = self._limits.start(size)
        return run_in_thread(lambda: work(deadline), deadline)

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
        if isinstance(error, NotImplementedError):
            name = type(self._fs).__name__
            return BackendError, f"{name} does not support this operation ({error}). Choose another storage."
        cls, problem = _diagnose(error)
        is_missing_object = cls is BackendNotFoundError and operation == "read"
        return ObjectNotFoundError if is_missing_object else cls, problem


def open_generic(uri: str, storage_options: Mapping[str, Any]) -> GenericBackend:
    """Open any URI that fsspec knows.

    Raises:
        InvalidLocationError: the URI has a query, or the end of a chain is not a location.
        UnknownBackendError: fsspec needs another package for the URI, or the URI names a cache.
        BackendNotFoundError: the archive that the URI names does not exist.
        BackendError: fsspec cannot open the URI.
    """
    shown = redact_uri(uri)
    limits, options = split_time_limits(uri, storage_options)
    filesystem, root = _open_filesystem(uri, options, limits)
    if isinstance(filesystem, CachingFileSystem):
        cache = uri.partition("::")[0]
        raise UnknownBackendError(
            f"cannot open {shown}: a store cannot be used through a cache, because a cache may show old "
            f"data. Remove {cache}:: from the URI.",
            uri=shown,
        )
    return GenericBackend(uri, filesystem, root, lambda: _open_filesystem(uri, options, limits)[0], limits)


def _open_filesystem(
    uri: str, storage_options: Mapping[str, Any], limits: TimeLimits
) -> tuple[AbstractFileSystem, str]:
    location = parse_for_fsspec(uri)
    deadline = limits.start()
    try:
        filesystem, root = run_in_thread(
            lambda: fsspec.core.url_to_fs(location, **_fsspec_options(uri, storage_options, limits)), deadline
        )
    except Exception as error:
        # Drivers raise exceptions of their own that share no base class.
        cls, problem = _diagnose_opening(error)
        shown = redact_uri(uri)
        raise_from(cls(f"cannot open {shown}: {problem}", uri=shown), error)
    link, chained, _ = uri.partition("::")
    # fsspec takes the path of the next link for a first link that has none, such as dir:: or zip::.
    return filesystem, "" if chained and not link.partition("://")[2].strip("/") else root


def _fsspec_options(uri: str, storage_options: Mapping[str, Any], limits: TimeLimits) -> dict[str, Any]:
    # A cached instance would have the old credentials, and a cached listing the old objects.
    options = {**storage_options, "use_listings_cache": False, "skip_instance_cache": True}
    scheme = uri.partition("::")[0].partition("://")[0]
    if "url" in options:  # also the name of the first parameter of `url_to_fs`
        options[scheme] = {**options.get(scheme, {}), "url": options.pop("url")}
    accepted = inspect.signature(fsspec.get_filesystem_class(scheme)).parameters
    return {**options, "timeout": limits.timeout} if "timeout" in accepted else options


def _diagnose_opening(error: Exception) -> tuple[type[BackendError], str]:
    """Return what `_diagnose` does, for an exception of the constructor of a filesystem."""
    if isinstance(error, ImportError):
        return UnknownBackendError, f"fsspec needs another package for it ({error})"
    if isinstance(error, TypeError):
        return BackendError, f"storage_options do not fit ({error}). Pass the options of fsspec's filesystem."
    return _diagnose(error)


def _diagnose(error: Exception) -> tuple[type[BackendError], str]:
    """Return the class of the `BackendError` for an exception of a filesystem, and what went wrong."""
    text = f"{type(error).__name__}: {error}"
    status = _http_status(error)
    if isinstance(error, FileNotFoundError) or status in _NOT_FOUND_STATUS:
        return BackendNotFoundError, "not found"
    if isinstance(error, PermissionError) or status in _PERMISSION_STATUS:
        return BackendPermissionError, "permission denied. Check the credentials in storage_options."
    if isinstance(error, TimeLimitExceededError):
        return BackendUnavailableError, f"{error}; trying again may help."
    if isinstance(error, _BROKEN_ARCHIVE):
        return BackendError, f"the archive is damaged, or not an archive of this kind ({text})"
    if status is not None and status not in _TRANSIENT_STATUS:
        return BackendError, f"the server refuses the request ({text}). Correct the URI or storage_options."
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return BackendError, f"fsspec refuses the URI or storage_options ({text})"
    return BackendUnavailableError, text


def _http_status(error: Exception) -> Optional[int]:
    """Return the HTTP status in an exception of aiohttp or requests."""
    if type(error.__cause__).__module__ == _UNREADABLE_HTTP:
        return None  # aiohttp calls it status 400, which no server has sent
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _find(filesystem: AbstractFileSystem, path: str, deadline: Deadline) -> Mapping[str, Any]:
    """Return the details of all files below a folder, by name.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if _owner(type(filesystem), "find", "_find") not in (AbstractFileSystem, AsyncFileSystem, DirFileSystem):
        found: Mapping[str, Any] = filesystem.find(path, detail=True)
        return found
    # The inherited method leaves out what it cannot list, and says nothing.
    files: dict[str, Any] = {}
    folders = {path.rstrip("/"): 0}
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        depth = folders[folder.rstrip("/")]
        if depth > _MAX_DEPTH:
            raise ValueError(f"folders are nested more than {_MAX_DEPTH} deep at {folder}")
        for details in _entries(filesystem, folder, is_first=depth == 0):
            name = details["name"].rstrip("/")
            if details["type"] != "directory":
                files[name] = details
            elif name not in folders:
                folders[name] = depth + 1
                waiting.append(details["name"])
        deadline.restart()
    return files


def _entries(filesystem: AbstractFileSystem, folder: str, *, is_first: bool) -> Sequence[Mapping[str, Any]]:
    try:
        entries: Sequence[Mapping[str, Any]] = filesystem.ls(folder, detail=True)
    except FileNotFoundError:
        if is_first:
            raise
        return ()  # another process has just removed it
    return entries


def _with_sizes(
    filesystem: AbstractFileSystem, files: Mapping[str, Any], deadline: Deadline
) -> Mapping[str, Any]:
    """Return the same details, with the sizes that the listing of a web server does not have."""
    unknown = [name for name, details in files.items() if details["size"] is None]
    sizes: dict[str, int] = {}
    for start in range(0, len(unknown), _SIZES_AT_ONCE):
        names = unknown[start : start + _SIZES_AT_ONCE]
        for name, size in zip(names, filesystem.sizes(names)):
            sizes[name] = len(filesystem.cat_file(name)) if size is None else size
            deadline.restart()
    return {**files, **{name: {**files[name], "size": size} for name, size in sizes.items()}}


def _innermost(filesystem: AbstractFileSystem) -> str:
    """Return the name of the class of a filesystem, or of the one that a `DirFileSystem` wraps."""
    while isinstance(filesystem, DirFileSystem):
        filesystem = filesystem.fs
    return type(filesystem).__name__


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
    return any(
        _owner(cls, name) not in (None, AbstractFileSystem, AsyncFileSystem)
        for name in ("_pipe_file", "pipe_file")
    )


def _owner(cls: type, *names: str) -> Optional[type]:
    """Return the class that defines one of these methods, as ``cls`` inherits it; None if there is none."""
    return next((base for base in cls.__mro__ if any(name in vars(base) for name in names)), None)


def _accepts_mode(cls: type) -> bool:
    """Return whether the filesystem's own write has a ``mode``. Without it, a create silently replaces."""
    method = getattr(cls, "_pipe_file" if issubclass(cls, AsyncFileSystem) else "pipe_file")
    return "mode" in inspect.signature(method).parameters


def _is_object(details: Mapping[str, Any]) -> bool:
    """Return whether something is a file, and not a link to one."""
    return details["type"] == "file" and not details.get("islink")


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
