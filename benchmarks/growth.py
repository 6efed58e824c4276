"""How costs grow with the size of the state and the number of elements, kept checkpoints and workers.

The goals are about the exponent: 0 means that a cost stays flat, 1 that it is proportional.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

from benchmarks import fresh_process, pipelines, places
from benchmarks.names import FLOOR
from benchmarks.pipelines import Pipeline
from benchmarks.raw_session import RawSession, raw_session
from benchmarks.report import Figure, Goal, aligned, exponent, number
from benchmarks.traffic import TrafficBackend
from input_checkpoint import CheckpointRef, CheckpointStore, IteratorState, KeepAll, KeepLast
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.state import Element
from input_checkpoint.store.run import Run

NAME = "growth"
EXPONENT = "exponent"
LINEAR = "proportional"
REQUESTS = "requests"
KEYS = "keys listed"
BYTES = "bytes"
SECONDS = "seconds"

GROWS = "grows"
FLAT = "should stay flat"
TENSORFLOW = "TensorFlow's own growth"

EXPONENTS = (GROWS, FLAT, TENSORFLOW)

GOALS = (
    Goal(NAME, GROWS, EXPONENT, LINEAR, 1.1),
    Goal(NAME, FLAT, EXPONENT, LINEAR, 0.1),
    Goal(NAME, TENSORFLOW, EXPONENT, LINEAR),
)

_PAYLOAD_BYTES = 4_000
_ELEMENTS = 50
_MIN_SAVES = 100


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure, from small to large."""

    pictures: tuple[int, ...]
    numbers: tuple[int, ...]
    checkpoints: tuple[int, ...]
    workers: tuple[int, ...]
    rounds: int


