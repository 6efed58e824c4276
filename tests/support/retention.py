"""Histories of checkpoints for the tests of retention policies, and what a policy keeps of them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from hypothesis import strategies as st

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.checkpoint import PackEntry

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)  # a Wednesday


def info(
    step: int,
    created: datetime = NOON,
    stored_bytes: int = 0,
    lineage: int = 1,
    shared: Sequence[PackEntry] = (),
    table_bytes: int = 0,
) -> ic.CheckpointInfo:
    return ic.CheckpointInfo(
        step=step,
        worker="main",
        lineage=lineage,
        created=created,
        logical_bytes=stored_bytes,
        stored_bytes=stored_bytes,
        elements=1,
        iterators=("Iterator",),
        host="host",
        pid=1,
        packs=(PackEntry(f"pack of {lineage}/{step}", stored_bytes, True), *shared),
        table_bytes=table_bytes,
    )


def of_steps(*steps: int) -> list[ic.CheckpointInfo]:
    return [info(step) for step in steps]


def at(*times: datetime) -> list[ic.CheckpointInfo]:
    """One checkpoint at each time, with steps 0, 1, 2 and so on."""
    return [info(step, created) for step, created in enumerate(times)]


def at_hours(*hours: float) -> list[ic.CheckpointInfo]:
    """One checkpoint at each number of hours after noon, with steps 0, 1, 2 and so on."""
    return at(*(NOON + timedelta(hours=hour) for hour in hours))


def histories() -> st.SearchStrategy[list[ic.CheckpointInfo]]:
    """Histories whose steps grow. Clocks are now and then set back by up to an hour."""
    entry = st.tuples(st.integers(1, 40), st.integers(-60, 3000), st.integers(0, 100))
    return st.lists(entry, max_size=25).map(_history)


def _history(entries: Sequence[tuple[int, int, int]]) -> list[ic.CheckpointInfo]:
    history, step, created = [], 0, NOON
    for steps, minutes, size in entries:
        step, created = step + steps, created + timedelta(minutes=minutes)
        history.append(info(step, created, size))
    return history


def kept(policy: ic.RetentionPolicy, checkpoints: Sequence[ic.CheckpointInfo]) -> list[int]:
    """Return the steps that a policy keeps."""
    return [ref.step for ref in sorted(policy.keep(checkpoints))]


def reason(policy: ic.RetentionPolicy, checkpoints: Sequence[ic.CheckpointInfo], step: int) -> str:
    """Return why a policy keeps a step."""
    return next(text for ref, text in policy.keep(checkpoints).items() if ref.step == step)


def store_with(steps: Sequence[int]) -> ic.CheckpointStore:
    store = ic.CheckpointStore.open(MemoryBackend(f"memory://{uuid.uuid4().hex}"), create=True)
    run = store.begin_run("main")
    for step in steps:
        run.save(step, [ic.IteratorState("Iterator", [(b"key", str(step).encode())])])
    return store
