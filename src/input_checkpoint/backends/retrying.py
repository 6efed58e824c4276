"""Retries while the storage is unavailable."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Callable, NoReturn, Optional, TypeVar

import tenacity

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.backends.causes import redact_causes
from input_checkpoint.errors import BackendError, BackendUnavailableError

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to retry an operation while the storage is unavailable.

    The n-th pause is a random time between 0 and ``initial_delay * 2 ** (n - 1)``, capped at ``max_delay``
    ("full jitter"), so that workers do not all retry at the same moment.

    Example:
        >>> RetryPolicy(timeout=600)
        RetryPolicy(timeout=600, initial_delay=0.2, max_delay=15.0)
    """

    timeout: float = 120.0
    """Seconds from the first attempt of an operation to the last. 0 means a single attempt."""
    initial_delay: float = 0.2
    """Longest first pause, in seconds."""
    max_delay: float = 15.0
    """Longest pause, in seconds."""

    def __post_init__(self) -> None:
        if not self.timeout >= 0:
            raise ValueError(f"timeout must not be negative, got {self.timeout}")
        if not 0 < self.initial_delay <= self.max_delay:
            raise ValueError(
                "initial_delay must be positive and at most max_delay, "
                f"got {self.initial_delay} and {self.max_delay}"
            )


DEFAULT_RETRY_POLICY = RetryPolicy()


class RetryingBackend(Backend):
    """Retries the operations of another backend while its storage is unavailable.

    Only `BackendUnavailableError` is retried. All other errors are raised at once. After the timeout of the
    policy, the last error is raised with the number of attempts in its message.

    If the response to a `create` is lost, the retry finds the object that the first attempt created and
    raises `ObjectExistsError`, as the contract allows. The store recognizes its own objects by the write id
    in them.

    Args:
        backend: the backend to call.
        policy: how long to retry.

    Example:
        >>> from input_checkpoint.backends.opening import open_backend
        >>> backend = RetryingBackend(open_backend("memory://retried"), RetryPolicy(timeout=60))
        >>> backend.put("key", b"data")
        >>> backend.get("key")
        b'data'
    """

    def __init__(self, backend: Backend, policy: RetryPolicy = DEFAULT_RETRY_POLICY) -> None:
        super().__init__(backend.uri)
        self._backend = backend
        self._policy = policy

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create` and the class docstring."""
        self._retry("create", key, lambda: self._backend.create(key, data))

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._retry("put", key, lambda: self._backend.put(key, data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        return self._retry("get", key, lambda: self._backend.get(key, start, end))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`. The listing is read completely first, so that a retry can start over."""
        # A tuple, because `list` is this method in the class body.
        return iter(self._retry("list", prefix, lambda: tuple(self._backend.list(prefix))))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        names = tuple(keys)
        if len(names) == 1:
            what = names[0]
        else:
            what = f"{names[0]} and {len(names) - 1} more" if names else "nothing"
        self._retry("delete", what, lambda: self._backend.delete(names))

    def remove_leftovers(self, folders: Sequence[str]) -> None:
        """See `Backend.remove_leftovers`. It is not retried: a later call removes what is left."""
        self._backend.remove_leftovers(folders)

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()

    def _retry(self, operation: str, what: str, work: Callable[[], _Result]) -> _Result:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(BackendUnavailableError),
            wait=self._wait,
            stop=tenacity.stop_after_delay(self._policy.timeout),
            before_sleep=lambda state: self._log_retry(operation, what, state),
            retry_error_callback=_raise_last_error,
        )
        try:
            return retrying(work)
        except BackendError as error:
            # A backend of yours may have chained an exception that repeats a request.
            redact_causes(error)
            raise

    def _wait(self, state: tenacity.RetryCallState) -> float:
        # The exponent is capped, because a float would overflow after a thousand attempts.
        bound = self._policy.initial_delay * 2 ** min(state.attempt_number - 1, 64)
        pause = tenacity.wait_random(0, min(bound, self._policy.max_delay))(state)
        # The last attempt starts when the time is up, not a pause later.
        return max(0.0, min(pause, self._policy.timeout - _elapsed(state)))

    def _log_retry(self, operation: str, what: str, state: tenacity.RetryCallState) -> None:
        logger.warning(
            "%s: %s %s failed (attempt %d, %.1f s since the first), trying again in %.1f s: %s",
            self.uri,
            operation,
            what or "everything",
            state.attempt_number,
            _elapsed(state),
            state.next_action.sleep if state.next_action else 0.0,
            _error(state),
        )


def _raise_last_error(state: tenacity.RetryCallState) -> NoReturn:
    error = _error(state)
    assert isinstance(error, BackendUnavailableError)  # no other error is retried
    attempts = "once" if state.attempt_number == 1 else f"{state.attempt_number} times"
    raise BackendUnavailableError(
        f"{error} (tried {attempts} in {_elapsed(state):.1f} s, then gave up)",
        uri=error.uri,
        key=error.key,
        ref=error.ref,
    ) from error


def _error(state: tenacity.RetryCallState) -> Optional[BaseException]:
    return state.outcome.exception() if state.outcome else None


def _elapsed(state: tenacity.RetryCallState) -> float:
    return state.seconds_since_start or 0.0
