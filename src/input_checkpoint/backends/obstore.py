"""Objects in a store that obstore has opened: an engine that plugins offer beside fsspec.

obstore (https://developmentseed.org/obstore) sends the requests from Rust, without Python's lock. This module
does not import it: it need not be installed, and a plugin hands the open store over.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Callable, Optional, Protocol

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import BackendError, ObjectNotFoundError

_PAST_THE_END = 416
_SMALL_UPLOAD = 1 << 20
_MIN_UPLOAD_BYTES_PER_SECOND = 128 * 1024  # bytes a second
_NO_LIMIT = timedelta(days=1)
_IDLE_CONNECTION = timedelta(seconds=4)  # https://nodejs.org/api/http.html#serverkeepalivetimeout: 5 s
_LISTED_AT_ONCE = 1000
_DELETES_IN_PARALLEL = 16

# obstore's exceptions carry nothing but text: the error of the Rust crate object_store, then a dump of it.
# https://github.com/developmentseed/obstore/blob/main/pyo3-object_store/src/error.rs
_DUMP = "\n\nDebug source:\n"
_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})[^:]*: ?(.*)", re.DOTALL)
_NOT_DELETED = re.compile(r"request failed for key (.+?): (.*) \(code: (\w+)\)", re.DOTALL)
_BEYOND = re.compile(r"Wanted range starting at \d+, but object was only \d+ bytes long")
_NO_CREDENTIALS = re.compile(r"External \w+ credential provider: (\w+): (.*)")
_REDIRECT = "Received redirect without LOCATION"
_CODE = re.compile(r"<Code>\s*([^<]*?)\s*</Code>")
_MESSAGE = re.compile(r"<Message>\s*([^<]*?)\s*</Message>")
_UNTRUSTED = re.compile(r"\bInvalidCertificate\(")
_HINDRANCE = re.compile(r'\b(?:message|error): "([^"]+)"|\b(TimedOut|IncompleteMessage|ConnectionReset)\b')


class ObjectStore(Protocol):
    """What is used of obstore's stores (https://developmentseed.org/obstore/latest/api/store)."""

    def put(self, path: str, file: bytes, **options: Any) -> Any:
        """Store an object."""

    def get(self, path: str, *, options: Any = None) -> Any:
        """Ask for an object, or a range of it."""

    def list(self, prefix: Optional[str] = None, *, chunk_size: int = 50) -> Any:
        """List what is below a folder."""

    def delete(self, paths: Any) -> None:
        """Remove objects."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to ask again.

    With the defaults a server that cannot be reached is an error within 20 s. Trying for longer is for
    `input_checkpoint.RetryPolicy`.

    Example:
        >>> Patience(answer=60).client_options(upload_bytes=8 << 20)["read_timeout"].seconds
        124
    """

    connect: float = 5.0
    answer: float = 60.0
    retries: int = 2

    def client_options(self, upload_bytes: int = 0) -> dict[str, Any]:
        """Return obstore's ``client_options`` for it.

        Args:
            upload_bytes: of the largest body sent; its time comes on top, since what obstore calls
                ``read_timeout`` runs until the answer to an upload begins.
        """
        answer = self.answer + upload_bytes / _MIN_UPLOAD_BYTES_PER_SECOND
        return {
            "connect_timeout": timedelta(seconds=self.connect),
            "read_timeout": timedelta(seconds=answer),
            # 30 s by default, however much is still arriving.
            "timeout": _NO_LIMIT,
            # A request on a connection that the server has just closed fails, and not every one is repeated.
            "pool_idle_timeout": _IDLE_CONNECTION,
        }

    def retry_config(self) -> dict[str, Any]:
        """Return obstore's ``retry_config`` for it."""
        pauses = {"init_backoff": timedelta(seconds=0.25), "max_backoff": timedelta(seconds=2), "base": 2}
        # After a time-out of the answer nothing is repeated: it has used up the patience by itself.
        limit = timedelta(seconds=min(15.0, self.answer))
        return {"max_retries": self.retries, "retry_timeout": limit, "backoff": pauses}


