"""How costs grow: with the state, with the number of its elements, of retained checkpoints and of workers.

What is judged is the exponent: 0 is a cost that does not grow, 1 one that is proportional.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

from benchmarks import apart, pipelines, places
from benchmarks.competitors import FLOOR
from benchmarks.observed import ObservedBackend
from benchmarks.pipelines import Pipeline
from benchmarks.raw_session import raw_session
from benchmarks.report import Figure, Goal, aligned, exponent, number
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
STAYS = "should stay"
NOT_OURS = "grows by itself"

EXPONENTS = (GROWS, STAYS, NOT_OURS)

GOALS = (
    Goal(NAME, GROWS, EXPONENT, LINEAR, 1.1),
    Goal(NAME, STAYS, EXPONENT, LINEAR, 0.1),
    Goal(NAME, NOT_OURS, EXPONENT, LINEAR),
)

_PAYLOAD_BYTES = 4_000
_ELEMENTS = 50
_LEAST_SAVES = 100


@dataclass(frozen=True)
class Sizes:
    """What is grown, and how far."""

    pictures: tuple[int, ...]
    numbers: tuple[int, ...]
    checkpoints: tuple[int, ...]
    workers: tuple[int, ...]
    rounds: int


FULL = Sizes((500, 2_000, 8_000), (5_000, 25_000, 125_000), (1, 10, 100, 1_000), (1, 10, 100, 1_000), 2)
QUICK = Sizes((100, 300), (1_000, 4_000), (1, 10, 50), (1, 10, 50), 1)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, and the exponents that follow from them."""
    sizes = QUICK if quick else FULL
    for turn in range(sizes.rounds):
        found = apart.run(save_each, [pipelines.pictures(count) for count in sizes.pictures])
        yield from _series("state size", sizes.pictures, turn, found, _is_cost)
        found = apart.run(save_each, [pipelines.numbers(count) for count in sizes.numbers])
        yield from _series("element count", sizes.numbers, turn, found, _is_cost)
        found = [live_long(count) for count in sizes.checkpoints]
        yield from _series("retained checkpoints", sizes.checkpoints, turn, found, _grows_with_history)
        found = [work_together(count) for count in sizes.workers]
        yield from _series("workers", sizes.workers, turn, found, _grows_with_workers)


Costs = dict[str, float]


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
        quantity = NOT_OURS if cost == FLOOR else GROWS if may_grow(cost) else STAYS
        case = f"{what}: {cost}"
        yield Figure(NAME, case, EXPONENT, quantity, turn, exponent(sizes, values))
        yield Figure(NAME, case, LINEAR, quantity, turn, 1.0)


def table(figures: Sequence[Figure]) -> str:
    """Return what was measured, one row a cost and one column a size."""
    costs = [one for one in figures if one.quantity not in EXPONENTS]
    rows: list[tuple[str, ...]] = []
    for what in dict.fromkeys(one.case for one in costs):
        sizes = list(dict.fromkeys(one.who for one in costs if one.case == what))
        rows.append((what, "", *sizes))
        for cost in dict.fromkeys(one.quantity for one in costs if one.case == what):
            rows.append(("", cost, *(number(_median(costs, what, cost, size)) for size in sizes)))
    return aligned(rows)


def _median(figures: Sequence[Figure], what: str, cost: str, size: str) -> float:
    wanted = (what, cost, size)
    return statistics.median(one.value for one in figures if (one.case, one.quantity, one.who) == wanted)


def _is_cost(cost: str) -> bool:
    return True


def _grows_with_history(cost: str) -> bool:
    # A listing has up to 1 000 keys a request; time has little to do with storage in memory.
    return cost.startswith(("list all", "prune")) or cost.endswith((KEYS, SECONDS))


def _grows_with_workers(cost: str) -> bool:
    return cost.startswith("list all") or cost.endswith(SECONDS)


def save_each(several: Sequence[Pipeline]) -> list[Costs]:
    """Return what a full save and its restore cost, for each pipeline."""
    return [_save_all(pipeline) for pipeline in several]


def _save_all(pipeline: Pipeline) -> Costs:
    with places.folder() as folder, raw_session(pipeline) as opened:
        session, iterators = opened.session, opened.iterators
        # TensorFlow prepares an operation when it is run first.
        iterators.snapshot(session).release()
        session.run(opened.serialize)
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


def live_long(retained: int) -> Costs:
    """Return what everything costs in a store with that many checkpoints."""
    backend = ObservedBackend(MemoryBackend(f"memory://{uuid.uuid4().hex}"))
    store = CheckpointStore.open(backend, create=True)
    run = store.begin_run("main")
    # At least so many that the packs are of as many ages as they will ever be.
    last = max(retained, _LEAST_SAVES)
    for step in range(1, last + 1):
        run.save(step, [_state(step)])
    run.prune(KeepLast(retained))
    costs = _costs_of(backend, "save", lambda: run.save(last + 1, [_state(last + 1)]))
    costs |= _costs_of(backend, "prune", lambda: run.prune(KeepAll()))
    costs |= _costs_of(backend, "list all", lambda: _open(backend).checkpoints())
    costs |= _costs_of(backend, "resume", lambda: _resume(backend, "main"))
    return costs


def work_together(workers: int) -> Costs:
    """Return what everything costs one of that many workers."""
    backend = ObservedBackend(MemoryBackend(f"memory://{uuid.uuid4().hex}"))
    names = [f"worker-{index}" for index in range(workers)]
    runs: dict[str, Run] = {}
    for name in names:
        runs[name] = CheckpointStore.open(backend, create=True).begin_run(name)
        runs[name].save(1, [_state(1)])
    one = names[-1]
    costs = _costs_of(backend, "save", lambda: runs[one].save(2, [_state(2)]))
    costs |= _costs_of(backend, "prune", lambda: runs[one].prune(KeepAll()))
    costs |= _costs_of(backend, "list own", lambda: _open(backend).checkpoints(one))
    costs |= _costs_of(backend, "list all", lambda: _open(backend).checkpoints())
    costs |= _costs_of(backend, "resume", lambda: _resume(backend, one))
    return costs


def _resume(backend: ObservedBackend, worker: str) -> None:
    """Do what a process does that takes up training again, up to its first save."""
    store = _open(backend)
    newest: CheckpointRef = store.history(worker)[-1]
    for state in store.load(newest):
        state.in_order()
    run = store.begin_run(worker, newest)
    run.save(newest.step + 1, [_state(newest.step + 1)])


def _open(backend: ObservedBackend) -> CheckpointStore:
    return CheckpointStore.open(backend)


def _costs_of(backend: ObservedBackend, what: str, work: Callable[[], object]) -> Costs:
    backend.look()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    traffic = backend.look()
    return {
        f"{what}, {REQUESTS}": traffic.requests,
        f"{what}, {KEYS}": traffic.listed,
        f"{what}, {BYTES}": traffic.uploaded + traffic.downloaded,
        f"{what}, {SECONDS}": seconds,
    }


def _state(step: int) -> IteratorState:
    """Return a state of which a tenth is new at every step."""

    def elements() -> Iterator[Element]:
        for slot in range(_ELEMENTS):
            version = (step + slot) // 10
            payload = (b"%d-%d " % (slot, version)) * (_PAYLOAD_BYTES // 10)
            yield b"Iterator::Shuffle:buffer::%d" % slot, payload

    return IteratorState("Iterator", elements())
