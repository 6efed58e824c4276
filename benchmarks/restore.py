"""How long a restore takes and how much it reads, from the local disk and over a slow link.

It restores the last of several incremental saves, whose data is spread over packs of different ages.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import s3fs

from benchmarks import candidates, fresh_process, pipelines, places
from benchmarks.names import OURS, OURS_S3, TF_HOOK
from benchmarks.pipelines import Pipeline
from benchmarks.raw_session import RawSession, raw_session
from benchmarks.report import Figure, Goal
from benchmarks.traffic import TrafficBackend
from input_checkpoint import Backend, CheckpointStore, KeepLast, open_backend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.state import StoredState
from input_checkpoint.store.pack_writer import CONCURRENCY, PACK_BYTES
from integration.servers.server import Place

NAME = "restore"
SECONDS = "restore [s]"
READ = "read [bytes]"
SPEED = "state restored per second [bytes/s]"
TF_GET = "s3fs.get + TensorFlow's hook"
BARE = "bare parallel read"
FROM_MEMORY = "TensorFlow alone, from memory"
STATE = "the state"

GOALS = (
    Goal(NAME, SECONDS, OURS, TF_HOOK, 0.5),
    Goal(NAME, SECONDS, OURS, FROM_MEMORY),
    Goal(NAME, SECONDS, FROM_MEMORY, TF_HOOK),
    Goal(NAME, SPEED, OURS_S3, BARE, 0.8, at_most=False),
    Goal(NAME, SECONDS, OURS_S3, TF_GET),
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
        (folder / "tensorflow").mkdir()
        prefix = opened.save_as_tensorflow_does(folder / "tensorflow")
        readers: list[Any] = [*stores, _TensorFlow(opened, prefix), _InMemory(opened, stores[0].load())]
        if run.remote:
            readers += [_Fetched(opened, prefix, remote, name), _BareRead(there, stores[-1])]
        return _take_turns(pipeline.name, readers, run.rounds)


def _take_turns(case: str, readers: list[Any], rounds: int) -> list[Figure]:
    figures = []
    for number, reader in candidates.turns(readers, rounds + 1):
        if not number and reader.name in (TF_GET, BARE):
            continue  # they prepare nothing that the others do not, and take the longest
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


class _TensorFlow:
    """TensorFlow's saver, as its hook uses it."""

    name = TF_HOOK

    def __init__(self, opened: RawSession, prefix: str) -> None:
        self._opened = opened
        self._prefix = prefix

    def restore(self) -> int:
        """Restore."""
        self._opened.saver.restore(self._opened.session, self._prefix)
        return 0


class _InMemory:
    """A state that is already in memory: the decoding and `DeserializeIterator` that no restore can avoid."""

    name = FROM_MEMORY

    def __init__(self, opened: RawSession, states: Iterator[StoredState]) -> None:
        self._opened = opened
        self._states = [(state.name, state.count, list(state.batches)) for state in states]

    def restore(self) -> int:
        """Restore."""
        states = (StoredState(name, count, iter(batches)) for name, count, batches in self._states)
        self._opened.iterators.restore(self._opened.session, states)
        return 0


class _Fetched:
    """TensorFlow's files, fetched from S3 and then restored."""

    name = TF_GET

    def __init__(self, opened: RawSession, prefix: str, remote: Place, name: str) -> None:
        self._opened = opened
        self._prefix = Path(prefix)
        self._remote = f"{remote.uri}/{name}/tensorflow"
        self._filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **remote.storage_options)
        self._files = [path.name for path in self._prefix.parent.glob(f"{self._prefix.name}.*")]
        for file in self._files:
            self._filesystem.put(str(self._prefix.parent / file), f"{self._remote}/{file}")

    def restore(self) -> int:
        """Fetch and restore."""
        folder = self._prefix.parent / "fetched"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in self._files:
            self._filesystem.get(f"{self._remote}/{file}", str(folder / file))
        self._opened.saver.restore(self._opened.session, str(folder / self._prefix.name))
        return 0


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