class ObjectStoreError(Exception):
    """What obstore said went wrong, taken out of the text of its exception.

    Args:
        message: the server's, or what hindered the request; one line without secrets.
        status: of HTTP; None if no answer came.
        code: the service's own word for it; empty if there is none.
        key: that of a bulk delete which was not deleted; empty otherwise.
        raised: the name of the exception that ended the search for credentials; empty if they were there.
        body: the whole answer. Not to be shown: some servers repeat the request in it.
        untrusted: whether the server's certificate is not trusted.
        unsuitable: whether obstore was asked for what it cannot do.
    """

    def __init__(
        self,
        message: str,
        status: Optional[int] = None,
        code: str = "",
        key: str = "",
        raised: str = "",
        body: str = "",
        untrusted: bool = False,
        unsuitable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.key = key
        self.raised = raised
        self.body = body
        self.untrusted = untrusted
        self.unsuitable = unsuitable


Translate = Callable[[ObjectStoreError, str, str, str], BackendError]
"""Returns the `BackendError` for a failure, given the operation, the backend's URI and the key."""


@dataclass(frozen=True)
class Service:
    """What differs from one service to the next.

    Args:
        open_store: opens a store, with obstore's ``client_options`` and ``retry_config``.
        translate: says what a failure is.
        put_options: for every ``put``.
        deletes_at_once: keys in one bulk delete.
        patience: of each request.
    """

    open_store: Callable[[dict[str, Any], dict[str, Any]], ObjectStore]
    translate: Translate
    deletes_at_once: int
    put_options: Mapping[str, Any] = field(default_factory=dict)
    patience: Patience = Patience()


class ObstoreBackend(Backend):
    """The objects of a store that obstore has opened.

    Every object is one request, also the large ones: never a multipart upload, on which not every server
    checks the condition of `create`, and which leaves parts behind when it breaks off.

    Args:
        uri: as it may be shown; for messages only.
        service: how to open the store, at the folder that ``uri`` names, and to read what it answers.
    """

    def __init__(self, uri: str, service: Service) -> None:
        super().__init__(uri)
        self._uri = uri
        self._service = service
        self._stores: dict[int, ObjectStore] = {}
        self._opening = threading.Lock()
        with self._errors("open", ""):
            self._store = self._store_for(0)

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        self._put("create", key, data, mode="create")

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._put("write", key, data, mode="overwrite")

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        name = check_key(key)
        nothing = end is not None and end <= start
        # Of no bytes, the first one tells whether the object is there; a HEAD would not say what is missing.
        options = _range(0, 1) if nothing else _range(start, end)
        with self._errors("read", key):
            try:
                data: bytes = self._store.get(name, options=options).bytes().to_bytes()
            except Exception as error:
                if _failure(error).status == _PAST_THE_END:
                    return b""
                raise
        return b"" if nothing else data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        # A prefix of obstore's is made of whole parts of a path.
        folder = prefix.rpartition("/")[0]
        with self._errors("list", prefix):
            listing = self._store.list(folder or None, chunk_size=_LISTED_AT_ONCE)
            found = [
                ObjectInfo(entry["path"], entry["size"], entry["last_modified"].timestamp())
                for page in listing
                for entry in page
                # Consoles make an empty object of the folder's own name to show it.
                if entry["path"] and entry["path"].startswith(prefix)
            ]
        # obstore promises no order.
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        names = [check_key(key) for key in keys]
        for start in range(0, len(names), self._service.deletes_at_once):
            self._delete(names[start : start + self._service.deletes_at_once])

    def _put(self, operation: str, key: str, data: Data, mode: str) -> None:
        name = check_key(key)
        content = bytes(data)
        with self._errors(operation, key):
            store = self._store_for(len(content))
            store.put(name, content, mode=mode, use_multipart=False, **self._service.put_options)

    def _delete(self, names: Sequence[str]) -> None:
        with self._errors("delete", ""):
            try:
                self._store.delete(names)
                return
            except Exception as error:
                failure = _failure(error)
                # A bare 404 may be anything that is not there.
                if not (failure.key or failure.code) or not self._is_missing(failure):
                    raise
        # obstore tells only the first key that was not deleted: one that was gone may hide another.
        self._delete_each(names)

    def _delete_each(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(_DELETES_IN_PARALLEL) as executor:
            for _ in executor.map(self._delete_one, names):
                pass

    def _delete_one(self, name: str) -> None:
        with contextlib.suppress(ObjectNotFoundError), self._errors("delete", name):
            self._store.delete(name)

    def _is_missing(self, failure: ObjectStoreError) -> bool:
        return isinstance(self._explained(failure, "delete", ""), ObjectNotFoundError)

    def _explained(self, failure: ObjectStoreError, operation: str, key: str) -> BackendError:
        return self._service.translate(failure, operation, self.uri, key)

    def _store_for(self, upload_bytes: int) -> ObjectStore:
        """Return the store whose patience is enough for an upload: it is fixed when a store is opened."""
        # Few sizes, since each store has connections of its own.
        size = 0 if upload_bytes <= _SMALL_UPLOAD else 1 << (upload_bytes - 1).bit_length()
        with self._opening:
            if size not in self._stores:
                patience = self._service.patience
                options, retries = patience.client_options(size), patience.retry_config()
                self._stores[size] = self._service.open_store(options, retries)
            return self._stores[size]

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except BackendError:
            raise
        except Exception as error:
            # obstore raises exceptions of its own and built-in ones. They are not chained: they spell out the
            # request, which may hold a secret.
            raise self._explained(_failure(error), operation, key) from None


def load_obstore(uri: str, extra: str) -> Any:
    """Return the module ``obstore.store``.

    Args:
        uri: of the backend, for the message.
        extra: the distribution and its extra that bring obstore.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return importlib.import_module("obstore.store")
    except ImportError as error:
        raise BackendError(
            f"cannot open {redact(uri)}: engine='obstore' needs obstore ({error}). Install it, on Python "
            f"3.11 or later: pip install '{extra}'. Or leave the engine out."
        ) from error


def _range(start: int, end: Optional[int]) -> Any:
    if end is not None:
        return {"range": (start, end)}
    return {"range": {"offset": start}} if start else None


def _failure(error: Exception) -> ObjectStoreError:
    """Take an exception of obstore's apart."""
    text, _, dump = str(error).partition(_DUMP)
    answered = _STATUS.search(text)
    if answered:
        status, body = int(answered.group(1)), answered.group(2)
        code, message = _found(_CODE, body), _found(_MESSAGE, body) or body[:500]
        return ObjectStoreError(_line(message), status, code, body=body)
    not_deleted = _NOT_DELETED.search(text)
    if not_deleted:
        key, message, code = not_deleted.groups()
        return ObjectStoreError(_line(message), int(code) if code.isdigit() else None, code, key)
    if _BEYOND.search(text):  # Azurite sends nothing, and says that this is the range
        return ObjectStoreError(_line(text), _PAST_THE_END)
    if _REDIRECT in text:
        return ObjectStoreError("the server redirects to another region", 301, "PermanentRedirect")
    no_credentials = _NO_CREDENTIALS.search(text)
    if no_credentials:
        raised, message = no_credentials.groups()
        return ObjectStoreError(_line(f"{raised}: {message}"), raised=raised)
    hindrance = " ".join("".join(found) for found in _HINDRANCE.findall(dump)[-1:])
    return ObjectStoreError(
        _line(f"{text} ({hindrance})" if hindrance else text or type(error).__name__),
        untrusted=bool(_UNTRUSTED.search(dump)),
        unsuitable=not dump or isinstance(error, (TypeError, ValueError, NotImplementedError)),
    )


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1) if match else ""


def _line(text: str) -> str:
    return redact(" ".join(text.splitlines()[:1]).strip())
