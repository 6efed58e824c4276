"""What may happen while a writer is suspended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import input_checkpoint as ic
from tests.support import cycles
from tests.support.false_answers import Later
from tests.support.faults import FaultyBackend, Meanwhile
from tests.support.stores import save


def prune_a_day_later(backend: ic.Backend) -> ic.PruneReport:
    """Prune as a tool on another machine does, 25 hours after everything that is there was written."""
    return ic.CheckpointStore.open(Later(backend, hours=25)).prune(ic.KeepLast(5))


def take_over(backend: ic.Backend) -> None:
    """Begin a new run, save twice and prune."""
    store = ic.CheckpointStore.open(backend)
    history = store.history("main")
    run = store.begin_run("main", history[-1] if history else None)
    save(run, 101, 102)
    run.prune(ic.KeepLast(1), orphan_age=0)


def disturb_every_call(
    kind: str, folder: Path, disturb: Callable[[ic.Backend], object], every: int = 1
) -> None:
    """Suspend a writer before and after every n-th backend call of a save, and check what is there then."""
    calls = cycles.calls_of(_save_twice, cycles.new_backend(kind, folder))
    for number, moment in cycles.moments(calls)[::every]:
        inner = cycles.new_backend(kind, folder)
        cycles.open_store(inner)
        action = Meanwhile(lambda inner=inner: disturb(inner), moment)
        with contextlib.suppress(ic.SaveExpiredError, ic.WriterSupersededError):
            _save_twice(FaultyBackend(inner, {number: action}))
        where = f"{kind}, {disturb.__name__} {moment} call {number}: {calls[number - 1]}"
        store = ic.CheckpointStore.open(inner)
        assert store.verify().problems == {}, where
        history = store.history("main")
        run = store.begin_run("main", history[-1] if history else None)
        info = run.save(200, cycles.state(30))
        assert cycles.restored(store, info.ref) == cycles.expected(30), where


def _save_twice(backend: ic.Backend) -> None:
    run = cycles.open_store(backend).begin_run(cycles.WORKER)
    for step in (10, 20):
        run.save(step, cycles.state(step))
