"""How long it takes until a save is durable, relative to the larger of two parts that no save can avoid.

One is TensorFlow's encoding, which starts with the operation that takes the state into memory. The other is
the wire: the bare upload of the new bytes, in objects of the same size and with the same concurrency. A save
overlaps the two.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable

from benchmarks import candidates, fresh_process, pipelines, places
from benchmarks.names import OURS, OURS_S3
from benchmarks.pipelines import Pipeline
from benchmarks.raw_session import RawSession, raw_session
from benchmarks.report import Figure, Goal
from benchmarks.traffic import TrafficBackend
from input_checkpoint import Backend, CheckpointStore, KeepLast, open_backend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.store.pack_writer import CONCURRENCY, PACK_BYTES
from input_checkpoint.tensorflow.iterators import SessionSnapshot
from integration.servers.server import Place

NAME = "durable"
SECONDS = "until durable [s]"
LIMIT = "larger of encoding and wire"
ENCODE = "encoding"
WIRE = "bare put of the new bytes"

GOALS = (
    Goal(NAME, SECONDS, OURS, LIMIT, 1.2),
    Goal(NAME, SECONDS, OURS_S3, LIMIT, 1.2),
    Goal(NAME, SECONDS, OURS, ENCODE),
    Goal(NAME, SECONDS, OURS, WIRE),
    Goal(NAME, SECONDS, OURS_S3, WIRE),
)


@dataclass(frozen=True)
class Run:
    """A training run that saves at a fixed interval."""

    make: Callable[[int], Pipeline]
    elements: int
    steps: int
    """Between two saves."""
    rounds: int


FULL = (
    Run(pipelines.pictures, 1_000, 10, 3),
    Run(pipelines.pictures, 500, 75, 3),
    Run(pipelines.tokens, 10_000, 50, 3),
    Run(pipelines.vectors, 20_000, 20, 3),
)
QUICK = (Run(pipelines.pictures, 200, 5, 2),)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, run by run."""
    with places.slow_s3() as remote:
        for number, run in enumerate(QUICK if quick else FULL):
            yield from fresh_process.run(train, run, remote, f"durable-{number}")


def train(run: Run, remote: Place, name: str) -> list[Figure]:
    """Train and save to both backends in turn."""
    pipeline = run.make(run.elements)
    with places.folder() as folder, raw_session(pipeline) as opened:
        runners = [
            _Runner(OURS, LocalBackend(str(folder))),
            _Runner(OURS_S3, open_backend(f"{remote.uri}/{name}", remote.storage_options)),
        ]
        figures = []
        for number, runner in candidates.turns(runners, run.rounds + 1):
            opened.draw(run.steps)
            found = runner.save(number, opened)
            case = f"{pipeline.name}, {run.steps} steps of {pipeline.batch}"
            case += ", slow S3" if runner.name == OURS_S3 else ", disk"
            if number:  # the first save is always a full one
                figures += [Figure(NAME, case, who, SECONDS, number, value) for who, value in found.items()]
        return figures


class _Runner:
    """Saves to one backend, and measures the two parts that a save to it cannot avoid."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name = name
        self._backend = TrafficBackend(backend)
        self._store = CheckpointStore.open(self._backend, create=True)
        self._run = self._store.begin_run("main")

    def save(self, number: int, opened: RawSession) -> dict[str, float]:
        """Save, then encode and upload separately. Return the seconds."""
        self._backend.take_traffic()
        started = time.perf_counter()
        snapshot = opened.iterators.snapshot(opened.session)
        serialized = time.perf_counter() - started
        self._run.save(number, snapshot.states())
        durable = self._backend.committed_at - started
        new_bytes = self._backend.take_traffic().uploaded
        encode = serialized + _seconds(lambda: _encode(snapshot))
        snapshot.release()
        wire = _seconds(lambda: self._put(number, new_bytes))
        self._run.prune(KeepLast(2))
        return {self.name: durable, ENCODE: encode, WIRE: wire, LIMIT: max(encode, wire)}

    def _put(self, number: int, size: int) -> None:
        data = os.urandom(min(size, PACK_BYTES))
        sizes = [min(PACK_BYTES, size - start) for start in range(0, size, PACK_BYTES)]
        with ThreadPoolExecutor(CONCURRENCY) as executor:
            futures = [
                executor.submit(self._backend.put, f"bare/{number}-{part}", memoryview(data)[:length])
                for part, length in enumerate(sizes)
            ]
            for future in futures:
                future.result()


def _encode(snapshot: SessionSnapshot) -> None:
    for state in snapshot.states():
        for _ in state.elements:
            pass


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
