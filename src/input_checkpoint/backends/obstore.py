"""Object stores through obstore: an engine that plugins offer beside fsspec.

obstore (https://developmentseed.org/obstore) sends the requests from Rust, without holding Python's lock.
This module does not import it: a plugin opens the store and passes it in.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Callable, Optional, Protocol, Union, cast

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.backends.object_store import (
    FailureCause,
    ObjectStoreBackend,
    Operation,
    RequestFailure,
)
from input_checkpoint.backends.redaction import excerpt, redact, redact_uri
from input_checkpoint.errors import BackendError, ObjectNotFoundError

_log = logging.getLogger(__name__)

_RANGE_NOT_SATISFIABLE = 416
_SMALL_UPLOAD = 1 << 20
_MIN_UPLOAD_BYTES_PER_SECOND = 128 * 1024
_NO_LIMIT = timedelta(days=1)
_IDLE_CONNECTION = timedelta(seconds=4)  # https://nodejs.org/api/http.html#serverkeepalivetimeout: 5 s
_ENTRIES_PER_PAGE = 1000
_PARALLEL_DELETES = 16

# obstore's exceptions carry nothing but text: the error of the Rust crate object_store, then a dump of it.
# https://github.com/developmentseed/obstore/blob/main/pyo3-object_store/src/error.rs
_DUMP = "\n\nDebug source:\n"
_ANSWER = re.compile(r"Server returned non-2xx status code: (\d{3})[^:]*: ?(.*)", re.DOTALL)
_NOT_DELETED = re.compile(r"request failed for key (.+?): (.*) \(code: (\w+)\)", re.DOTALL)
_PAST_END = re.compile(r"Wanted range starting at \d+, but object was only \d+ bytes long")
_CREDENTIAL_PROVIDER = re.compile(r"External \w+ credential provider: (\w+): (.*)")
_REDIRECT = "Received redirect without LOCATION"
_CODE = re.compile(r"<Code>\s*([^<]*?)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*([^<]*?)\s*</Message>")
_INVALID_CERTIFICATE = re.compile(r"\bInvalidCertificate\(")
_ROOT_CAUSE = re.compile(r'\b(?:message|error): "([^"]+)"|\b(TimedOut|IncompleteMessage|ConnectionReset)\b')


class ObjectStore(Protocol):
    """The methods of obstore's stores in use (https://developmentseed.org/obstore/latest/api/store)."""

    def put(self, path: str, file: bytes, **options: Any) -> Any:
        """Store an object."""

    def get(self, path: str, *, options: Any = None) -> Any:
        """Request an object, or a range of it."""

    def list(self, prefix: Optional[str] = None, *, chunk_size: int = 50) -> Any:
        """List the objects in a folder."""

    def delete(self, paths: Any) -> None:
        """Delete objects."""


@dataclass(frozen=True)
class RequestTimeouts:
    """How long a request waits for a server, and how often it is repeated.

    With the defaults, a server that cannot be reached is an error within 20 s. Longer retries are the task of
    `input_checkpoint.RetryPolicy`.

    Example:
        >>> RequestTimeouts(read=60).client_options(upload_bytes=8 << 20)["read_timeout"].seconds
        124
    """

    connect: float = 5.0
    """Seconds until a connection is open."""
    read: float = 60.0
    """Seconds until the next byte of an answer."""
    retries: int = 2
    """Attempts after the first one."""

    def client_options(self, upload_bytes: int = 0) -> dict[str, Any]:
        """Return the timeouts as obstore's ``client_options``.

        Args:
            upload_bytes: size of the largest body. Its transfer time is added, because obstore's
                ``read_timeout`` also runs while a body is sent.
        """
        read = self.read + upload_bytes / _MIN_UPLOAD_BYTES_PER_SECOND
        return {
            "connect_timeout": timedelta(seconds=self.connect),
            "read_timeout": timedelta(seconds=read),
            # The default is 30 s for the whole answer, even while bytes arrive.
            "timeout": _NO_LIMIT,
            # A request fails if the server has just closed the connection, and not every one is repeated.
            "pool_idle_timeout": _IDLE_CONNECTION,
        }

    def retry_config(self) -> dict[str, Any]:
        """Return the retries as obstore's ``retry_config``."""
        pauses = {"init_backoff": timedelta(seconds=0.25), "max_backoff": timedelta(seconds=2), "base": 2}
        # A request that ran into the read timeout is not repeated: it has taken long enough.
        limit = timedelta(seconds=min(15.0, self.read))
        return {"max_retries": self.retries, "retry_timeout": limit, "backoff": pauses}