FULL = Sizes((500, 2_000, 8_000), (4_000, 20_000, 100_000), (1, 10, 100, 1_000), (1, 10, 100, 1_000), 3)
QUICK = Sizes((100, 300), (1_000, 4_000), (1, 10, 50), (1, 10, 50), 1)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, and the exponents computed from them."""
    sizes = QUICK if quick else FULL
    rounds = sizes.rounds
    for what, counts, make in (
        ("state size", sizes.pictures, pipelines.pictures),
        ("element count", sizes.numbers, pipelines.numbers),
    ):
        found = fresh_process.run(save_each, [make(count) for count in counts], rounds)
        yield from _all_series(what, counts, found, _always_grows)
    found = [costs_with_history(count, rounds) for count in sizes.checkpoints]
    yield from _all_series("retained checkpoints", sizes.checkpoints, found, _grows_with_history)
    found = [costs_with_workers(count, rounds) for count in sizes.workers]
    yield from _all_series("workers", sizes.workers, found, _grows_with_workers)


Costs = dict[str, float]


def _all_series(
    what: str,
    sizes: tuple[int, ...],
    found: Sequence[Sequence[Costs]],
    may_grow: Callable[[str], bool],
) -> Iterator[Figure]:
    """Yield the figures, given the costs of every round for each size."""
    for turn, of_round in enumerate(zip(*found)):
        yield from _series(what, sizes, turn, of_round, may_grow)


def _series(
    what: str,
    sizes: tuple[int, ...],
    turn: int,
    found: Sequence[Costs],
    may_grow: Callable[[str], bool],
) -> Iterator[Figure]:
    for cost in found[0]:
        values = [costs[cost] for costs in found]
        for size, value in zip(sizes, values):
            yield Figure(NAME, what, f"{size:,}".replace(",", " "), cost, turn, value)
        quantity = TENSORFLOW if cost == FLOOR else GROWS if may_grow(cost) else FLAT
        case = f"{what}: {cost}"
        yield Figure(NAME, case, EXPONENT, quantity, turn, exponent(sizes, values))
        yield Figure(NAME, case, LINEAR, quantity, turn, 1.0)


def table(figures: Sequence[Figure]) -> str:
    """Return the costs as a table, with one row per cost and one column per size."""
    costs = [figure for figure in figures if figure.quantity not in EXPONENTS]
    rows: list[tuple[str, ...]] = []
    for what in dict.fromkeys(figure.case for figure in costs):
        sizes = list(dict.fromkeys(figure.who for figure in costs if figure.case == what))
        rows.append((what, "", *sizes))
        for cost in dict.fromkeys(figure.quantity for figure in costs if figure.case == what):
            rows.append(("", cost, *(number(_median(costs, what, cost, size)) for size in sizes)))
    return aligned(rows)


def _median(figures: Sequence[Figure], what: str, cost: str, size: str) -> float:
    wanted = (what, cost, size)
    return statistics.median(
        figure.value for figure in figures if (figure.case, figure.quantity, figure.who) == wanted
    )


def _always_grows(cost: str) -> bool:
    return True


def _grows_with_history(cost: str) -> bool:
    # A listing takes one request per 1,000 keys. Seconds say little about storage in memory.
    return cost.startswith(("list all", "prune")) or cost.endswith((KEYS, SECONDS))


def _grows_with_workers(cost: str) -> bool:
    return cost.startswith("list all") or cost.endswith(SECONDS)


def save_each(pipelines_: Sequence[Pipeline], rounds: int) -> list[list[Costs]]:
    """Return the costs of a full save and its restore, in every round, for each pipeline."""
    return [_save_all(pipeline, rounds) for pipeline in pipelines_]


def _save_all(pipeline: Pipeline, rounds: int) -> list[Costs]:
    with raw_session(pipeline) as opened:
        # TensorFlow prepares an operation on its first run.
        opened.iterators.snapshot(opened.session).release()
        opened.session.run(opened.serialize)
        return [_save_to_new_store(opened) for _ in range(rounds)]


def _save_to_new_store(opened: RawSession) -> Costs:
    session, iterators = opened.session, opened.iterators
    with places.folder() as folder:
        store = CheckpointStore.open(LocalBackend(str(folder)), create=True)
        run = store.begin_run("main")
        before = time.perf_counter()
        session.run(opened.serialize)
        started = time.perf_counter()
        snapshot = iterators.snapshot(session)
        stalled = time.perf_counter()
        run.save(1, snapshot.states())
        saved = time.perf_counter()
        snapshot.release()
        iterators.restore(session, store.load(store.newest("main")))
        restored = time.perf_counter()
    return {
        FLOOR: started - before,
        "stall": stalled - started,
        "save": saved - started,
        "restore": restored - saved,
    }


def costs_with_history(retained: int, rounds: int) -> list[Costs]:
    """Return the cost of every operation on a store with that many checkpoints, in every round."""
    backend = TrafficBackend(MemoryBackend(f"memory://{uuid.uuid4().hex}"))
    store = CheckpointStore.open(backend, create=True)
    run = store.begin_run("main")
    # Enough saves for the ages of the packs to reach their steady state.
    last = max(retained, _MIN_SAVES)
    for step in range(1, last + 1):
        run.save(step, [_state(step)])
    found = []
    for _ in range(rounds):
        run.prune(KeepLast(retained))
        step = _next_step(backend, "main")
        costs = _costs_of(backend, "save", lambda: run.save(step, [_state(step)]))  # noqa: B023 - called now
        costs |= _costs_of(backend, "prune", lambda: run.prune(KeepAll()))  # noqa: B023 - called now
        costs |= _costs_of(backend, "list all", lambda: _open(backend).checkpoints())
        run = _costs_of_resume(backend, "main", costs)
        found.append(costs)
    return found


def costs_with_workers(workers: int, rounds: int) -> list[Costs]:
    """Return the cost of every operation for one of that many workers, in every round."""
    backend = TrafficBackend(MemoryBackend(f"memory://{uuid.uuid4().hex}"))
    names = [f"worker-{index}" for index in range(workers)]
    runs: dict[str, Run] = {}
    for name in names:
        runs[name] = CheckpointStore.open(backend, create=True).begin_run(name)
        runs[name].save(1, [_state(1)])
    one = names[-1]
    run = runs[one]
    found = []
    for _ in range(rounds):
        run.prune(KeepLast(1))
        step = _next_step(backend, one)
        costs = _costs_of(backend, "save", lambda: run.save(step, [_state(step)]))  # noqa: B023 - called now
        costs |= _costs_of(backend, "prune", lambda: run.prune(KeepAll()))  # noqa: B023 - called now
        costs |= _costs_of(backend, "list own", lambda: _open(backend).checkpoints(one))
        costs |= _costs_of(backend, "list all", lambda: _open(backend).checkpoints())
        run = _costs_of_resume(backend, one, costs)
        found.append(costs)
    return found


def _next_step(backend: TrafficBackend, worker: str) -> int:
    return _open(backend).history(worker)[-1].step + 1


def _costs_of_resume(backend: TrafficBackend, worker: str, costs: Costs) -> Run:
    """Add the costs of a resume. Return the run that it has begun."""
    begun: list[Run] = []
    costs |= _costs_of(backend, "resume", lambda: begun.append(_resume(backend, worker)))
    return begun[0]


def _resume(backend: TrafficBackend, worker: str) -> Run:
    """Do what a restarted process does, up to its first save."""
    store = _open(backend)
    newest: CheckpointRef = store.history(worker)[-1]
    for state in store.load(newest):
        state.in_order()
    run = store.begin_run(worker, newest)
    run.save(newest.step + 1, [_state(newest.step + 1)])
    return run


def _open(backend: TrafficBackend) -> CheckpointStore:
    return CheckpointStore.open(backend)


def _costs_of(backend: TrafficBackend, what: str, work: Callable[[], object]) -> Costs:
    backend.take_traffic()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    traffic = backend.take_traffic()
    return {
        f"{what}, {REQUESTS}": traffic.requests,
        f"{what}, {KEYS}": traffic.listed,
        f"{what}, {BYTES}": traffic.uploaded + traffic.downloaded,
        f"{what}, {SECONDS}": seconds,
    }


def _state(step: int) -> IteratorState:
    """Return a state that is one tenth new at every step."""

    def elements() -> Iterator[Element]:
        for slot in range(_ELEMENTS):
            version = (step + slot) // 10
            payload = (b"%d-%d " % (slot, version)) * (_PAYLOAD_BYTES // 10)
            yield b"Iterator::Shuffle:buffer::%d" % slot, payload

    return IteratorState("Iterator", elements())
