"""With a saving listener, the input is saved whenever the model is, at exactly its steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.tensorflow.draw_guard import DrawGuard
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step, read_model_checkpoints
from tests.support.accumulation import MICRO, accumulate_op, make_accumulating
from tests.support.hooked_training import (
    Steps,
    committed_steps,
    preempted,
    set_current_model,
    wait_until,
)
from tests.support.kills import finish, first_step, succeed
from tests.support.train_child import (
    AfterModelSave,
    BeforeModelSave,
    BeforeWrite,
    EachStep,
    InModelSave,
    Training,
)
from tests.support.training import make_estimator, shuffled_ids, train_op, trained_on
from tests.support.wrappers import BeforeWrites, Failing, PackGate

v1 = tf.compat.v1

MODES = ("background", "before")


def train(
    model: Path,
    backend: ic.Backend,
    steps: int,
    mode: str = "background",
    *,
    listeners: Sequence[Any] = (),
    hooks: Sequence[Any] = (),
    config: Optional[dict[str, Any]] = None,
    **options: Any,
) -> None:
    """Train an Estimator with the hook and its listener, and other ``listeners`` and ``hooks`` after them."""
    estimator = make_estimator(model, keep_checkpoint_max=50, **(config or {}))
    hook = ic.CheckpointInputPipelineHook(estimator, backend=backend, retention=ic.KeepAll(), **options)
    estimator.train(
        shuffled_ids,
        hooks=[hook, *hooks],
        saving_listeners=[hook.saving_listener(mode), *listeners],
        steps=steps,
    )


def train_in_session(
    model: Path,
    backend: ic.Backend,
    mode: str = "background",
    *,
    hook_first: bool = False,
    steps: int = 25,
    first: Sequence[Any] = (),
    hooks: Sequence[Any] = (),
) -> None:
    """Train without an Estimator. The model is saved every 7 steps, and the hook expects every 5."""
    with v1.Graph().as_default():
        iterator = v1.data.make_initializable_iterator(shuffled_ids())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        op = train_op(iterator.get_next())
        hook = ic.SessionHook(model_dir=str(model), backend=backend, save_steps=5, retention=ic.KeepAll())
        saver = v1.train.CheckpointSaverHook(
            str(model),
            save_steps=7,
            saver=v1.train.Saver(max_to_keep=50),
            listeners=[hook.saving_listener(mode)],
        )
        ours = [hook, saver] if hook_first else [saver, hook]
        with v1.train.MonitoredTrainingSession(
            checkpoint_dir=str(model),
            save_checkpoint_steps=None,
            save_checkpoint_secs=None,
            hooks=[*first, *ours, *hooks, v1.train.StopAtStepHook(last_step=steps)],
        ) as session:
            while not session.should_stop():
                session.run(op)


def model_steps(model: Path) -> list[int]:
    found = read_model_checkpoints(str(model))
    return [] if found is None else sorted(found.paths)


def info_of(backend: ic.Backend, step: int) -> ic.CheckpointInfo:
    (info,) = (info for info in ic.CheckpointStore.open(backend).checkpoints() if info.step == step)
    return info


@pytest.mark.parametrize("mode", MODES)
class TestStepsOfTheModel:
    def test_steps(self, model, memory, mode):
        train(model, memory, 25, mode, config={"save_checkpoints_steps": 7})
        assert committed_steps(memory) == model_steps(model) == [0, 7, 14, 21, 25]

    def test_seconds(self, model, memory, mode):
        slowly = EachStep(lambda step: time.sleep(0.05))
        train(model, memory, 40, mode, config={"save_checkpoints_secs": 0.4}, hooks=[slowly])
        assert committed_steps(memory) == model_steps(model)
        assert len(model_steps(model)) >= 5

    @pytest.mark.parametrize("hook_first", [False, True])
    def test_a_saver_with_another_schedule_than_the_hook_expects(self, model, memory, mode, hook_first):
        train_in_session(model, memory, mode, hook_first=hook_first)
        assert committed_steps(memory) == model_steps(model) == [0, 7, 14, 21, 25]

    def test_several_train_calls_of_one_hook(self, model, memory, mode, reference: Steps):
        estimator = make_estimator(model)
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, retention=ic.KeepAll())
        listener = hook.saving_listener(mode)
        for _ in range(2):
            estimator.train(shuffled_ids, hooks=[hook], saving_listeners=[listener], steps=15)
        assert committed_steps(memory) == [0, 10, 15, 25, 30]
        assert trained_on(model) == reference[:30]


@pytest.mark.parametrize("mode", MODES)
class TestResume:
    @pytest.mark.parametrize("step", [7, 21])
    @pytest.mark.parametrize("hook_first", [False, True])
    def test_every_model_resumes_exactly(self, model, memory, reference: Steps, mode, hook_first, step):
        train_in_session(model, memory, mode, hook_first=hook_first)
        set_current_model(model, step)
        train_in_session(model, memory, mode, hook_first=hook_first, steps=step + 20)
        assert trained_on(model) == reference[: step + 20]

    def test_a_model_that_is_saved_by_time_resumes_exactly(self, model, memory, reference: Steps, mode):
        slowly = EachStep(lambda step: time.sleep(0.05))
        train(model, memory, 30, mode, config={"save_checkpoints_secs": 0.4}, hooks=[slowly])
        step = model_steps(model)[-3]
        set_current_model(model, step)
        train(model, memory, 30, mode)
        assert trained_on(model) == reference[: step + 30]

    @pytest.mark.parametrize("hook_first", [False, True])
    def test_a_session_that_is_created_again_saves_nothing_before_the_input_is_restored(
        self, model, memory, reference: Steps, mode, hook_first
    ):
        train_in_session(model, memory, mode, hook_first=hook_first, hooks=[preempted(17)])
        assert committed_steps(memory) == [0, 7, 14, 21, 25]
        assert trained_on(model) == reference[:25]

    def test_accumulated_gradients_belong_to_their_step(self, tmp_path, model, memory, mode):
        make_accumulating(tmp_path / "reference").train(shuffled_ids, max_steps=8)
        for last in (4, 8):
            estimator = make_accumulating(model)
            hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
            estimator.train(
                shuffled_ids, hooks=[hook], saving_listeners=[hook.saving_listener(mode)], max_steps=last
            )
        runs = [tf.train.load_variable(str(each), "run_history") for each in (tmp_path / "reference", model)]
        assert (runs[0] == runs[1]).all()
        assert tf.train.load_variable(str(model), "runs") == 8 * MICRO


class TestInTheBackground:
    def test_training_continues_while_the_input_is_uploaded(self, model, memory):
        gate, seen = PackGate(10), []

        def look(step: int) -> None:
            if step == 18:
                seen.append((committed_steps(memory), model_steps(model)))
                gate.open()

        train(model, BeforeWrites(memory, gate), 20, hooks=[EachStep(look)])
        assert seen == [([0], [0, 10])]
        assert committed_steps(memory) == [0, 10, 20]

    def test_the_checkpoint_has_the_digest_of_its_model(self, model, memory):
        train(model, memory, 20)
        found = read_model_checkpoints(str(model))
        for step in (10, 20):
            assert info_of(memory, step).context.model_digest == found.digest(step)

    def test_it_is_committed_after_the_model_is_written_however_long_that_takes(self, model, memory):
        seen = []

        def slow_model(step: int) -> None:
            time.sleep(0.3)
            seen.append(committed_steps(memory))

        train(model, memory, 20, listeners=[BeforeModelSave(slow_model)])
        assert seen[1:] == [[0], [0, 10]]

    def test_the_model_has_its_mark_before_the_upload_ends(self, model, memory):
        """At first without the digest of the model, and soon with it."""
        gate, store = PackGate(10), ic.CheckpointStore.open(memory, create=True)

        def marked() -> list[tuple[int, Optional[str]]]:
            return [(mark.ref.step, store.read_mark(mark).model_digest) for mark in store.marks("main")]

        def look(step: int) -> None:
            if step == 18:
                found = read_model_checkpoints(str(model))
                wait_until(lambda: marked() == [(10, found.digest(10))])
                gate.open()

        train(model, BeforeWrites(memory, gate), 20, hooks=[EachStep(look)])

    def test_a_save_that_is_skipped_leaves_a_mark(self, model, memory, caplog):
        gate = PackGate(10)
        actions: dict[int, Callable[[], object]] = {
            1: lambda: wait_until(lambda: committed_steps(memory) == [0]),
            11: lambda: gate.reached.wait(60),
            25: gate.open,
        }
        open_late = EachStep(lambda step: actions.get(step, lambda: None)())
        with caplog.at_level(logging.WARNING):
            train(model, BeforeWrites(memory, gate), 30, hooks=[open_late], when_busy="skip")
        assert "Input checkpoint at step 20 skipped" in caplog.text
        assert 20 in {mark.ref.step for mark in ic.CheckpointStore.open(memory).marks("main")}


class TestBeforeTheModel:
    def test_the_input_is_committed_before_each_model_is_written(self, model, memory):
        seen = []

        def look(step: int) -> None:
            seen.append((step, committed_steps(memory), latest_model_step(str(model))))

        slow = BeforeWrites(memory, lambda key: time.sleep(0.1) if key.startswith("packs/") else None)
        train(model, slow, 25, "before", listeners=[BeforeModelSave(look)])
        # The first is the one at which the session is created: its input is the beginning.
        assert seen[1:] == [(10, [0, 10], 0), (20, [0, 10, 20], 10), (25, [0, 10, 20, 25], 20)]

    def test_the_digest_of_an_older_model_of_the_same_step_is_not_stored(self, model, memory):
        train(model, memory, 20, "before")
        set_current_model(model, 10)
        train(model, memory, 10, "before")
        newest = ic.CheckpointStore.open(memory).newest("main")
        assert (newest.step, newest.context.model_digest) == (20, None)

    def test_if_the_input_cannot_be_stored_no_model_is_written(self, model, memory):
        forbidden = ic.BackendPermissionError("withdrawn")
        failing = Failing(memory, "create", "checkpoints/main/00000001/000000000010.", forbidden)
        with pytest.raises(ic.BackendPermissionError, match="withdrawn"):
            train(model, failing, 20, "before")
        assert latest_model_step(str(model)) == 0

    def test_a_tolerated_failure_leaves_a_mark(self, model, memory, caplog):
        forbidden = ic.BackendPermissionError("withdrawn")
        failing = Failing(memory, "create", "checkpoints/main/00000001/000000000010.", forbidden)
        with caplog.at_level(logging.WARNING):
            train(model, failing, 20, "before", on_save_failure="warn")
        assert "Input checkpoint for step 10" in caplog.text
        assert committed_steps(memory) == [0, 20]
        assert [mark.ref.step for mark in ic.CheckpointStore.open(memory).marks("main")] == [10]


class DrawsAt(tf.estimator.SessionRunHook):
    """Draws a batch in the raw session after the run of a step."""

    def __init__(self, step: int) -> None:
        self._at = step

    def begin(self) -> None:
        (resource,) = v1.get_collection("iterators")
        self._step = tf.identity(v1.train.get_global_step())
        self._ids = tf.raw_ops.IteratorGetNext(
            iterator=resource, output_types=[tf.int64], output_shapes=[[None]]
        )

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if run_context.session.run(self._step) == self._at:
            run_context.session.run(self._ids)


@pytest.mark.parametrize("mode", MODES)
def test_neither_the_model_nor_the_input_is_saved_after_a_draw_that_bypasses_the_hooks(model, memory, mode):
    with pytest.raises(ic.UntrackedDrawError):
        train_in_session(model, memory, mode, first=[DrawsAt(7)])
    assert committed_steps(memory) == [0]
    assert latest_model_step(str(model)) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hook_first", [False, True])
def test_a_save_counts_the_run_that_has_just_ended(model, memory, caplog, mode, hook_first):
    with caplog.at_level(logging.WARNING):
        train_in_session(model, memory, mode, hook_first=hook_first, steps=14)
    assert [info_of(memory, step).context.draws for step in (7, 14)] == [7, 14]
    assert "in the middle of a step" not in caplog.text


class SavesAfterEachRun(tf.estimator.SessionRunHook):
    """Saves the model after each run, also in the middle of a step, and stops training after some of them."""

    def __init__(self, model: Path, listener: Any, runs: int) -> None:
        self._path = str(model / "model.ckpt")
        self._listener = listener
        self._left = runs

    def begin(self) -> None:
        self._listener.begin()
        self._saver = v1.train.Saver()
        self._step = tf.identity(v1.train.get_global_step())

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._save(session)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._save(run_context.session)
        self._left -= 1
        if self._left == 0:
            run_context.request_stop()

    def _save(self, session: Any) -> None:
        step = session.run(self._step)
        self._listener.before_save(session, step)
        self._saver.save(session, self._path, global_step=step)
        self._listener.after_save(session, step)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_whose_model_is_saved_several_times_belongs_to_the_last_of_them(tmp_path, memory, mode):
    def accumulate(model: Path, runs: int) -> Any:
        model.mkdir(exist_ok=True)
        with v1.Graph().as_default():
            iterator = v1.data.make_initializable_iterator(shuffled_ids())
            v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
            op = accumulate_op(iterator.get_next())
            backend = f"{memory.uri}-{model.name}"
            hook = ic.SessionHook(model_dir=str(model), backend=backend, save_steps=1)
            saver = SavesAfterEachRun(model, hook.saving_listener(mode), runs)
            with v1.train.MonitoredTrainingSession(
                checkpoint_dir=str(model),
                save_checkpoint_steps=None,
                save_checkpoint_secs=None,
                hooks=[saver, hook],
            ) as session:
                while not session.should_stop():
                    session.run(op)
        return tf.train.load_variable(str(model), "run_history")

    for runs in (MICRO + 2, 3, MICRO + 1):
        found = accumulate(tmp_path / "model", runs)
    assert (found == accumulate(tmp_path / "reference", 2 * MICRO + 6)).all()


def test_digests_of_batches_are_taken_only_before_the_model_is_saved(model, memory, monkeypatch):
    asked: list[bool] = []
    expect = DrawGuard.expect

    def spy(guard: DrawGuard, arguments: Any, *, with_digests: bool = False) -> None:
        asked.append(with_digests)
        expect(guard, arguments, with_digests=with_digests)

    monkeypatch.setattr(DrawGuard, "expect", spy)
    train(model, memory, 25)
    assert [step for step, with_digests in enumerate(asked, 1) if with_digests] == [10, 20]


class TestRefused:
    @pytest.fixture
    def estimator(self, model: Path) -> Any:
        return make_estimator(model)

    def test_the_listener_without_its_hook(self, estimator, memory):
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
        with pytest.raises(RuntimeError, match=r"without its hook.*hooks=\[hook\], saving_listeners="):
            estimator.train(shuffled_ids, saving_listeners=[hook.saving_listener()], steps=10)

    def test_the_hook_without_its_listener(self, estimator, memory):
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
        hook.saving_listener()
        with pytest.raises(RuntimeError, match=r"nothing would be saved to memory://.*Pass the listener"):
            estimator.train(shuffled_ids, hooks=[hook], steps=10)

    def test_a_schedule_that_differs_from_that_of_the_model(self, estimator, memory):
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, save_steps=100)
        with pytest.raises(ValueError, match="leave out save_steps and save_secs"):
            hook.saving_listener()

    def test_the_same_schedule_as_that_of_the_model_is_accepted(self, estimator, memory):
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, save_steps=10)
        assert isinstance(hook.saving_listener(), tf.estimator.CheckpointSaverListener)

    def test_skipping_saves_that_no_model_may_be_without(self, estimator, memory):
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, when_busy="skip")
        with pytest.raises(ValueError, match="pass when_busy='wait'"):
            hook.saving_listener("before")

    def test_several_workers(self, memory):
        hook = ic.SessionHook(backend=memory, worker="worker-1", num_workers=2, save_steps=10)
        with pytest.raises(ValueError, match="on the chief only"):
            hook.saving_listener()

    def test_an_unknown_mode(self, estimator, memory):
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
        with pytest.raises(ValueError, match="mode must be 'background' or 'before', got 'after'"):
            hook.saving_listener("after")

    def test_two_modes_of_one_hook(self, estimator, memory):
        hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
        assert hook.saving_listener("before") is hook.saving_listener("before")
        with pytest.raises(ValueError, match="has a saving listener already, with mode='before'"):
            hook.saving_listener("background")


def training(model: Path, store: Path, listener: str, steps: int = 40, **settings: Any) -> Training:
    return Training(model, str(store), steps, listener=listener, **settings)


def manifest(step: int) -> str:
    return f"checkpoints/main/00000001/{step:012d}.manifest"


class TestKilled:
    """With SIGKILL. What was trained on is compared with an uninterrupted training."""

    def test_before_between_the_commit_of_the_input_and_the_model(self, model, store, reference: Steps):
        finish(training(model, store, "before", killed=InModelSave(20)))
        assert (store / manifest(20)).exists()
        assert latest_model_step(str(model)) == 10
        outcome = succeed(training(model, store, "before"))
        assert first_step(outcome.output) == 11
        assert trained_on(model) == reference[:40]
        assert [ref.lineage for ref in ic.CheckpointStore.open(str(store)).history("main")][-1] == 2

    def test_before_while_the_input_is_being_committed(self, model, store, reference: Steps):
        finish(training(model, store, "before", killed=BeforeWrite(manifest(20))))
        assert latest_model_step(str(model)) == 10
        outcome = succeed(training(model, store, "before"))
        assert first_step(outcome.output) == 11
        assert trained_on(model) == reference[:40]

    def test_before_the_model_of_a_pipeline_that_cannot_be_fast_forwarded_never_goes_back(self, model, store):
        settings: Any = {"pipeline": "sloppy", "options": {"external_state_policy": "ignore"}}
        finish(training(model, store, "before", killed=BeforeWrite(manifest(30)), **settings))
        outcome = succeed(training(model, store, "before", **settings))
        assert "Going back" not in outcome.output
        assert first_step(outcome.output) == 21
        ids = [example for batch in trained_on(model) for example in batch]
        assert len(ids) == len(set(ids)) == 160

    def test_background_between_the_snapshot_and_the_model(self, model, store, reference: Steps):
        finish(training(model, store, "background", killed=InModelSave(20)))
        assert not (store / manifest(20)).exists()
        assert latest_model_step(str(model)) == 10
        outcome = succeed(training(model, store, "background"))
        assert first_step(outcome.output) == 11
        assert trained_on(model) == reference[:40]

    def test_background_between_the_model_and_the_commit_of_the_input(self, model, store, reference: Steps):
        finish(training(model, store, "background", killed=BeforeWrite(manifest(20), model_at=20)))
        outcome = succeed(training(model, store, "background"))
        assert first_step(outcome.output) == 21
        assert trained_on(model) == reference[:40]

    def test_background_as_soon_as_the_model_is_written(self, model, store, reference: Steps):
        mark = f"checkpoints/main/00000001/{20:012d}-"
        finish(training(model, store, "background", killed=AfterModelSave(20, mark)))
        assert not (store / manifest(20)).exists()
        outcome = succeed(training(model, store, "background"))
        assert first_step(outcome.output) == 21
        assert trained_on(model) == reference[:40]

    def test_background_between_the_two_without_marks(self, model, store, reference: Steps):
        settings: Any = {"options": {"max_fast_forward": 0}}
        killed = BeforeWrite(manifest(20), model_at=20)
        finish(training(model, store, "background", killed=killed, **settings))
        outcome = succeed(training(model, store, "background", **settings))
        assert "Going back to step 10" in outcome.output
        assert first_step(outcome.output) == 11
        assert trained_on(model) == reference[:40]

    @pytest.mark.parametrize("mode", MODES)
    def test_in_the_save_with_which_a_session_begins(self, model, store, reference: Steps, mode):
        """TensorFlow saves the model of step 10 again before the input is restored."""
        finish(training(model, store, mode, killed=InModelSave(20)))
        before = sorted(path.name for path in store.rglob("*.manifest"))
        finish(training(model, store, mode, killed=InModelSave(10)))
        assert sorted(path.name for path in store.rglob("*.manifest")) == before
        outcome = succeed(training(model, store, mode))
        assert first_step(outcome.output) == 11
        assert trained_on(model) == reference[:40]
