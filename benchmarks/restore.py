"""What a restore reads, and how its time is spent, from the local disk and over a slow link.

It restores the last of several incremental saves, whose data is spread over packs of different ages. It does
so in a session that has restored before, which no user has. See `benchmarks.restart` for what users wait for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

import tensorflow as tf

from benchmarks import candidates, fresh_process, pipelines, places
from benchmarks.names import OURS, OURS_S3
from benchmarks.pipelines import Pipeline
from benchmarks.raw_session import RawSession, raw_session
from benchmarks.report import Figure, Goal
from benchmarks.traffic import TrafficBackend
from input_checkpoint import Backend, CheckpointStore, KeepLast, open_backend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.state import StoredState
from input_checkpoint.store.pack_writer import CONCURRENCY, PACK_BYTES
from input_checkpoint.tensorflow.checked_batches import CheckedBatch, check_batches
from integration.servers.server import Place

NAME = "restore"
SECONDS = "restore [s]"
READ = "read [bytes]"
SPEED = "state restored per second [bytes/s]"
PART = "part of the restore [s]"
BARE = "bare parallel read"
STATE = "the state"
READING = "reading and verifying"
CHECKING = "checking elements"
FEEDING = "encoding and feeding"
PARSING = "parsing"
FINISHING = "stitching and DeserializeIterator"

_Result = TypeVar("_Result")

GOALS = (
    Goal(NAME, SPEED, OURS_S3, BARE, 0.8, at_most=False),
    Goal(NAME, READ, OURS, STATE, 1.5),
    Goal(NAME, READ, OURS_S3, STATE, 1.5),
)


@dataclass(frozen=True)
class Run:
    """What to save and restore."""

    make: Callable[[int], Pipeline]
    elements: int
    rounds: int
    remote: bool
    saves: int = 5
    steps: int = 3
    """Between two saves."""


FULL = (
    Run(pipelines.pictures, 1_000, 3, remote=True),
    Run(pipelines.pictures, 4_000, 3, remote=False, saves=3),
    Run(pipelines.tokens, 10_000, 3, remote=True),
    Run(pipelines.vectors, 20_000, 3, remote=False, saves=2),
    Run(pipelines.cached_pictures, 1_000, 3, remote=False, saves=2),
)
QUICK = (Run(pipelines.pictures, 200, 2, remote=True),)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, pipeline by pipeline."""
    with places.slow_s3() as remote:
        for number, run in enumerate(QUICK if quick else FULL):
            yield from fresh_process.run(train_and_restore, run, remote, f"restore-{number}")


def train_and_restore(run: Run, remote: Place, name: str) -> list[Figure]:
    """Save, then let all readers restore in turn."""
    pipeline = run.make(run.elements)
    with places.folder() as folder, raw_session(pipeline) as opened:
        there = open_backend(f"{remote.uri}/{name}", remote.storage_options)
        stores = [_Restorer(OURS, opened, LocalBackend(str(folder / "ours")))]
        if run.remote:
            stores.append(_Restorer(OURS_S3, opened, there))
        for number in range(run.saves):
            opened.draw(run.steps)
            for store in stores:
                store.save(number)
        readers: list[Any] = [*stores]
        if run.remote:
            readers.append(_BareRead(there, stores[-1]))
        figures = _take_turns(pipeline.name, readers, run.rounds)
        parts = _Parts(stores[0], opened)
        for number in range(run.rounds + 1):
            found = parts.measure()
            if number:
                figures += [Figure(NAME, pipeline.name, who, PART, number, value) for who, value in found]
        return figures


def _take_turns(case: str, readers: list[Any], rounds: int) -> list[Figure]:
    figures = []
    for number, reader in candidates.turns(readers, rounds + 1):
        if not number and reader.name == BARE:
            continue  # it prepares nothing
        started = time.perf_counter()
        read = reader.restore()
        seconds = time.perf_counter() - started
        if not number:  # TensorFlow prepares an operation on its first run
            continue
        found = {(reader.name, SECONDS): seconds}
        if reader.name in (OURS, OURS_S3, BARE):
            found[reader.name, SPEED] = reader.state_bytes / seconds
            found[reader.name, READ] = read
            found[STATE, READ] = reader.state_bytes
        figures += [Figure(NAME, case, who, what, number, value) for (who, what), value in found.items()]
    return figures


class _Restorer:
    """This library, with one backend."""

    def __init__(self, name: str, opened: RawSession, backend: Backend) -> None:
        self.name = name
        self.state_bytes = 0
        self._opened = opened
        self._backend = TrafficBackend(backend)
        self._store = CheckpointStore.open(self._backend, create=True)
        self._run = self._store.begin_run("main")

    def save(self, number: int) -> None:
        """Save and prune."""
        snapshot = self._opened.iterators.snapshot(self._opened.session)
        info = self._run.save(number, snapshot.states())
        snapshot.release()
        self._run.prune(KeepLast(2))
        self.state_bytes = info.logical_bytes

    def restore(self) -> int:
        """Restore as a new process would. Return how many bytes that read."""
        self._backend.take_traffic()
        self._opened.iterators.restore(self._opened.session, self.load())
        return self._backend.take_traffic().downloaded

    def load(self) -> Iterator[StoredState]:
        """Load the newest checkpoint, as the hook does."""
        store = CheckpointStore.open(self._backend)
        return store.load(store.history("main")[-1])


class _Parts:
    """The parts of a restore, one after another. In a restore, they overlap.

    Args:
        restorer: what is restored.
        opened: the session.
    """

    def __init__(self, restorer: _Restorer, opened: RawSession) -> None:
        self._restorer = restorer
        self._opened = opened
        with opened.session.graph.as_default():
            self._string = tf.compat.v1.placeholder(tf.string, [])
            self._length = tf.strings.length(self._string)

    def measure(self) -> list[tuple[str, float]]:
        """Restore, and return the seconds that each part takes."""
        session, (ops,) = self._opened.session, self._opened.iterators._ops
        (state,) = self._restorer.load()
        batches, reading = _timed(lambda: list(state.batches))
        checked, checking = _timed(lambda: list(check_batches(batches)))
        _, feeding = _timed(lambda: self._feed(checked))
        (restore, feeds), prepared = _timed(lambda: ops.restoring.prepare(session, checked, state.count))
        _, finishing = _timed(lambda: session.run(restore, feeds))
        return [
            (READING, reading),
            (CHECKING, checking),
            (FEEDING, feeding),
            (PARSING, max(0.0, prepared - feeding)),
            (FINISHING, finishing),
        ]

    def _feed(self, batches: Sequence[CheckedBatch]) -> None:
        for batch in batches:
            self._opened.session.run(self._length, {self._string: batch.encode()})


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


class _BareRead:
    """The wire: as many bytes as the state has, in ranges of the same size and with the same concurrency."""

    name = BARE

    def __init__(self, backend: Backend, ours: _Restorer) -> None:
        self._backend = backend
        self.state_bytes = size = ours.state_bytes
        sizes = [min(PACK_BYTES, size - start) for start in range(0, size, PACK_BYTES)]
        self._keys = {f"bare/{number:05d}": size for number, size in enumerate(sizes)}
        for key, size in self._keys.items():
            backend.put(key, bytes(size))

    def restore(self) -> int:
        """Read all objects."""
        with ThreadPoolExecutor(CONCURRENCY) as executor:
            return sum(executor.map(self._read, self._keys))

    def _read(self, key: str) -> int:
        return len(self._backend.get(key, 0, self._keys[key]))
