"""How many bytes a save uploads, at several intervals between saves. The same on every machine.

All data that shrinks is compressed, as on a slow storage.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable

from benchmarks import fresh_process, pipelines
from benchmarks.names import OURS, TF_HOOK
from benchmarks.pipelines import Pipeline
from benchmarks.raw_session import RawSession, raw_session
from benchmarks.report import Figure, Goal
from benchmarks.traffic import TrafficBackend
from input_checkpoint import CheckpointStore, IteratorState, KeepLast, SaveOptions
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.chunking import digest
from input_checkpoint.state import Element

NAME = "upload"
UPLOADED = "uploaded per save [bytes]"
PAYLOAD = "new payload"
ALLOWED = "new payload + 3 % of the state"
STATE = "the state"

GOALS = (
    Goal(NAME, UPLOADED, OURS, ALLOWED, 1.0),
    Goal(NAME, UPLOADED, OURS, PAYLOAD, 1.03),
    Goal(NAME, UPLOADED, PAYLOAD, STATE),
    Goal(NAME, UPLOADED, OURS, TF_HOOK),
)


@dataclass(frozen=True)
class Run:
    """A training run that saves at a fixed interval."""

    make: Callable[[int], Pipeline]
    elements: int
    steps: int
    """Between two saves."""
    saves: int


FULL = (
    *(Run(pipelines.pictures, 1_000, steps, 5) for steps in (1, 10, 31)),
    *(Run(pipelines.tokens, 5_000, steps, 5) for steps in (2, 8, 31)),
    *(Run(pipelines.vectors, 20_000, steps, 5) for steps in (1, 4, 16)),
    Run(pipelines.cached_pictures, 1_000, 10, 5),
)
QUICK = (Run(pipelines.pictures, 200, 1, 6), Run(pipelines.vectors, 4_000, 1, 4))


class PayloadCounter:
    """Counts the payload bytes that go into a save, and how many of them are new."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._seen: set[bytes] = set()
        self.new_bytes = self.bytes = 0

    def begin(self) -> None:
        """Start a save. Payloads of the previous save count as known from here on."""
        self._known, self._seen = self._seen, set()
        self.new_bytes = self.bytes = 0

    def states(self, states: Iterable[IteratorState]) -> Iterator[IteratorState]:
        """Pass the states on and count their payloads."""
        for state in states:
            yield IteratorState(state.name, self._elements(state.elements))

    def _elements(self, elements: Iterable[Element]) -> Iterator[Element]:
        for key, payload in elements:
            name = digest(payload)
            self.bytes += len(payload)
            if name not in self._known and name not in self._seen:
                self.new_bytes += len(payload)
            self._seen.add(name)
            yield key, payload


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, run by run."""
    runs = QUICK if quick else FULL
    for figures in fresh_process.run_each(train, [(run,) for run in runs]):
        yield from figures


def train(run: Run) -> list[Figure]:
    """Train, save at every interval, and return the figures."""
    pipeline = run.make(run.elements)
    with raw_session(pipeline) as opened:
        return _save_often(run, pipeline, opened)


def _save_often(run: Run, pipeline: Pipeline, opened: RawSession) -> list[Figure]:
    backend = TrafficBackend(MemoryBackend(f"memory://{uuid.uuid4().hex}"))
    store = CheckpointStore.open(backend, create=True, options=SaveOptions(compress=True))
    saving = store.begin_run("main")
    counter = PayloadCounter()
    case = f"{pipeline.name}, {run.steps} steps of {pipeline.batch}"
    figures: list[Figure] = []
    for number in range(run.saves + 1):
        counter.begin()
        backend.take_traffic()
        snapshot = opened.iterators.snapshot(opened.session)
        saving.save(number, counter.states(snapshot.states()))
        snapshot.release()
        uploaded = backend.take_traffic().uploaded
        saving.prune(KeepLast(5))
        if number:  # the first save is always a full one
            figures += _figures(case, number, uploaded, counter)
        opened.draw(run.steps)
    return figures


def _figures(case: str, number: int, uploaded: int, counter: PayloadCounter) -> list[Figure]:
    found = {
        OURS: uploaded,
        PAYLOAD: counter.new_bytes,
        ALLOWED: counter.new_bytes + 0.03 * counter.bytes,
        STATE: counter.bytes,
        # It writes the whole state every time, and nothing else.
        TF_HOOK: counter.bytes,
    }
    return [Figure(NAME, case, who, UPLOADED, number, value) for who, value in found.items()]