class ObstoreError(Exception):
    """What obstore reported, without the request, which may hold a secret."""

    def __init__(self, failure: RequestFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


OpenStore = Callable[[dict[str, Any], dict[str, Any]], ObjectStore]
"""Opens a store, given obstore's ``client_options`` and ``retry_config``."""


@dataclass(frozen=True)
class ObjectStoreService:
    """What differs from one service to the next."""

    log_in: Callable[[], OpenStore]
    """Looks up the credentials and returns what opens stores with them."""
    open_without_obstore: Callable[[], Backend]
    """Opens the same prefix through another client library, for a process that cannot use obstore."""
    explain: Callable[[RequestFailure, Operation], BackendError]
    """Returns the `BackendError` for a failed request."""
    max_keys_per_delete: int
    """Objects in one bulk delete."""
    put_options: Mapping[str, Any] = field(default_factory=dict)
    """Goes with every ``put``."""
    timeouts: RequestTimeouts = RequestTimeouts()
    """Of every request."""
    credential_refusals: frozenset[str] = frozenset()
    """Names of the exceptions by which a credential provider says that it has no usable credentials. Every
    other exception of it may pass."""


class ObstoreBackend(ObjectStoreBackend):
    """A prefix of a bucket, through a store that obstore has opened at this prefix.

    Every object is stored by one request, whatever its size. A multipart upload is never used: not every
    server checks the condition of `create` on it, and one that is interrupted leaves parts behind.

    Args:
        uri: URI of the prefix, for messages, without secrets.
        service: opens the store and explains its errors.
    """

    def __init__(self, uri: str, service: ObjectStoreService) -> None:
        super().__init__(uri, prefix="", shown_uri=uri)
        self.max_keys_per_delete = service.max_keys_per_delete
        self._service = service
        self._engine()

    def open_client(self) -> Union[_Stores, Backend]:
        """See `ObjectStoreBackend.open_client`."""
        if not _forked_after_import:
            with self._obstore_errors():
                return _Stores(self._service)
        _log.info(
            "%s: a forked process cannot use obstore, so this one uses the default engine. To use obstore, "
            "start processes with the start method 'spawn' or 'forkserver'.",
            self.uri,
        )
        return self._service.open_without_obstore()

    def close_client(self, client: Union[_Stores, Backend]) -> None:
        """See `ObjectStoreBackend.close_client`."""
        if isinstance(client, Backend):
            client.close()

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._engine().create(key, data)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._engine().put(key, data)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        return self._engine().get(key, start, end)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        return self._engine().list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        self._engine().delete(keys)

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """See `ObjectStoreBackend.upload`."""
        mode = "create" if if_absent else "overwrite"
        with self._obstore_errors():
            store = self.client.for_upload(len(data))
            store.put(name, data, mode=mode, use_multipart=False, **self._service.put_options)

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """See `ObjectStoreBackend.download`."""
        with self._obstore_errors():
            data: bytes = self._store().get(name, options=_range(start, end)).bytes().to_bytes()
        return data

    def list_objects(self, prefix: str) -> Iterable[ObjectInfo]:
        """See `ObjectStoreBackend.list_objects`."""
        # obstore knows only prefixes that are whole folders, and promises no order.
        folder = prefix.rpartition("/")[0]
        with self._obstore_errors():
            pages = self._store().list(folder or None, chunk_size=_ENTRIES_PER_PAGE)
            infos = [
                ObjectInfo(entry["path"], entry["size"], entry["last_modified"].timestamp())
                for page in pages
                for entry in page
                # An empty path is the mark of the folder that the store was opened at.
                if entry["path"] and entry["path"].startswith(prefix)
            ]
        return sorted(infos, key=lambda info: info.key)

    def delete_objects(self, names: Sequence[str]) -> None:
        """See `ObjectStoreBackend.delete_objects`."""
        try:
            with self._obstore_errors():
                self._store().delete(names)
        except ObstoreError as error:
            if not self._names_missing_object(error.failure):
                raise
            # obstore reports only the first object that was not deleted. If that one was missing, others may
            # still be there.
            self._delete_each(names)

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """See `ObjectStoreBackend.translate_error`."""
        failure = error.failure if isinstance(error, ObstoreError) else self._failure(error)
        return self._service.explain(failure, operation)

    def _delete_each(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(_PARALLEL_DELETES) as executor:
            for _ in executor.map(self._delete_one, names):
                pass

    def _delete_one(self, name: str) -> None:
        with contextlib.suppress(ObjectNotFoundError), self.errors("delete", name), self._obstore_errors():
            self._store().delete(name)

    def _names_missing_object(self, failure: RequestFailure) -> bool:
        # A 404 without a code may also be a missing bucket.
        if not failure.name and not failure.code:
            return False
        explained = self._service.explain(failure, Operation("delete", self.uri))
        return isinstance(explained, ObjectNotFoundError)

    def _store(self) -> ObjectStore:
        store: ObjectStore = self.client.for_upload(0)
        return store

    def _engine(self) -> Backend:
        """Return what runs an operation: the base class, or the backend that stands in for obstore."""
        with self.errors("open"):
            client = self.client
        return client if isinstance(client, Backend) else cast(Backend, super())

    @contextlib.contextmanager
    def _obstore_errors(self) -> Iterator[None]:
        try:
            yield
        except BackendError:
            raise
        except Exception as error:
            # Not chained: the text of obstore's exceptions holds the request.
            raise ObstoreError(self._failure(error)) from None

    def _failure(self, error: Exception) -> RequestFailure:
        return parse_failure(error, self._service.credential_refusals)


class _Stores:
    """The stores of one login. Timeouts are fixed when a store is opened, so there is one per upload size."""

    def __init__(self, service: ObjectStoreService) -> None:
        self._open = service.log_in()
        self._timeouts = service.timeouts
        self._stores: dict[int, ObjectStore] = {}
        self._opening = threading.Lock()
        self.for_upload(0)

    def for_upload(self, upload_bytes: int) -> ObjectStore:
        """Return a store with timeouts that suffice for an upload."""
        # Powers of two keep the number of stores small: each has its own connections.
        size = 0 if upload_bytes <= _SMALL_UPLOAD else 1 << (upload_bytes - 1).bit_length()
        with self._opening:
            if size not in self._stores:
                timeouts = self._timeouts
                self._stores[size] = self._open(timeouts.client_options(size), timeouts.retry_config())
            return self._stores[size]


_forked_after_import = False
"""Whether this process is a forked child of one that had imported obstore.

The threads of obstore's runtime do not exist here, so every request would wait forever. Requests would also
go into an epoll instance that the parent uses, and the parent's own requests would hang.
https://github.com/tokio-rs/tokio/issues/4301
"""


def _note_fork() -> None:
    global _forked_after_import
    _forked_after_import = "obstore._obstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def load_obstore(uri: str, extra: str) -> Any:
    """Return the module ``obstore.store``.

    Args:
        uri: of the backend, for the message.
        extra: the distribution and its extra that install obstore.

    Raises:
        BackendError: obstore is not installed.
    """
    try:
        return importlib.import_module("obstore.store")
    except ImportError as error:
        raise BackendError(
            f"cannot open {redact_uri(uri)}: engine='obstore' needs obstore ({error}). Install it, on Python "
            f"3.11 or later: pip install '{extra}'. Or remove the engine from storage_options.",
            uri=redact_uri(uri),
        ) from error


def parse_failure(error: Exception, credential_refusals: frozenset[str] = frozenset()) -> RequestFailure:
    """Return what an exception says that obstore raised: one of its own, or a built-in one.

    Args:
        error: the exception.
        credential_refusals: see `ObjectStoreService`.
    """
    text, _, dump = str(error).partition(_DUMP)
    answer = _ANSWER.search(text)
    if answer:
        return _answer_failure(int(answer.group(1)), answer.group(2))
    not_deleted = _NOT_DELETED.search(text)
    if not_deleted:
        name, message, code = not_deleted.groups()
        status = int(code) if code.isdigit() else None
        return RequestFailure(_first_line(message), status, code, name)
    if _PAST_END.search(text):  # Azurite answers a range past the end with no bytes, which obstore refuses
        return RequestFailure(_first_line(text), _RANGE_NOT_SATISFIABLE)
    if _REDIRECT in text:
        return RequestFailure("the server redirects to another region", 301, "PermanentRedirect")
    refusal = _CREDENTIAL_PROVIDER.search(text)
    if refusal:
        raised, message = refusal.groups()
        cause = FailureCause.CREDENTIALS if raised in credential_refusals else FailureCause.CONNECTION
        return RequestFailure(_first_line(f"{raised}: {message}"), cause=cause)
    return _unanswered_failure(error, text, dump)


def _answer_failure(status: int, body: str) -> RequestFailure:
    code, message = _first_group(_CODE, body), _first_group(_MESSAGE, body)
    return RequestFailure(_first_line(message or excerpt(body)), status, code, answer=body)


def _unanswered_failure(error: Exception, text: str, dump: str) -> RequestFailure:
    root_cause = " ".join("".join(groups) for groups in _ROOT_CAUSE.findall(dump)[-1:])
    message = f"{text} ({root_cause})" if root_cause else text or type(error).__name__
    return RequestFailure(_first_line(message), cause=_cause(error, dump))


def _cause(error: Exception, dump: str) -> FailureCause:
    if _INVALID_CERTIFICATE.search(dump):
        return FailureCause.CERTIFICATE
    # Only a failed request has a dump.
    if not dump or isinstance(error, (TypeError, ValueError, NotImplementedError)):
        return FailureCause.OPTIONS
    return FailureCause.CONNECTION


def _range(start: int, end: Optional[int]) -> Any:
    if end is not None:
        return {"range": (start, end)}
    return {"range": {"offset": start}} if start else None


def _first_group(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else ""


def _first_line(text: str) -> str:
    return redact(" ".join(text.splitlines()[:1]).strip())
