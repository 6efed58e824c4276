"""Faults at every backend call of a store: death, an outage, a denial, and SIGKILL.

tests/store/test_faults.py has the fast part.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.local import LocalBackend
from tests.support import cycles
from tests.support.faults import MOMENTS, Die, FaultyBackend, Killed, KillProcess, Meanwhile

pytestmark = pytest.mark.timeout(900)

KINDS = ("memory", "local")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_committed_is_lost_when_the_process_dies_at_any_call(
    kind: str, moment: str, tmp_path: Path
) -> None:
    cycles.die_everywhere(kind, tmp_path, moment)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_failure_of_any_call_has_no_effect(kind: str, moment: str, tmp_path: Path) -> None:
    cycles.be_unavailable_everywhere(kind, tmp_path, moment)


@pytest.mark.parametrize("kind", KINDS)
def test_a_denial_of_any_call_is_reported_to_the_caller(kind: str, tmp_path: Path) -> None:
    cycles.be_forbidden_everywhere(kind, tmp_path)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_committed_is_lost_by_sigkill_at_any_call(moment: str, tmp_path: Path) -> None:
    calls = cycles.calls_of(cycles.Cycle().live, cycles.new_backend("local", tmp_path))
    for number, call in enumerate(calls, 1):
        if call.split()[0] in ("create", "put", "delete"):
            inner = cycles.new_backend("local", tmp_path)
            progress = live_in_a_child(
                inner, lambda backend, n=number: FaultyBackend(backend, {n: KillProcess(moment)})
            )
            assert progress.killed
            cycles.check_that_nothing_committed_is_lost(inner, progress.cycle)


def test_nothing_committed_is_lost_by_sigkill_at_any_file_system_change(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        inner = cycles.new_backend("local", tmp_path)
        progress = live_in_a_child(inner, lambda backend, n=number: killed_at_change(backend, n))
        cycles.check_that_nothing_committed_is_lost(inner, progress.cycle)
        if not progress.killed:
            break
    assert number > 100


@pytest.mark.parametrize("orphan_age", [0, 3600])
def test_a_prune_at_any_moment_of_a_save_removes_nothing_that_it_needs(orphan_age: float) -> None:
    for number, moment in fault_points(save_next):
        inner = three_saves()
        faulty = FaultyBackend(inner)
        save = save_next(faulty)

        def prune(inner: Backend = inner) -> None:
            cycles.open_store(inner).prune(ic.KeepLast(1), orphan_age=orphan_age)

        faulty.plan[len(faulty.calls) + number] = Meanwhile(prune, moment)
        save()
        check_newest(inner, 40)


@pytest.mark.parametrize("orphan_age", [0, 3600])
def test_a_save_at_any_moment_of_a_prune_loses_nothing(orphan_age: float) -> None:
    def prune_of(backend: Backend) -> Callable[[], object]:
        store = cycles.open_store(backend)
        return lambda: store.prune(ic.KeepLast(1), orphan_age=orphan_age)

    for number, moment in fault_points(prune_of):
        inner = three_saves()
        save = save_next(inner)
        faulty = FaultyBackend(inner)
        prune = prune_of(faulty)
        faulty.plan[len(faulty.calls) + number] = Meanwhile(save, moment)
        prune()
        check_newest(inner, 40)


def test_a_save_that_overlaps_any_part_of_a_prune_loses_nothing() -> None:
    """A prune runs during one call of the save and dies at its n-th call. Another runs after the save."""
    for number, moment in fault_points(save_next):
        for dies_at in range(1, 14):
            inner = three_saves()
            faulty = FaultyBackend(inner)
            save = save_next(faulty)

            def part(inner: Backend = inner, dies_at: int = dies_at) -> None:
                with contextlib.suppress(Killed):
                    store = cycles.open_store(FaultyBackend(inner, {dies_at: Die("after")}))
                    store.prune(ic.KeepLast(1), orphan_age=0)

            faulty.plan[len(faulty.calls) + number] = Meanwhile(part, moment)
            save()
            check_newest(inner, 40)
            cycles.open_store(inner).prune(ic.KeepLast(1), orphan_age=0)
            check_newest(inner, 40)


class Progress:
    """The progress of a child process, in memory that outlives it."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 16)
        self.killed = False

    def record(self, cycle: cycles.Cycle) -> None:
        self._shared[:] = struct.pack("qq", cycle.begun, cycle.committed)

    @property
    def cycle(self) -> cycles.Cycle:
        cycle = cycles.Cycle()
        cycle.begun, cycle.committed = struct.unpack("qq", self._shared[:])
        return cycle


def live_in_a_child(inner: Backend, disturbed: Callable[[Backend], Backend]) -> Progress:
    progress = Progress()

    class RecordingCycle(cycles.Cycle):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if len(vars(self)) > 2:
                progress.record(self)

    child = os.fork()
    if not child:
        code = 1
        try:
            RecordingCycle().live(disturbed(inner))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    progress.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert progress.killed or os.WEXITSTATUS(status) == 0
    return progress


def killed_at_change(backend: Backend, number: int) -> Backend:
    """Kill this process just before it changes the folder of the backend for the n-th time."""
    assert isinstance(backend, LocalBackend)
    folder = backend.uri
    changes = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal changes
        changing = event in ("os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        )
        # The backend names files relative to an open folder.
        path = arguments[0]
        if changing and isinstance(path, str) and (path.startswith(folder) or not os.path.isabs(path)):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return backend


def three_saves() -> Backend:
    inner = cycles.new_backend("memory")
    store = cycles.open_store(inner)
    run = store.begin_run(cycles.WORKER, None)
    for step in (10, 20, 30):
        run.save(step, cycles.state(step))
    return inner


def save_next(backend: Backend) -> Callable[[], object]:
    """Return a save of a restarted run. The data that it builds on may be pruned in the meantime."""
    store = cycles.open_store(backend)
    run = store.begin_run(cycles.WORKER, store.newest(cycles.WORKER).ref)
    run.save(35, cycles.state(35))
    return lambda: run.save(40, cycles.state(40))


def fault_points(prepare: Callable[[Backend], Callable[[], object]]) -> Iterator[tuple[int, str]]:
    faulty = FaultyBackend(three_saves())
    work = prepare(faulty)
    before = len(faulty.calls)
    work()
    return iter(cycles.moments(faulty.calls[before:]))


def check_newest(inner: Backend, step: int) -> None:
    store = cycles.open_store(inner)
    assert store.verify().problems == {}
    newest = store.newest(cycles.WORKER)
    assert newest.step == step
    assert cycles.restored(store, newest.ref) == cycles.expected(step)
