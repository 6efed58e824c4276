"""The base of every object-store backend: buckets, prefixes, ranges, batches of deletes, errors.

`ObjectStoreBackend` keeps the contract of `Backend` on top of a few requests that a client library sends.

A service with several client libraries translates errors in two steps: each library's exceptions become a
`RequestFailure`, and one function for the service turns that into a `BackendError`. `explain_unanswered`
covers the failures that have nothing to do with the service.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, TypeVar, Union

from input_checkpoint.backends.answers import UnexpectedAnswerError
from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key, is_key, may_begin_keys
from input_checkpoint.backends.causes import raise_from, redact_causes
from input_checkpoint.backends.commit_lock import COMMIT_LOCK_ADVICE
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.backends.reopening import ReopeningClient
from input_checkpoint.backends.time_limits import TimeLimitExceededError
from input_checkpoint.errors import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
)

RETRY_ADVICE = "trying again may help"
"""What to do about a storage that is unavailable; goes into a sentence."""

_Error = TypeVar("_Error", bound=BackendError)
_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """One operation of a backend, as error messages name it.

    Example:
        >>> Operation("read", "s3://bucket/run", "key").error(BackendError, "the disk is full")
        BackendError('cannot read s3://bucket/run/key: the disk is full')
    """

    verb: str
    """``"open"``, ``"create"``, ``"write"``, ``"read"``, ``"list"`` or ``"delete"``."""
    uri: str
    """URI of the backend, without secrets."""
    key: str = ""
    """The object; empty if the operation is about no single object."""
    prefix: str = ""
    """The prefix that is listed."""

    def __str__(self) -> str:
        return f"cannot {self.verb} {self.uri}/{self.key or self.prefix}".rstrip("/")

    def error(self, cls: type[_Error], text: str) -> _Error:
        """Return an error that says which operation failed, and why.

        Args:
            cls: its class.
            text: why, and what to do. Secrets in it are removed.
        """
        return self.locate(cls(f"{self}: {text}"))

    def credentials_refused(self, text: str) -> BackendPermissionError:
        """Return the error for credentials that are missing, wrong or expired. See `error`.

        `ObjectStoreBackend` then looks them up again and repeats the operation once.
        """
        error = self.error(BackendPermissionError, text)
        error.credentials_refused = True
        return error

    def unexpected_answer(self, error: UnexpectedAnswerError) -> BackendUnavailableError:
        """Return the error for an answer that does not belong to the request."""
        return self.error(
            BackendUnavailableError,
            f"{error}. A proxy or a login page may have answered. Check the endpoint and the network; "
            f"{RETRY_ADVICE}.",
        )

    def locate(self, error: _Error) -> _Error:
        """Return ``error`` with URI and key set, where they are not."""
        error.uri = error.uri or self.uri
        error.key = error.key or self.key or None
        return error

    def already_exists(self) -> ObjectExistsError:
        """Return the error for a create that found its key taken."""
        return self.locate(ObjectExistsError(f"{self.uri}/{self.key} already exists"))

    def does_not_exist(self) -> ObjectNotFoundError:
        """Return the error for an object that does not exist."""
        return self.error(ObjectNotFoundError, "it does not exist")


class RangePastEndError(BackendError):
    """The requested range starts past the end of the object: status 416. `ObjectStoreBackend` handles it."""


Translate = Callable[[Exception, Operation], BackendError]
"""Returns the `BackendError` for an exception of a client library."""


@contextlib.contextmanager
def translated_errors(operation: Operation, translate: Translate) -> Iterator[None]:
    """Turn every exception into a `BackendError` that knows its URI and key.

    Args:
        operation: what is done inside the ``with`` statement.
        translate: called for every exception but a `BackendError`, an `UnexpectedAnswerError` and a
            `TimeLimitExceededError`.
    """
    try:
        yield
    except BackendError as error:
        redact_causes(operation.locate(error))
        raise
    except UnexpectedAnswerError as error:
        raise_from(operation.unexpected_answer(error), error)
    except TimeLimitExceededError as error:
        raise_from(operation.error(BackendUnavailableError, f"{error}; {RETRY_ADVICE}."), error)
    except Exception as error:
        # Client libraries let exceptions of other libraries through, which share no base class.
        raise_from(operation.locate(translate(error, operation)), error)


class ObjectStoreBackend(Backend):
    """A prefix of a bucket, through any client library.

    A subclass sends the requests: `upload`, `download`, `list_objects` and `delete_objects`, and perhaps
    `check_exists`. These methods take the names of objects, which are keys with the prefix in front. They
    raise what the client library raises, and `translate_error` turns that into a `BackendError`. Several
    threads call them at once.

    Client libraries believe what a proxy or a login page answers in place of the service. So these methods
    look in each answer for what the protocol promises, and raise `UnexpectedAnswerError` if it is missing:
    see `input_checkpoint.backends.answers`.

    They send the requests through `client`, which `open_client` opens. A forked child opens its own. When
    `translate_error` returns an error whose `credentials_refused` is true, the client is opened again and the
    request is repeated, once.

    Args:
        uri: ``scheme://bucket/prefix``.
        prefix: what the name of every object starts with: empty, or with a slash at its end, as
            `parse_bucket_uri` returns it.
        shown_uri: the URI for messages. Default: ``uri`` without user names, passwords and queries.
        storage_options: what the backend was opened with. Credentials in them are removed from every message.

    Example: see "On an object store" in ``docs/writing-a-backend.md``.
    """

    max_keys_per_delete: int = 1000
    """The most names that `delete_objects` is given."""

    def __init__(
        self,
        uri: str,
        prefix: str,
        *,
        shown_uri: Optional[str] = None,
        storage_options: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__(uri, storage_options)
        self._uri = redact_uri(shown_uri or uri)
        self._prefix = prefix
        self._reopening: ReopeningClient[Any] = ReopeningClient(self.open_client, self.close_client)

    @property
    def prefix(self) -> str:
        """What the name of every object starts with. The rest of the name is the key."""
        return self._prefix

    @property
    def client(self) -> Any:
        """What `open_client` returned in this process. It is called when the client is first needed."""
        return self._reopening.get()

    def connect(self) -> None:
        """Open the client now. Call it last in a constructor: wrong options and credentials then fail there.

        Raises:
            BackendError: that it cannot be opened, as `translate_error` describes it.
        """
        with self.errors("open"):
            self._reopening.get()

    def open_client(self) -> Any:
        """Open what sends the requests. Look up the credentials here, so that renewed ones are found.

        Returns:
            The client. None, the default, if the backend needs none.
        """
        return None

    def close_client(self, client: Any) -> None:
        """Release the connections of a client that `open_client` returned."""

    @abc.abstractmethod
    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """Store an object in one atomic step.

        Args:
            name: of the object.
            data: its content.
            if_absent: whether to refuse to replace an object. The server must check this condition itself,
                in the request that stores the object. `translate_error` then returns `ObjectExistsError`.
        """

    @abc.abstractmethod
    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """Return bytes ``start`` to ``end`` of an object.

        Args:
            name: of the object.
            start: the first byte.
            end: greater than ``start``, and perhaps past the end of the object; None = to the end. If
                ``start`` is past the end, raise: `translate_error` returns `RangePastEndError`.
        """

    @abc.abstractmethod
    def list_objects(self, prefix: str) -> Iterable[ObjectInfo]:
        """Return the objects whose names start with ``prefix``, in the order of their names.

        Returns:
            Information with the name of an object as its ``key``. The caller skips names that are not valid
            keys, such as those of the empty objects that consoles create to show folders.
        """

    @abc.abstractmethod
    def delete_objects(self, names: Sequence[str]) -> None:
        """Delete objects, at most `max_keys_per_delete`. A missing object is not an error."""

    @abc.abstractmethod
    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """Return the `BackendError` for an exception of the client library.

        Args:
            error: what one of the other methods raised.
            operation: what failed; its methods build the errors.
        """

    def check_exists(self, name: str) -> None:
        """Raise if an object does not exist. Override this if there is a cheaper request than a download."""
        self.download(name, 0, 1)

    def errors(self, verb: str, key: str = "", prefix: str = "") -> contextlib.AbstractContextManager[None]:
        """Return a context that turns exceptions into `BackendError`; see `Operation` for the arguments."""
        return translated_errors(Operation(verb, self.uri, key, prefix), self.translate_error)

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        name, content = self._name(key), bytes(data)
        self._send("create", key, lambda: self.upload(name, content, if_absent=True))

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        name, content = self._name(key), bytes(data)
        self._send("write", key, lambda: self.upload(name, content, if_absent=False))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        name = self._name(key)
        try:
            if end is None or end > start:
                return self._send("read", key, lambda: self.download(name, start, end))
            self._send("read", key, lambda: self.check_exists(name))
        except RangePastEndError:
            pass
        return b""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        if not may_begin_keys(prefix):
            return
        client, last_key = self._reopening.opened, ""
        try:
            for info in self._listing(prefix):
                last_key = info.key
                yield info
            return
        except BackendPermissionError as error:
            if client is None or not error.credentials_refused:
                raise
        self._renew_credentials(client)
        yield from (info for info in self._listing(prefix) if info.key > last_key)

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        names = [self._name(key) for key in keys]
        for start in range(0, len(names), self.max_keys_per_delete):
            batch = names[start : start + self.max_keys_per_delete]
            self._send("delete", "", functools.partial(self.delete_objects, batch))

    def close(self) -> None:
        """See `Backend.close`."""
        self._reopening.close()

    def _send(self, verb: str, key: str, request: Callable[[], _Result]) -> _Result:
        """Send a request. Repeat it once with renewed credentials if the server refuses them."""
        client = self._reopening.opened
        try:
            with self.errors(verb, key):
                return request()
        except BackendPermissionError as error:
            # A client that was opened for this request has just looked the credentials up.
            if client is None or not error.credentials_refused:
                raise
        self._renew_credentials(client)
        with self.errors(verb, key):
            return request()

    def _listing(self, prefix: str) -> Iterator[ObjectInfo]:
        start, wanted, last = len(self._prefix), self._prefix + prefix, ""
        with self.errors("list", prefix=prefix):
            for info in self.list_objects(wanted):
                if not info.key.startswith(wanted):
                    raise UnexpectedAnswerError("the list", f"the object {info.key}", f"those in {wanted}")
                if info.key <= last:
                    raise UnexpectedAnswerError("the list", f"{info.key} after {last}", "objects in order")
                last = info.key
                key = info.key[start:]
                if is_key(key):
                    yield ObjectInfo(key, info.size, info.modified)

    def _renew_credentials(self, refused: Any) -> None:
        _log.info("%s: the credentials are not accepted. Looking them up again.", self.uri)
        with self.errors("open"):
            self._reopening.replace(refused)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)


def parse_bucket_uri(
    uri: str,
    *,
    address: Optional[str] = None,
    noun: str = "bucket",
    login: str = "storage_options",
    forbidden: str = "",
) -> tuple[str, str]:
    """Return the bucket, and the prefix of all names: empty, or with a slash at its end.

    Args:
        uri: ``scheme://bucket/prefix``.
        address: ``bucket/prefix``, if it is not simply the part of the URI behind the scheme.
        noun: what the service calls a bucket.
        login: where credentials and options belong instead.
        forbidden: characters that would start options in a URI of this scheme, such as ``"?#"``.

    Raises:
        BackendNotFoundError: the URI names no bucket, or holds credentials or options.

    Example:
        >>> parse_bucket_uri("s3://bucket/run-7/input")
        ('bucket', 'run-7/input/')
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = (rest if address is None else address).partition("/")
    form = f"{scheme}://{noun}/prefix"
    if "@" in bucket or ":" in bucket or any(character in uri for character in forbidden):
        raise BackendNotFoundError(
            f"{redact_uri(uri)}: credentials and options must not be part of the URI. Write {form}, and use "
            f"{login}.",
            uri=redact_uri(uri),
        )
    if not bucket:
        raise BackendNotFoundError(f"{redact_uri(uri)} names no {noun}. Write {form}.", uri=redact_uri(uri))
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""


