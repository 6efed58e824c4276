"""Object stores through obstore: an engine that plugins offer beside fsspec.

obstore (https://developmentseed.org/obstore) sends the requests from Rust, without holding Python's lock.
This module does not import it: a plugin opens the store and passes it in.

obstore reads and writes. The plugin's other engine lists and deletes: obstore takes a page of XHTML, and an
answer that breaks off, for a listing without objects, and does not compare what was deleted with what should
be.
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
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Callable, Optional, Protocol, TypeVar, Union, cast

from input_checkpoint.backends.answers import AnswerHead, UnexpectedAnswerError, check_object
from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.backends.object_store import (
    FailureCause,
    ObjectStoreBackend,
    Operation,
    RequestFailure,
)
from input_checkpoint.backends.redaction import excerpt, redact, redact_uri
from input_checkpoint.backends.reopening import ReopeningClient
from input_checkpoint.backends.time_limits import (
    DEFAULT_TIME_LIMITS,
    Deadline,
    TimeLimitExceededError,
    TimeLimits,
    run_in_thread,
)
from input_checkpoint.errors import BackendError

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_RANGE_NOT_SATISFIABLE = 416
_REDIRECTS = range(300, 400)
_SMALL_TRANSFER = 1 << 20
_NO_LIMIT = timedelta(days=1)
_LONGEST_RETRY = 5.0
_FIRST_PAUSE = timedelta(seconds=0.25)
_LONGEST_PAUSE = timedelta(seconds=2)
_IDLE_CONNECTION = timedelta(seconds=4)  # https://nodejs.org/api/http.html#serverkeepalivetimeout: 5 s

# obstore's exceptions carry nothing but text: the error of the Rust crate object_store, then a dump of it.
# https://github.com/developmentseed/obstore/blob/main/pyo3-object_store/src/error.rs
_DUMP = "\n\nDebug source:\n"
_ANSWER = re.compile(r"Server returned non-2xx status code: (\d{3})[^:]*: ?(.*)", re.DOTALL)
# What object_store says about an answer that the service did not give, and how we describe that answer.
_UNEXPECTED = {
    re.compile(r"([\w-]+) Header missing from response"): r"an answer without \1",
    re.compile(r"Content-Range header not present"): "a range without Content-Range",
    re.compile(r"Received non-partial response when range requested"): "something other than the range",
    re.compile(r"Requested \d+\.\.\d+, got (\d+\.\.\d+)"): r"the bytes \1",
}
_PAST_END = re.compile(
    r"Wanted range starting at \d+, but object was only \d+ bytes long"
    r'|CONTENT_RANGE header: "bytes 0--1/0"'
)
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

    def head(self, path: str) -> Any:
        """Request the metadata of an object."""


@dataclass(frozen=True)
class RequestLimits:
    """How long a request may take, and how often it is repeated.

    Longer retries are the task of `input_checkpoint.RetryPolicy`.

    Example:
        >>> limits = RequestLimits(TimeLimits(timeout=10, min_bytes_per_second=1 << 20))
        >>> limits.client_options(size=8 << 20)["timeout"].seconds
        18
    """

    limits: TimeLimits = DEFAULT_TIME_LIMITS
    """Of the whole request."""
    connect: Optional[float] = None
    """Seconds until a connection is open. None: as ``limits`` say."""
    read: Optional[float] = None
    """Seconds until the next byte of an answer. None: as ``limits`` say."""
    retries: int = 2
    """Attempts after the first one."""

    def client_options(self, size: Optional[int]) -> dict[str, Any]:
        """Return the limits as obstore's ``client_options``.

        Args:
            size: the most bytes that a request moves. None: unknown, so the whole request has no limit here.
        """
        read, total = self.read or self.limits.timeout, _NO_LIMIT
        if size is not None:
            # obstore's read_timeout also runs while a body is sent.
            read += size / self.limits.min_bytes_per_second
            total = timedelta(seconds=self.limits.limit_for(size))
        return {
            "connect_timeout": timedelta(seconds=self.connect or self.limits.connect),
            "read_timeout": timedelta(seconds=read),
            "timeout": total,
            # A request fails if the server has just closed the connection, and not every one is repeated.
            "pool_idle_timeout": _IDLE_CONNECTION,
        }

    def retry_config(self) -> dict[str, Any]:
        """Return the retries as obstore's ``retry_config``."""
        pauses = {"init_backoff": _FIRST_PAUSE, "max_backoff": _LONGEST_PAUSE, "base": 2}
        # A request that ran into a time limit is not repeated: it has taken long enough.
        limit = timedelta(seconds=min(_LONGEST_RETRY, self.limits.timeout / 2))
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
    """Opens the same prefix through the plugin's other engine."""
    explain: Callable[[RequestFailure, Operation], BackendError]
    """Returns the `BackendError` for a failed request."""
    etag: re.Pattern[str]
    """The form of the service's ETags. An upload that is answered with any other one is verified: obstore
    follows redirects, and a page may have an ETag too."""
    put_options: Mapping[str, Any] = field(default_factory=dict)
    """Goes with every ``put``."""
    limits: RequestLimits = RequestLimits()
    """Of every request."""
    credential_refusals: frozenset[str] = frozenset()
    """Names of the exceptions by which a credential provider says that it has no usable credentials. Every
    other exception of it may pass."""


