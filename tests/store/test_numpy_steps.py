"""Steps and counts may be numpy integers, as TensorFlow passes them. They are stored as plain ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import input_checkpoint as ic
from input_checkpoint import CheckpointRef, CheckpointStore, KeepSteps, MarkRef, SaveContext, SaveOptions
from tests.support.stores import save

NOT_WHOLE = [True, np.bool_(True), 10.0, np.float64(10), "10"]


def state() -> list[ic.IteratorState]:
    return [ic.IteratorState("Iterator", [(b"key", b"payload")])]


def is_plain(value: Any) -> bool:
    return type(value) is int


class TestSaving:
    @pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64])
    def test_the_checkpoint_has_a_plain_step(self, store, run, kind):
        info = run.save(kind(10), state())
        assert is_plain(info.step)
        assert json.loads(json.dumps(info.to_dict()))["step"] == 10
        assert [is_plain(ref.step) for ref in store.history("main")] == [True]

    def test_it_can_be_loaded_with_a_numpy_step(self, store, run):
        run.save(np.int64(10), state())
        ref = CheckpointRef("main", np.int64(1), np.int64(10))
        assert [each.in_order() for each in store.load(ref)] == [[(b"key", b"payload")]]

    def test_it_can_be_pinned_and_pruned_with_numpy_steps(self, store, run):
        save(run, 10, 20, 30)
        store.pin(CheckpointRef("main", np.int64(1), np.int64(10)), note="first")
        report = store.prune(KeepSteps(np.int64(20)))
        assert [ref.step for ref in store.history("main")] == [10, 20, 30]
        assert json.dumps(report.to_dict())
        assert store.pins() == {CheckpointRef("main", 1, 10): "first"}

    def test_what_the_training_knows_may_be_numpy_too(self, backend, run):
        context = SaveContext(save_steps=np.int64(10), draws=np.int32(3))
        ref = run.save(np.int64(10), state(), context).ref
        again = CheckpointStore.open(backend).info(ref)
        assert again.context == SaveContext(save_steps=10, draws=3)

    @pytest.mark.parametrize("step", NOT_WHOLE)
    def test_a_step_that_is_not_a_whole_number_is_refused(self, store, run, step):
        with pytest.raises(TypeError, match="step must be a whole number"):
            run.save(step, state())
        assert store.history("main") == []

    def test_a_step_that_no_checkpoint_can_have_is_still_refused(self, run):
        with pytest.raises(ValueError, match="not a step"):
            run.save(np.int64(-1), state())


class TestRuns:
    def test_a_run_begins_at_a_numpy_step(self, backend, store, run):
        (ref,) = save(run, 10)
        parent = CheckpointRef("main", np.int64(1), np.int64(10))
        begun = store.begin_run("main", parent, start_step=np.int64(10))
        assert begun.lineage.parent == ref
        newest = CheckpointStore.open(backend).newest_lineage("main")
        assert newest is not None
        assert newest.start_step == 10
        assert is_plain(begun.lineage.start_step)

    @pytest.mark.parametrize("step", NOT_WHOLE)
    def test_a_start_that_is_not_a_whole_number_is_refused_before_the_run_begins(self, store, run, step):
        with pytest.raises(TypeError, match="start_step must be a whole number"):
            store.begin_run("main", start_step=step)
        assert store.newest_lineage("main").number == 1


class TestMarks:
    def test_a_mark_has_plain_numbers(self, store, run):
        base = run.save(np.int64(10), state()).ref
        ref = run.mark(np.int64(13), base, {"Iterator": np.int64(3)}, {"Iterator": "9f3c"})
        assert json.loads(json.dumps(ref.to_dict()))["ref"]["step"] == 13
        assert store.marks("main") == [ref]
        read = store.read_mark(MarkRef(CheckpointRef("main", 1, np.int64(13)), base))
        assert read.draws == {"Iterator": 3}

    @pytest.mark.parametrize("count", NOT_WHOLE)
    def test_draws_that_are_not_a_whole_number_are_refused(self, store, run, count):
        (base,) = save(run, 10)
        with pytest.raises(TypeError, match=r"draws\['Iterator'\] must be a whole number"):
            run.mark(13, base, {"Iterator": count}, {"Iterator": "9f3c"})
        assert store.marks("main") == []


class TestRefs:
    def test_a_ref_has_plain_numbers(self):
        ref = CheckpointRef("main", np.int64(1), np.int64(500))
        assert json.loads(json.dumps(ref.to_dict())) == {"worker": "main", "lineage": 1, "step": 500}
        assert repr(ref) == repr(CheckpointRef("main", 1, 500))

    @pytest.mark.parametrize("number", NOT_WHOLE)
    def test_a_ref_with_a_number_that_is_not_whole_is_refused(self, number):
        with pytest.raises(TypeError, match="step must be a whole number"):
            CheckpointRef("main", 1, number)
        with pytest.raises(TypeError, match="lineage must be a whole number"):
            CheckpointRef("main", number, 1)

    @pytest.mark.parametrize("number", NOT_WHOLE)
    def test_what_the_training_knows_is_refused_if_it_is_not_whole(self, number):
        with pytest.raises(TypeError, match="save_steps must be a whole number"):
            SaveContext(save_steps=number)
        with pytest.raises(TypeError, match="draws must be a whole number"):
            SaveContext(draws=number)


class TestOptions:
    def test_options_have_plain_numbers(self):
        options = SaveOptions(pack_bytes=np.int64(1 << 20), concurrency=np.int32(2))
        assert repr(options) == repr(SaveOptions(pack_bytes=1 << 20, concurrency=2))

    @pytest.mark.parametrize("name", ["pack_bytes", "concurrency"])
    @pytest.mark.parametrize("number", NOT_WHOLE)
    def test_options_that_are_not_whole_numbers_are_refused(self, name, number):
        with pytest.raises(TypeError, match=f"{name} must be a whole number"):
            SaveOptions(**{name: number})
