"""A backend that fails, stalls or dies at the calls that a test chooses."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Callable, Optional, TypeVar, Union

from input_checkpoint.backends.base import Backend, Data, ObjectInfo
from input_checkpoint.errors import BackendError, BackendUnavailableError

_Result = TypeVar("_Result")

MOMENTS = ("before", "halfway", "after")
"""Of a call: before it took effect, when half of the keys of a delete are gone, and after it took effect."""


class Killed(BaseException):
    """The process is dead: raised by this and every later call."""


@dataclass(frozen=True)
class Fail:
    """This one call fails. ``after`` it took effect means that its answer is lost."""

    moment: str = "before"
    error: type[BackendError] = BackendUnavailableError


@dataclass(frozen=True)
class Die:
    """The process dies here: no later call does anything but raise `Killed`."""

    moment: str = "before"


@dataclass(frozen=True)
class KillForGood:
    """SIGKILL for this process."""

    moment: str = "before"


@dataclass(frozen=True)
class Delay:
    """This call takes longer."""

    seconds: float
    moment: str = "before"


@dataclass(frozen=True)
class Meanwhile:
    """Somebody else does something at this very moment."""

    what: Callable[[], object]
    moment: str = "before"


Fault = Union[Fail, Die, KillForGood, Delay, Meanwhile]


class FaultyBackend(Backend):
    """Passes calls on, and lets the plan have its way with the n-th one (from 1).

    ``create``, ``put``, ``get``, ``list`` and ``delete`` each count as one call.
    """

    def __init__(self, inner: Backend, plan: Optional[Mapping[int, Fault]] = None) -> None:
        super().__init__(inner.uri)
        self._inner = inner
        self._lock = threading.Lock()
        self.plan: dict[int, Fault] = dict(plan or {})
        self.calls: list[str] = []
        """Operation and key of every call so far."""
        self.dead = False

    def create(self, key: str, data: Data) -> None:
        self._call(f"create {key}", lambda: self._inner.create(key, data))

    def put(self, key: str, data: Data) -> None:
        self._call(f"put {key}", lambda: self._inner.put(key, data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        return self._call(f"get {key}", lambda: self._inner.get(key, start, end))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._call(f"list {prefix}", lambda: tuple(self._inner.list(prefix))))

    def delete(self, keys: Iterable[str]) -> None:
        doomed = tuple(keys)
        self._call(
            f"delete {' '.join(doomed)}",
            lambda: self._inner.delete(doomed),
            lambda: self._inner.delete(doomed[1::2]),
        )

    def _call(
        self, name: str, work: Callable[[], _Result], half: Callable[[], None] = lambda: None
    ) -> _Result:
        with self._lock:
            if self.dead:
                raise Killed(name)
            self.calls.append(name)
            number = len(self.calls)
            fault = self.plan.get(number)
        if fault is None:
            return work()
        if fault.moment == "after":
            try:
                return work()
            finally:
                self._strike(fault, number, name)
        if fault.moment == "halfway":
            half()
        self._strike(fault, number, name)
        return work()

    def _strike(self, fault: Fault, number: int, name: str) -> None:
        if isinstance(fault, Fail):
            raise fault.error(f"{self.uri}: call {number} ({name}) was made to fail")
        if isinstance(fault, Die):
            self.dead = True
            raise Killed(name)
        if isinstance(fault, KillForGood):
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(fault, Delay):
            time.sleep(fault.seconds)
        if isinstance(fault, Meanwhile):
            fault.what()