class ObstoreBackend(ObjectStoreBackend):
    """A prefix of a bucket, through a store that obstore has opened at this prefix.

    Every object is stored by one request, whatever its size. A multipart upload is never used: not every
    server checks the condition of `create` on it, and one that is interrupted leaves parts behind.

    Lists and deletes, and everything in a forked child, go through the plugin's other engine, which is opened
    when it is first needed.

    Args:
        uri: URI of the prefix, for messages, without secrets.
        service: opens the store and explains its errors.
    """

    def __init__(self, uri: str, service: ObjectStoreService) -> None:
        super().__init__(uri, prefix="", shown_uri=uri)
        self._service = service
        self._other = ReopeningClient(service.open_without_obstore, Backend.close)
        self._engine()

    def open_client(self) -> Union[_Stores, Backend]:
        """See `ObjectStoreBackend.open_client`."""
        if not _forked_after_import:
            with self._obstore_errors("the login"):
                return _Stores(self._service)
        _log.info(
            "%s: a forked process cannot use obstore, so this one uses the default engine. To use obstore, "
            "start processes with the start method 'spawn' or 'forkserver'.",
            self.uri,
        )
        return self._other.get()

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._engine().create(key, data)

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._engine().put(key, data)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        return self._engine().get(key, start, end)

    def close(self) -> None:
        """See `Backend.close`."""
        super().close()
        self._other.close()

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """See `ObjectStoreBackend.upload`."""
        mode = "create" if if_absent else "overwrite"
        options = {"mode": mode, "use_multipart": False, **self._service.put_options}
        store = self.client.for_transfer(len(data))
        stored = self._within("PUT", self._start(len(data)), lambda: store.put(name, data, **options))
        if self._service.etag.fullmatch(stored["e_tag"] or ""):
            return
        store = self.client.for_transfer(0)
        found = self._within("HEAD", self._start(), lambda: store.head(name))
        if (found["e_tag"], found["size"]) != (stored["e_tag"], len(data)):
            raise UnexpectedAnswerError("PUT", f"the ETag {stored['e_tag']}", "that of the stored object")

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """See `ObjectStoreBackend.download`."""
        deadline, store = self._start(), self.client.for_download()

        def download() -> bytes:
            answer = store.get(name, options=_range(start, end))
            head, (first, last) = _head("GET", answer), answer.range
            check_object(head)
            if not answer.meta["e_tag"]:
                raise head.unexpected("an object")
            deadline.extend(last - first)
            data: bytes = answer.bytes().to_bytes()
            if len(data) != last - first:
                raise UnexpectedAnswerError("GET", f"{len(data)} bytes", f"{last - first}")
            return data

        return self._within("GET", deadline, download)

    def list_objects(self, prefix: str) -> Iterable[ObjectInfo]:
        """See `ObjectStoreBackend.list_objects`."""
        return self._other.get().list(prefix)

    def delete_objects(self, names: Sequence[str]) -> None:
        """See `ObjectStoreBackend.delete_objects`."""
        self._other.get().delete(names)

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """See `ObjectStoreBackend.translate_error`."""
        failure = error.failure if isinstance(error, ObstoreError) else self._failure(error)
        return self._service.explain(failure, operation)

    def _start(self, size: int = 0) -> Deadline:
        return self._service.limits.limits.start(size)

    def _within(self, name: str, deadline: Deadline, request: Callable[[], _Result]) -> _Result:
        """Run a request within its time. obstore's own limits end its thread as well, soon or a bit later.

        Args:
            name: of the request, for messages.
            deadline: of the request.
            request: sends it.
        """
        with self._obstore_errors(name):
            return run_in_thread(request, deadline)

    def _engine(self) -> Backend:
        """Return what runs an operation: the base class, or the backend that stands in for obstore."""
        with self.errors("open"):
            client = self.client
        return client if isinstance(client, Backend) else cast(Backend, super())

    @contextlib.contextmanager
    def _obstore_errors(self, request: str) -> Iterator[None]:
        try:
            yield
        except (BackendError, TimeLimitExceededError, UnexpectedAnswerError):
            raise
        except Exception as error:
            failure = self._failure(error)
            # Not chained: the text of obstore's exceptions holds the request.
            raise _unexpected_answer(error, failure, request) or ObstoreError(failure) from None

    def _failure(self, error: Exception) -> RequestFailure:
        return parse_failure(error, self._service.credential_refusals)


