"""Backends that wrap another one to record, fail or delay its calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Callable, Optional, TypeVar

from input_checkpoint import Backend, ObjectExistsError
from input_checkpoint.backends.base import Data, ObjectInfo

_Answer = TypeVar("_Answer")


class Wrapped(Backend):
    """Passes all calls to another backend. Subclasses override `before` and `after`."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.uri)
        self.inner = inner

    def before(self, verb: str, key: str) -> None:
        """Called before each operation. If it raises, the operation does not happen."""

    def after(self, verb: str, key: str) -> None:
        """Called after each successful operation. If it raises, the caller does not learn of the success."""

    def create(self, key: str, data: Data) -> None:
        self.before("create", key)
        self.inner.create(key, data)
        self.after("create", key)

    def put(self, key: str, data: Data) -> None:
        self.before("put", key)
        self.inner.put(key, data)
        self.after("put", key)

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        self.before("get", key)
        data = self.inner.get(key, start, end)
        self.after("get", key)
        return data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.before("list", prefix)
        return self.inner.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.before("delete", key)
            self.inner.delete([key])
            self.after("delete", key)


class BeforeWrites(Wrapped):
    """Calls ``action`` with the key before each write."""

    def __init__(self, inner: Backend, action: Callable[[str], object]) -> None:
        super().__init__(inner)
        self._action = action

    def before(self, verb: str, key: str) -> None:
        if verb in ("put", "create"):
            self._action(key)


class PackGate:
    """An action for `BeforeWrites` that holds the packs of one step until it is opened."""

    def __init__(self, step: int) -> None:
        self._step_part = f"/{step:012d}-"
        self._open = threading.Event()
        self.reached = threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self, key: str) -> None:
        if key.startswith("packs/") and self._step_part in key:
            self.reached.set()
            assert self._open.wait(60), "the gate was never opened"


class Recording(Wrapped):
    """Records every call as (verb, key), in order."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.calls: list[tuple[str, str]] = []

    def before(self, verb: str, key: str) -> None:
        self.calls.append((verb, key))

    def keys(self, verb: str) -> list[str]:
        """Return the keys of all calls to one method."""
        return [key for called, key in self.calls if called == verb]


class Rounds(Wrapped):
    """Counts requests in sequence: those that are sent at the same time count once.

    Args:
        inner: the backend that answers.
        seconds: how long each request takes. Must be longer than a thread needs to start.
    """

    def __init__(self, inner: Backend, seconds: float = 0.15) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._answered = 0
        self._rounds: list[list[str]] = []

    def take(self) -> list[list[str]]:
        """Return the requests of each round since the last call, as sorted ``"verb folder"``."""
        with self._lock:
            rounds, self._rounds, self._answered = self._rounds, [], 0
        return [sorted(requests) for requests in rounds]

    def create(self, key: str, data: Data) -> None:
        self._send("create", key, lambda: self.inner.create(key, data))

    def put(self, key: str, data: Data) -> None:
        self._send("put", key, lambda: self.inner.put(key, data))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        return self._send("get", key, lambda: self.inner.get(key, start, end))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self._send("list", prefix, lambda: [*self.inner.list(prefix)]))

    def delete(self, keys: Iterable[str]) -> None:
        found = [*keys]
        if found:
            self._send("delete", found[0], lambda: self.inner.delete(found))

    def _send(self, verb: str, key: str, request: Callable[[], _Answer]) -> _Answer:
        with self._lock:
            number = self._answered
            while len(self._rounds) <= number:
                self._rounds.append([])
            self._rounds[number].append(f"{verb} {key.split('/')[0]}")
        time.sleep(self._seconds)
        try:
            return request()
        finally:
            with self._lock:
                self._answered = max(self._answered, number + 1)


class Failing(Wrapped):
    """Raises ``error`` instead of doing ``verb`` on keys that start with ``prefix``."""

    def __init__(self, inner: Backend, verb: str, prefix: str, error: Exception) -> None:
        super().__init__(inner)
        self._verb = verb
        self._prefix = prefix
        self._error = error

    def before(self, verb: str, key: str) -> None:
        if verb == self._verb and key.startswith(self._prefix):
            raise self._error


class LosingResponses(Wrapped):
    """Loses the response to each create, retries and finds its own object. See `Backend.create`."""

    def after(self, verb: str, key: str) -> None:
        if verb == "create":
            raise ObjectExistsError(f"{self.uri}/{key} already exists", uri=self.uri, key=key)


class Overtaken(Wrapped):
    """Runs ``action`` once, just before the first ``verb`` on a key that starts with ``prefix``."""

    def __init__(self, inner: Backend, verb: str, prefix: str, action: Callable[[], object]) -> None:
        super().__init__(inner)
        self._verb = verb
        self._prefix = prefix
        self._action: Optional[Callable[[], object]] = action

    def before(self, verb: str, key: str) -> None:
        if verb == self._verb and key.startswith(self._prefix) and self._action:
            action, self._action = self._action, None
            action()


class Gated(Wrapped):
    """Holds every put until `gate` is set, and counts concurrent puts."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.gate = threading.Event()
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def before(self, verb: str, key: str) -> None:
        if verb != "put":
            return
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self.gate.wait()

    def after(self, verb: str, key: str) -> None:
        if verb == "put":
            with self._lock:
                self.running -= 1


def contents(backend: Backend) -> dict[str, bytes]:
    """Return all objects of a backend."""
    return {info.key: backend.get(info.key) for info in backend.list()}
