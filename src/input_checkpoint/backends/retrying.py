"""Patience with a storage that is away for a moment: a decorator round any backend."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable, NoReturn, Optional, TypeVar

import tenacity

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.errors import BackendUnavailableError

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on trying while a storage is unavailable.

    The n-th pause is drawn at random between 0 and ``initial_delay * 2 ** (n - 1)``, at most ``max_delay``
    ("full jitter"), so that many workers do not come back at the same moment.

    Example:
        >>> RetryPolicy(timeout=600)
        RetryPolicy(timeout=600, initial_delay=0.2, max_delay=15.0)
    """

    timeout: float = 120.0
    """Seconds from the first attempt of an operation to its last one. 0 means one attempt."""
    initial_delay: float = 0.2
    """Upper bound of the first pause, in seconds."""
    max_delay: float = 15.0
    """Upper bound of every pause, in seconds."""

    def __post_init__(self) -> None:
        if not self.timeout >= 0:
            raise ValueError(f"timeout must not be negative, got {self.timeout}")
        if not 0 < self.initial_delay <= self.max_delay:
            raise ValueError(
                "initial_delay must be positive and at most max_delay, "
                f"got {self.initial_delay} and {self.max_delay}"
            )


DEFAULT_POLICY = RetryPolicy()


class RetryingBackend(Backend):
    """Tries again what another backend could not do because its storage was unavailable.

    Only `BackendUnavailableError` is retried; every other error is raised at once. When the time is up, the
    last error is raised, as `BackendUnavailableError`, with how long and how often it was tried.

    A retried `create` whose first response was lost finds the object that it created itself and raises
    `ObjectExistsError`. The contract allows that: the caller finds out by reading what is stored. The store
    compares the write id in a manifest or lineage record.

    Example:
        >>> from input_checkpoint.backends.opening import open_backend
        >>> backend = RetryingBackend(open_backend("memory://patient"), RetryPolicy(timeout=60))
        >>> backend.put("key", b"data")
        >>> backend.get("key")
        b'data'
    """

    def __init__(self, backend: Backend, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        super().__init__(backend.uri)
        self._backend = backend
        self._policy = policy

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`, and the docstring of this class."""
        self._retry("create", key, lambda: self._backend.create(key, data))

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._retry("put", key, lambda: self._backend.put(key, data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        return self._retry("get", key, lambda: self._backend.get(key, start, end))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`. One that breaks off is begun again, so it is read to its end first."""
        # A tuple, since `list` is this method's own name in the class body.
        return iter(self._retry("list", prefix, lambda: tuple(self._backend.list(prefix))))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        doomed = tuple(keys)
        if len(doomed) == 1:
            what = doomed[0]
        else:
            what = f"{doomed[0]} and {len(doomed) - 1} more" if doomed else "nothing"
        self._retry("delete", what, lambda: self._backend.delete(doomed))

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()

    def _retry(self, operation: str, key: str, work: Callable[[], _Result]) -> _Result:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(BackendUnavailableError),
            wait=self._wait,
            stop=tenacity.stop_after_delay(self._policy.timeout),
            before_sleep=lambda state: self._log(operation, key, state),
            retry_error_callback=_give_up,
        )
        return retrying(work)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        # Bounded, since the power would not fit into a float after a thousand attempts.
        bound = self._policy.initial_delay * 2 ** min(state.attempt_number - 1, 64)
        pause = tenacity.wait_random(0, min(bound, self._policy.max_delay))(state)
        # The last attempt is made when the time is up, not a pause later.
        return max(0.0, min(pause, self._policy.timeout - _elapsed(state)))

    def _log(self, operation: str, key: str, state: tenacity.RetryCallState) -> None:
        logger.warning(
            "%s: %s %s failed (attempt %d, %.1f s since the first), trying again in %.1f s: %s",
            self.uri,
            operation,
            key or "everything",
            state.attempt_number,
            _elapsed(state),
            state.next_action.sleep if state.next_action else 0.0,
            _error(state),
        )


def _give_up(state: tenacity.RetryCallState) -> NoReturn:
    error = _error(state)
    attempts = "once" if state.attempt_number == 1 else f"{state.attempt_number} times"
    raise BackendUnavailableError(
        f"{error} (tried {attempts} in {_elapsed(state):.1f} s, then gave up)"
    ) from error


def _error(state: tenacity.RetryCallState) -> Optional[BaseException]:
    return state.outcome.exception() if state.outcome else None


def _elapsed(state: tenacity.RetryCallState) -> float:
    return state.seconds_since_start or 0.0