class _Stores:
    """The stores of one login. Time limits are fixed when a store is opened, so there is one per size."""

    def __init__(self, service: ObjectStoreService) -> None:
        self._open = service.log_in()
        self._limits = service.limits
        self._stores: dict[Optional[int], ObjectStore] = {}
        self._opening = threading.Lock()
        self.for_transfer(0)

    def for_transfer(self, size: int) -> ObjectStore:
        """Return a store with time limits that suffice for a request that moves ``size`` bytes."""
        # Few classes of sizes, four for each power of two: each store has its own connections.
        step = max(_SMALL_TRANSFER, 1 << max(size.bit_length() - 3, 0))
        return self._store(max(1, -(-size // step)) * step)

    def for_download(self) -> ObjectStore:
        """Return a store whose answers may be of any size. The caller limits the time to read them."""
        return self._store(None)

    def _store(self, size: Optional[int]) -> ObjectStore:
        with self._opening:
            if size not in self._stores:
                limits = self._limits
                self._stores[size] = self._open(limits.client_options(size), limits.retry_config())
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
    if _PAST_END.search(text):
        # Azurite answers a range past the end with no bytes, or with "bytes 0--1/0". obstore refuses both.
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


def _unexpected_answer(
    error: Exception, failure: RequestFailure, request: str
) -> Optional[UnexpectedAnswerError]:
    """Return the error for an answer that the service did not give; None if it did."""
    if failure.status in _REDIRECTS and not failure.code:
        return AnswerHead(request, failure.status, {}).unexpected("an answer from the service")
    text = str(error).partition(_DUMP)[0]
    for pattern, came in _UNEXPECTED.items():
        match = pattern.search(text)
        if match:
            return UnexpectedAnswerError(request, match.expand(came))
    return None


def _head(request: str, answer: Any) -> AnswerHead:
    """Return what obstore reports about an answer to a GET."""
    return AnswerHead(request, None, {name.lower(): value for name, value in answer.attributes.items()})


def _range(start: int, end: Optional[int]) -> Any:
    if end is not None:
        return {"range": (start, end)}
    return {"range": {"offset": start}} if start else None


def _first_group(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else ""


def _first_line(text: str) -> str:
    return redact(" ".join(text.splitlines()[:1]).strip())
