"""One life cycle of a store, short enough to repeat with a fault at each of its backend calls."""

from __future__ import annotations

import contextlib
import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

import pytest
from fsspec.implementations.local import LocalFileSystem

import input_checkpoint as ic
from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.commit_lock import CommitLockBackend
from input_checkpoint.backends.generic import GenericBackend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.backends.retrying import RetryingBackend
from input_checkpoint.format.keys import (
    FORMAT_KEY,
    CheckpointRef,
    lineage_key,
    manifest_key,
    parse_checkpoint_key,
    parse_lineage_key,
)
from input_checkpoint.format.manifest import decode_header
from input_checkpoint.state import Element
from tests.support.faults import MOMENTS, Die, Fail, FaultyBackend, Killed

WORKER = "main"
OPTIONS = ic.SaveOptions(pack_bytes=6_000, concurrency=1)
"""Several packs per save, and backend calls in a fixed order."""

QUICK = ic.RetryPolicy(timeout=5, initial_delay=0.0005, max_delay=0.002)


def elements(step: int, name: str = "large") -> list[Element]:
    """Return the elements at a step: a few large payloads, some of them new at each step, and small ones."""
    first = step // 2
    found = []
    for number in range(first, first + 10):
        random_bytes = random.Random(number).randbytes(2100 + 97 * (number % 13))
        payload = random_bytes if number % 3 else random_bytes[:300] * 8
        found.append((f"{name}:buffer::{number % 16}".encode(), payload))
        found.append((f"{name}:small::{number}".encode(), b"%d" % (number * step)))
    return [*found, (b"%s:counter" % name.encode(), b"%d" % step)]


def state(step: int) -> list[ic.IteratorState]:
    return [
        ic.IteratorState("first", iter(elements(step))),
        ic.IteratorState("second", iter([(b"position", b"%d" % step)])),
    ]


def restored(store: ic.CheckpointStore, ref: CheckpointRef) -> list[tuple[str, list[Element]]]:
    return [(found.name, found.in_order()) for found in store.load(ref)]


def expected(step: int) -> list[tuple[str, list[Element]]]:
    return [(one.name, list(one.elements)) for one in state(step)]


def open_store(backend: Union[str, Backend]) -> ic.CheckpointStore:
    """Open the store as a new process would."""
    return ic.CheckpointStore.open(backend, create=True, options=OPTIONS, retry=None)


class Cycle:
    """Saves, prunes, restarts, saves again, prunes, restores, and records its progress."""

    def __init__(self) -> None:
        self.begun = 0
        """Step of the last save that started."""
        self.committed = 0
        """Step of the last save that returned."""
        self.restored: list[tuple[str, list[Element]]] = []

    def live(self, backend: Backend) -> None:
        store = open_store(backend)
        run = store.begin_run(WORKER)
        for step in (10, 20, 30, 40):
            self._save(run, step)
        run.prune(ic.KeepLast(2))
        store = open_store(backend)
        newest = store.newest(WORKER)
        assert newest.step == 40
        assert restored(store, newest.ref) == expected(40)
        run = store.begin_run(WORKER, newest.ref)
        self._save(run, 50)
        run.prune(ic.KeepLast(2))
        self.restored = restored(store, store.newest(WORKER).ref)

    def _save(self, run: ic.Run, step: int) -> None:
        self.begun = step
        run.save(step, state(step))
        self.committed = step


def calls_of(work: Callable[[Backend], object], inner: Backend) -> list[str]:
    """Return the operation and key of every backend call that ``work`` makes without faults."""
    faulty = FaultyBackend(inner)
    work(faulty)
    return faulty.calls


def moments(calls: Sequence[str]) -> list[tuple[int, str]]:
    """Return each call number with each moment at which a fault can hit that call."""
    return [
        (number, moment)
        for number, call in enumerate(calls, 1)
        for moment in MOMENTS
        if moment != "halfway" or (call.startswith("delete ") and call.count(" ") > 1)
    ]


