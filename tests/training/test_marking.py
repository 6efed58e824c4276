"""A mark leans on the newest checkpoint of its run, and is not written if it would prove nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.training.marking import Base, Bases, PendingMark, write_mark
from tests.support.counting import Counter, digest_of


@dataclass(frozen=True)
class Drawn:
    draws: dict[str, int]
    digests: dict[str, str]


def distance(base: int, now: int):
    return Drawn({"Counter": now - base}, {"Counter": digest_of(now)})


@pytest.fixture
def store(memory: MemoryBackend) -> ic.CheckpointStore:
    return ic.CheckpointStore.open(memory, create=True)


@pytest.fixture
def run(store: ic.CheckpointStore):
    return store.begin_run("main")


def save(run, step: int) -> ic.CheckpointRef:
    return run.save(step, Counter().snapshot().states()).ref


def pending(step: int = 20, position: int = 200, model="aa", **settings) -> PendingMark:
    return PendingMark(step, position, settings.pop("distance", distance), lambda: model, **settings)


def test_the_distance_is_counted_from_the_newest_checkpoint(store, run):
    older, newer = save(run, 0), save(run, 10)
    bases = Bases(Base(older, 0))
    bases.saving(10, 100)
    write_mark(run, pending(), bases, lambda: newer)
    (ref,) = store.marks("main")
    mark = store.read_mark(ref)
    assert (ref.base, mark.draws, mark.model_digest) == (newer, {"Counter": 100}, "aa")


def test_a_save_that_is_not_committed_is_no_base(store, run):
    older = save(run, 0)
    bases = Bases(Base(older, 0))
    bases.saving(10, 100)
    write_mark(run, pending(), bases, lambda: None)
    assert [ref.base for ref in store.marks("main")] == [older]


def test_a_checkpoint_that_is_committed_meanwhile_becomes_the_base(store, run):
    older, newer = save(run, 0), save(run, 10)
    bases = Bases(Base(older, 0))
    bases.saving(10, 100)
    committed = iter([None, newer])
    write_mark(run, pending(), bases, lambda: next(committed, newer))
    assert [ref.base for ref in store.marks("main")] == [older, newer]


def test_nothing_is_written_without_a_base(store, run):
    write_mark(run, pending(), Bases(), lambda: None)
    assert store.marks("main") == []


def test_nothing_is_written_if_the_step_is_saved_already(store, run):
    saved = save(run, 20)
    write_mark(run, pending(), Bases(Base(saved, 200)), lambda: saved)
    assert store.marks("main") == []


def test_nothing_is_written_if_the_distance_is_not_certain(store, run):
    uncertain = pending(distance=lambda base, now: "a draw inside tf.cond")
    write_mark(run, uncertain, Bases(Base(save(run, 0), 0)), lambda: None)
    assert store.marks("main") == []


@pytest.mark.parametrize(("needs_model", "expected"), [(True, 0), (False, 1)])
def test_a_mark_of_a_model_that_was_not_saved_is_not_written(store, run, needs_model, expected):
    without = pending(model=None, needs_model=needs_model)
    write_mark(run, without, Bases(Base(save(run, 0), 0)), lambda: None)
    assert len(store.marks("main")) == expected
