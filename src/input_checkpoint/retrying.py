"""Patience with a storage that is away for a moment: a decorator round any backend."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable, NoReturn, Optional, TypeVar

import tenacity

from input_checkpoint.backend import Backend, Data, ObjectInfo
from input_checkpoint.errors import BackendUnavailable

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on trying while a storage is unavailable.

    The n-th pause is drawn at random between 0 and ``first_delay * 2 ** (n - 1)``, at most ``longest_delay``
    ("full jitter"), so that many workers do not come back at the same moment.

    Example:
        >>> RetryPolicy(give_up_after=600)
        RetryPolicy(give_up_after=600, first_delay=0.2, longest_delay=15.0)
    """

    give_up_after: float = 120.0
    """Seconds from the first attempt of an operation to its last one. 0 means one attempt."""
    first_delay: float = 0.2
    """Upper bound of the first pause, in seconds."""
    longest_delay: float = 15.0
    """Upper bound of every pause, in seconds."""

    def __post_init__(self) -> None:
        if not self.give_up_after >= 0:
            raise ValueError(f"give_up_after must not be negative, got {self.give_up_after}")
        if not 0 < self.first_delay <= self.longest_delay:
            raise ValueError(
                "first_delay must be positive and at most longest_delay, "
                f"got {self.first_delay} and {self.longest_delay}"
            )


DEFAULT_POLICY = RetryPolicy()


class RetryingBackend(Backend):
    """Tries again what another backend could not do because its storage was unavailable.

    Only `BackendUnavailable` is met with patience; every other error passes at once. When the time is up the
    last error is raised, as `BackendUnavailable`, with how long and how often it was tried.

    A `create` whose answer was lost finds its own first attempt when it is tried again, and then raises
    `ObjectExists` although it was this caller that has stored the object. The contract allows that, and the
    caller must tell by what is stored: the store does so by the write id in a manifest or lineage record.

    Example:
        >>> from input_checkpoint.backend import open_backend
        >>> backend = RetryingBackend(open_backend("memory://patient"), RetryPolicy(give_up_after=60))
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
        self._patiently("create", key, lambda: self._backend.create(key, data))

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        self._patiently("put", key, lambda: self._backend.put(key, data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        return self._patiently("get", key, lambda: self._backend.get(key, start, end))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`. One that breaks off is begun again, so it is read to its end first."""
        # A tuple, since `list` is this method's own name in the class body.
        return iter(self._patiently("list", prefix, lambda: tuple(self._backend.list(prefix))))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        doomed = tuple(keys)
        if len(doomed) == 1:
            what = doomed[0]
        else:
            what = f"{doomed[0]} and {len(doomed) - 1} more" if doomed else "nothing"
        self._patiently("delete", what, lambda: self._backend.delete(doomed))

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()

    def _patiently(self, operation: str, key: str, work: Callable[[], _Result]) -> _Result:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(BackendUnavailable),
            wait=self._wait,
            stop=tenacity.stop_after_delay(self._policy.give_up_after),
            before_sleep=lambda state: self._log(operation, key, state),
            retry_error_callback=_give_up,
        )
        return retrying(work)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        # Bounded, since the power would not fit into a float after a thousand attempts.
        bound = self._policy.first_delay * 2 ** min(state.attempt_number - 1, 64)
        pause = tenacity.wait_random(0, min(bound, self._policy.longest_delay))(state)
        # The last attempt is made when the time is up, not a pause later.
        return max(0.0, min(pause, self._policy.give_up_after - _elapsed(state)))

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
    raise BackendUnavailable(
        f"{error} (tried {attempts} in {_elapsed(state):.1f} s, then gave up)"
    ) from error


def _error(state: tenacity.RetryCallState) -> Optional[BaseException]:
    return state.outcome.exception() if state.outcome else None


def _elapsed(state: tenacity.RetryCallState) -> float:
    return state.seconds_since_start or 0.0