def check_that_nothing_committed_is_lost(inner: Backend, cycle: Cycle) -> None:
    """Check that the next run resumes from what was committed, whatever a fault has left behind."""
    store = open_store(inner)
    assert store.verify().problems == {}
    history = store.history(WORKER)
    newest = history[-1].step if history else 0
    assert newest in (cycle.committed, cycle.begun)
    for ref in history:
        assert restored(store, ref) == expected(ref.step)
    run = store.begin_run(WORKER, history[-1] if history else None)
    run.save(60, state(60))
    run.prune(ic.KeepLast(2), orphan_age=0)
    assert orphans(inner) == []
    again = open_store(inner)
    assert again.verify().problems == {}
    assert [ref.step for ref in again.history(WORKER)] == [*([newest] if newest else []), 60]
    for ref in again.history(WORKER):
        assert restored(again, ref) == expected(ref.step)


def orphans(backend: Backend) -> list[str]:
    """Return the keys of objects that no checkpoint needs."""
    keys = [info.key for info in backend.list()]
    checkpoints = [ref for ref in map(parse_checkpoint_key, keys) if ref]
    lineages = [number for number in map(parse_lineage_key, keys) if number]
    needed = {FORMAT_KEY, lineage_key(WORKER, max(lineages))}
    for ref in checkpoints:
        needed |= {manifest_key(ref), lineage_key(WORKER, ref.lineage)}
        needed.update(pack.key for pack in decode_header(backend.get(manifest_key(ref))).packs)
    return [key for key in keys if key not in needed]


def die_everywhere(kind: str, folder: Path, moment: str, every: int = 1) -> None:
    """Die at every n-th call of a cycle, and check what is left."""
    for number, _ in _fault_points(kind, folder, [moment], every):
        inner, cycle = new_backend(kind, folder), Cycle()
        with _naming_call(number, moment):
            with pytest.raises(Killed):
                cycle.live(FaultyBackend(inner, {number: Die(moment)}))
            check_that_nothing_committed_is_lost(inner, cycle)


def be_unavailable_everywhere(kind: str, folder: Path, moment: str, every: int = 1) -> None:
    """Let every n-th call of a cycle fail once, and check that this has no effect."""
    undisturbed = new_backend(kind, folder)
    Cycle().live(undisturbed)
    for number, _ in _fault_points(kind, folder, [moment], every):
        inner, cycle = new_backend(kind, folder), Cycle()
        with _naming_call(number, moment):
            faulty = FaultyBackend(inner, {number: Fail(moment)})
            cycle.live(RetryingBackend(faulty, QUICK))
            assert cycle.restored == expected(50)
            assert _kinds_of_objects(inner) == _kinds_of_objects(undisturbed)
            check_that_nothing_committed_is_lost(inner, cycle)


def be_forbidden_everywhere(kind: str, folder: Path, every: int = 1) -> None:
    """Deny every n-th call of a cycle, and check that the caller gets the error."""
    for number, call in _fault_points(kind, folder, ["before"], every):
        inner, cycle = new_backend(kind, folder), Cycle()
        with _naming_call(number, "before"):
            faulty = FaultyBackend(inner, {number: Fail(error=ic.BackendPermissionError)})
            if re.fullmatch(r"delete lineages/main/\d+/\S+", call):
                # The save or prune is already finished. A later prune removes its announcement.
                cycle.live(RetryingBackend(faulty, QUICK))
            else:
                with pytest.raises(ic.BackendPermissionError, match=f"call {number} "):
                    cycle.live(RetryingBackend(faulty, QUICK))
            check_that_nothing_committed_is_lost(inner, cycle)


def _fault_points(kind: str, folder: Path, wanted: Sequence[str], every: int) -> list[tuple[int, str]]:
    calls = calls_of(Cycle().live, new_backend(kind, folder))
    return [(number, calls[number - 1]) for number, moment in moments(calls) if moment in wanted][::every]


@contextlib.contextmanager
def _naming_call(number: int, moment: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{moment} call {number}: {error}") from error


def _kinds_of_objects(backend: Backend) -> list[str]:
    """Return all keys without their random parts."""
    return sorted(re.sub(r"(?<=\d{12}-)[0-9a-f]{8}", "*", info.key) for info in backend.list())


def new_backend(kind: str, folder: Optional[Path] = None) -> Backend:
    """Return an empty backend: ``memory``, or ``local`` or ``generic`` in a new folder."""
    if kind == "memory":
        return MemoryBackend(f"memory://{uuid.uuid4().hex}")
    assert folder is not None
    place = folder / uuid.uuid4().hex
    if kind == "local":
        return LocalBackend(str(place))
    plain = GenericBackend(f"inheriting://{place}", LocalFileSystem(), str(place / "data"))
    return CommitLockBackend(plain, LocalBackend(str(place / "locks")))