class FailureCause(enum.Enum):
    """Why a request got no answer."""

    CONNECTION = "the server could not be reached, or did not answer"
    CREDENTIALS = "there are no usable credentials"
    CERTIFICATE = "the server's certificate is not trusted"
    OPTIONS = "the client library refuses the URI or the options"


@dataclass(frozen=True)
class RequestFailure:
    """A failed request, in the same form for every client library of a service."""

    message: str
    """One line, without secrets."""
    status: Optional[int] = None
    """HTTP status; None if no answer came, or the client library does not tell."""
    code: str = ""
    """The service's error code; empty if the answer has none."""
    answer: str = field(default="", repr=False)
    """The whole answer. Never show it: some servers repeat the request in it."""
    cause: FailureCause = FailureCause.CONNECTION
    """Why no answer came, if none came."""

    @property
    def reason(self) -> str:
        """The error code, or the HTTP status if there is no code; empty if no answer came."""
        return self.code or str(self.status or "")


@dataclass(frozen=True)
class Advice:
    """What the users of a service can do about a request without an answer. Each is a whole sentence."""

    credentials: str
    certificate: str
    connection: str


def explain_unanswered(failure: RequestFailure, operation: Operation, advice: Advice) -> BackendError:
    """Return the `BackendError` for a request that got no answer."""
    if failure.cause is FailureCause.CREDENTIALS:
        return credentials_not_accepted(operation, failure.message, advice)
    if failure.cause is FailureCause.CERTIFICATE:
        return operation.error(
            BackendError, f"the server's certificate is not trusted ({failure.message}). {advice.certificate}"
        )
    if failure.cause is FailureCause.OPTIONS:
        return operation.error(BackendError, f"the URI or storage_options are wrong: {failure.message}")
    return operation.error(
        BackendUnavailableError, f"{failure.message}. {advice.connection.rstrip('.')}; {RETRY_ADVICE}."
    )


def credentials_not_accepted(operation: Operation, reason: str, advice: Advice) -> BackendPermissionError:
    """Return the error for credentials that are missing, or that the server refuses."""
    return operation.credentials_refused(f"the credentials are not accepted ({reason}). {advice.credentials}")


def conditional_writes_unsupported(operation: Operation, reason: str) -> BackendError:
    """Return the error for a server that does not know the condition of a create.

    Args:
        operation: the create.
        reason: the condition and what the server answers, for a parenthesis.
    """
    return operation.error(
        BackendError,
        f"this server does not support conditional writes ({reason}), so two writers could both believe that "
        f"they committed. {COMMIT_LOCK_ADVICE}",
    )


def is_caused_by(error: BaseException, classes: Union[type, tuple[type, ...]]) -> bool:
    """Return whether an exception, or one that led to it, is of one of these classes."""
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, classes):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
