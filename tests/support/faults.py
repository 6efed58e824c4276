"""A backend that injects faults at the calls that a test chooses."""

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
"""Of a call: before it takes effect, when half of the keys of a delete are gone, after it took effect."""


class Killed(BaseException):
    """The simulated process is dead. This call and every later one raise it."""


@dataclass(frozen=True)
class Fail:
    """One call fails. At the moment ``after``, it took effect and only its response is lost."""

    moment: str = "before"
    error: type[BackendError] = BackendUnavailableError


@dataclass(frozen=True)
class Die:
    """The simulated process dies: this call and all later ones raise `Killed`."""

    moment: str = "before"


@dataclass(frozen=True)
class KillProcess:
    """The real process gets SIGKILL."""

    moment: str = "before"


@dataclass(frozen=True)
class Delay:
    """One call takes longer."""

    seconds: float
    moment: str = "before"


@dataclass(frozen=True)
class Meanwhile:
    """Another process acts during the call."""

    action: Callable[[], object]
    moment: str = "before"


Fault = Union[Fail, Die, KillProcess, Delay, Meanwhile]


class FaultyBackend(Backend):
    """Passes calls to another backend and injects a fault at each call whose number is in the plan.

    Calls are counted from 1. Each ``create``, ``put``, ``get``, ``list`` and ``delete`` is one call.
    """

    def __init__(self, inner: Backend, plan: Optional[Mapping[int, Fault]] = None) -> None:
        super().__init__(inner.uri)
        self._inner = inner
        self._lock = threading.Lock()
        self.plan: dict[int, Fault] = dict(plan or {})
        self.calls: list[str] = []
        """Operation and key of every call, in order."""
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
        names = tuple(keys)
        self._call(
            f"delete {' '.join(names)}",
            lambda: self._inner.delete(names),
            lambda: self._inner.delete(names[1::2]),
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
                self._inject(fault, number, name)
        if fault.moment == "halfway":
            half()
        self._inject(fault, number, name)
        return work()

    def _inject(self, fault: Fault, number: int, name: str) -> None:
        if isinstance(fault, Fail):
            raise fault.error(f"{self.uri}: call {number} ({name}) was made to fail", uri=self.uri)
        if isinstance(fault, Die):
            self.dead = True
            raise Killed(name)
        if isinstance(fault, KillProcess):
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(fault, Delay):
            time.sleep(fault.seconds)
        if isinstance(fault, Meanwhile):
            fault.action()
