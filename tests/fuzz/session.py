"""What is done with a fuzzed store, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import FrameType
from typing import Any, Callable, Optional

import input_checkpoint as ic
from input_checkpoint.format.keys import manifest_key
from tests.fuzz.memory import peak_of
from tests.fuzz.mutations import FOREIGN, FORGERIES, Mutation, Objects, apply, intact
from tests.fuzz.storage import Content, FuzzedBackend

WORKER = "main"
PROCESSOR_SECONDS = 30
"""How long an operation may compute. Does not depend on what else the machine does."""
SECONDS = 300
"""How long it may take."""
MEMORY = 700 << 20
"""Memory limit of one input, in bytes, besides four times the size of its objects."""
_MOST_BYTES = 64 << 20
_MOST_ELEMENTS = 1 << 20

State = list[tuple[str, list[tuple[bytes, bytes]]]]


class BrokenError(AssertionError):
    """An input has broken something."""


class _TimeUpError(BaseException):
    """An operation takes too long."""


def check(mutations: Sequence[Mutation]) -> None:
    """Apply mutations to the store, use it in every way, and check what must be true.

    Raises:
        BrokenError: something is not.
    """
    objects = apply(mutations)
    is_forged = any(mutation["op"] in FORGERIES for mutation in mutations)
    size = sum(map(len, objects.values()))

    def use_in_every_way() -> None:
        for use in (_read, _copy, _prune, _continue):
            try:
                use(objects, is_forged)
            except ic.InputCheckpointError as error:
                raise BrokenError(f"{use.__name__}: {type(error).__name__}: {error!s:.300}") from error

    used = peak_of(use_in_every_way)
    if used > MEMORY + 4 * size:
        raise BrokenError(f"{used >> 20} MiB of memory for objects of {size >> 20} MiB")


def _read(objects: Objects, is_forged: bool) -> None:
    with _opened(objects) as store:
        _attempt("list", lambda: [info.to_dict() for info in store.checkpoints()])
        _attempt("workers", store.workers)
        _attempt("history", lambda: str(store.history(WORKER)))
        _attempt("newest", lambda: str(store.newest(WORKER)))
        _attempt("pins", lambda: "".join(store.pins().values()).encode())
        report = _attempt("verify", store.verify)
        for mark in _attempt("marks", store.marks) or ():
            found = _attempt(f"read the {mark}", lambda mark=mark: store.read_mark(mark))
            if found is not None and not is_forged and found != _marks().get(mark):
                raise BrokenError(f"the {mark} was read with other content than was written")
            if found is None and report is not None and mark not in report.mark_problems:
                raise BrokenError(f"the {mark} cannot be read, and verify did not say so")
        for ref in _attempt("refs", lambda: store.list_worker(WORKER).checkpoints) or ():
            loaded = _attempt(f"load {ref}", lambda ref=ref: _load(store, ref))
            if loaded is not None and not is_forged and loaded != expected().get(ref):
                raise BrokenError(f"{ref} was loaded with other data than was saved")
            if loaded is not None and report is not None and ref not in report.checked:
                raise BrokenError(f"{ref} can be loaded, but was not verified")


def _copy(objects: Objects, is_forged: bool) -> None:
    with _opened(objects) as store:
        target = ic.CheckpointStore.open(FuzzedBackend({}), create=True, retry=None)
        report = _attempt("copy", lambda: store.copy_to(target))
        for mark in report.copied_marks if report else ():
            if not is_forged and _attempt(f"read {mark}", lambda m=mark: target.read_mark(m)) is None:
                raise BrokenError(f"the copy of the {mark} cannot be read")
        for ref in report.copied if report else ():
            found = _attempt(f"load the copy of {ref}", lambda ref=ref: _load(target, ref))
            if not is_forged and found != expected().get(ref):
                raise BrokenError(f"the copy of {ref} has other data than was saved")


def _prune(objects: Objects, is_forged: bool) -> None:
    with _opened(objects) as store:
        _attempt("prune, dry", lambda: store.prune(ic.KeepLast(1), dry_run=True).to_dict())
        report = _attempt("prune", lambda: store.prune(ic.KeepAll(), orphan_age=0))
        removed = set(report.removed) if report else set()
        for ref in _undamaged(objects):
            if ref in removed:
                if not is_forged and ref not in _removed_when_intact():
                    raise BrokenError(f"prune(KeepAll()) has removed {ref}")
            elif _load(store, ref) != expected()[ref]:
                raise BrokenError(f"after prune(KeepAll()), {ref} is not what was saved")
        _attempt("prune again", lambda: store.prune(ic.KeepLast(1), orphan_age=0))


def _continue(objects: Objects, is_forged: bool) -> None:
    with _opened(objects) as store:
        listing = _attempt("list a worker", lambda: store.list_worker(WORKER))
        history, marks = (listing.history, listing.usable_marks) if listing else ([], [])
        parent, base = (marks[-1].ref, marks[-1].base) if marks else (history[-1] if history else None, None)
        run = _attempt("begin a run", lambda: store.begin_run(WORKER, parent, base=base))
        if run is None:
            return
        step = max((ref.step for ref in (*history, *(mark.ref for mark in marks))), default=0) + 10
        state = [("Iterator", [(b"key %d" % number, b"%d" % number * 300) for number in range(20)])]
        info = _attempt("save", lambda: run.save(step, [ic.IteratorState(*one) for one in state]))
        if info is not None and _load(store, info.ref) != state:
            raise BrokenError(f"{info.ref}, saved after the damage, is not what was saved")
        if info is not None:
            draws, digests = {"Iterator": 1}, {"Iterator": "9f3c"}
            mark = _attempt("write a mark", lambda: run.mark(step + 1, info.ref, draws, digests))
            if mark is not None and store.read_mark(mark).draws != draws:
                raise BrokenError(f"the {mark}, written after the damage, is not what was written")
        _attempt("prune by the run", lambda: run.prune(ic.KeepLast(1), orphan_age=0))
        if info is not None and _load(store, info.ref) != state:
            raise BrokenError(f"{info.ref} was damaged by a prune")


@contextlib.contextmanager
def _opened(objects: Objects) -> Iterator[ic.CheckpointStore]:
    """Open a copy of the fuzzed store. One that is refused is used all the same."""
    backend = FuzzedBackend(objects)
    store = _attempt("open", lambda: ic.CheckpointStore.open(backend, create=True, retry=None))
    yield store if store is not None else ic.CheckpointStore(backend)
    for key, data in FOREIGN.items():
        if key in objects and objects[key] == Content(data) and backend.objects.get(key) != Content(data):
            raise BrokenError(f"{key}, which is not the library's, was changed")


def _attempt(name: str, work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns, or None if it raises an error of the library."""
    try:
        with _time_limit():
            return work()
    except ic.InputCheckpointError as error:
        str(error).encode()  # it can be printed
        return None
    except (Exception, _TimeUpError) as error:
        raise BrokenError(f"{name}: {type(error).__name__}: {error!s:.300}") from error


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(signum: int, frame: Optional[FrameType]) -> None:
        raise _TimeUpError(f"not finished after {PROCESSOR_SECONDS} s of computing, or {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _load(store: ic.CheckpointStore, ref: ic.CheckpointRef) -> Optional[State]:
    """Return what a checkpoint holds, or None if that is so much that only a part of it was read."""
    found: State = []
    size = count = 0
    for state in store.load(ref):
        by_position = {}
        for batch in state.batches:
            by_position.update(zip(batch.positions, batch.elements))
            count += len(batch.elements)
            size += sum(len(payload) for _, payload in batch.elements)
            if size > _MOST_BYTES or count > _MOST_ELEMENTS:
                return None
        found.append((state.name, [by_position[position] for position in range(state.count)]))
    return found


@cache
def expected() -> Mapping[ic.CheckpointRef, State]:
    """Return what the checkpoints of the intact store hold."""
    store = ic.CheckpointStore(FuzzedBackend(intact()))
    loaded = {info.ref: _load(store, info.ref) for info in store.checkpoints()}
    return {ref: state for ref, state in loaded.items() if state is not None}


@cache
def _marks() -> Mapping[ic.MarkRef, ic.Mark]:
    store = ic.CheckpointStore(FuzzedBackend(intact()))
    return {mark: store.read_mark(mark) for mark in store.marks()}


@cache
def _removed_when_intact() -> frozenset[ic.CheckpointRef]:
    store = ic.CheckpointStore(FuzzedBackend(intact()))
    return frozenset(store.prune(ic.KeepAll(), orphan_age=0).removed)


@cache
def _objects_of() -> Mapping[ic.CheckpointRef, Sequence[str]]:
    """Return the keys of the manifest and the packs of each checkpoint of the intact store."""
    store = ic.CheckpointStore(FuzzedBackend(intact()))
    return {
        info.ref: [manifest_key(info.ref), *(pack.key for pack in info.packs)] for info in store.checkpoints()
    }


def _undamaged(objects: Objects) -> Sequence[ic.CheckpointRef]:
    before = intact()
    return [
        ref
        for ref, keys in _objects_of().items()
        if all(objects.get(key) == before[key] for key in itertools.chain(keys, ["format.json"]))
    ]
