"""Draws that bypass the hooks end in an error, or are not in the saved state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from tests.support.hooked_training import Steps, committed_steps, preempted
from tests.support.training import make_estimator, shuffled_ids, train_op, trained_on

v1 = tf.compat.v1

Step = Callable[[Any, Any, Any], object]
"""A step of a training loop: gets the step context, the next ids and the training operation."""


class Graph:
    """A graph that is trained in a session with a hook."""

    def __init__(self, model_dir: Path, backend: ic.Backend, hooks: tuple[Any, ...] = ()) -> None:
        self.iterator = v1.data.make_initializable_iterator(shuffled_ids())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, self.iterator.initializer)
        self.ids = self.iterator.get_next()
        self.op = train_op(self.ids)
        hook = ic.SessionHook(model_dir=str(model_dir), backend=backend, save_steps=5)
        self.session = v1.train.MonitoredTrainingSession(
            checkpoint_dir=str(model_dir), save_checkpoint_steps=5, hooks=[hook, *hooks]
        )


def train(
    model_dir: Path, backend: ic.Backend, step: Optional[Step], steps: int, hooks: tuple[Any, ...] = ()
) -> None:
    """Train in a session, each step in a function that gets the raw session. None: without one."""
    with v1.Graph().as_default():
        graph = Graph(model_dir, backend, hooks)
        with graph.session as session:
            for _ in range(steps):
                if step is None:
                    session.run(graph.op)
                else:
                    session.run_step_fn(lambda step_context: step(step_context, graph.ids, graph.op))


class Calls(tf.estimator.SessionRunHook):
    """Calls a function with the raw session and the iterator's next ids at one event."""

    def __init__(self, event: str, action: Callable[[Any, Any], object], at_run: int = 1) -> None:
        self._event = event
        self._action = action
        self._left = at_run

    def begin(self) -> None:
        (resource,) = v1.get_collection("iterators")
        self._ids = tf.raw_ops.IteratorGetNext(
            iterator=resource, output_types=[tf.int64], output_shapes=[[None]]
        )[0]

    def _call(self, event: str, session: Any) -> None:
        if event == self._event:
            self._left -= 1
            if self._left == 0:
                self._action(session, self._ids)

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._call("after_create_session", session)

    def before_run(self, run_context: Any) -> None:
        self._call("before_run", run_context.session)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._call("after_run", run_context.session)

    def end(self, session: Any) -> None:
        self._call("end", session)


def draw(session: Any, ids: Any) -> None:
    session.run(ids)


BYPASSING: dict[str, Step] = {
    "the step": lambda context, ids, op: (context.session.run(op), context.run_with_hooks(ids)),
    "a batch": lambda context, ids, op: (context.session.run(ids), context.run_with_hooks(op)),
    "a batch, by a callable": lambda context, ids, op: (
        context.session.make_callable(ids)(),
        context.run_with_hooks(op),
    ),
    "a batch, by a partial run": lambda context, ids, op: (
        context.session.partial_run(context.session.partial_run_setup([ids]), ids),
        context.run_with_hooks(op),
    ),
    "all but the step": lambda context, ids, op: (
        context.session.run(op),
        context.run_with_hooks(v1.train.get_global_step()),
    ),
}


class TestStepFunctions:
    @pytest.mark.parametrize("step", BYPASSING)
    def test_a_draw_before_the_restore_is_an_error(
        self, step: str, tmp_path: Path, memory: MemoryBackend
    ) -> None:
        train(tmp_path, memory, None, 5)
        before = committed_steps(memory)
        with pytest.raises(ic.UntrackedDrawError, match=r"before the input was restored.*run_with_hooks"):
            train(tmp_path, memory, BYPASSING[step], 5)
        assert committed_steps(memory) == before

    @pytest.mark.parametrize("step", BYPASSING)
    def test_a_draw_after_the_restore_is_an_error_and_not_saved(
        self, step: str, tmp_path: Path, memory: MemoryBackend, reference: Steps
    ) -> None:
        def regular_at_first(context: Any, ids: Any, op: Any) -> None:
            regular.append(1)
            if len(regular) <= 5:
                context.run_with_hooks(op)
            else:
                BYPASSING[step](context, ids, op)

        regular: list[int] = []
        with pytest.raises(ic.UntrackedDrawError, match="after global step 5"):
            train(tmp_path, memory, regular_at_first, 20)
        assert committed_steps(memory)[-1] == 5
        train(tmp_path, memory, None, 5)
        # The state of step 5 is that before the raw draw, although the two were at the same time.
        model = trained_on(tmp_path)
        assert model[:5] == reference[:5]
        assert model[-5:] == reference[5:10]

    def test_training_that_never_runs_a_hook_is_an_error(self, tmp_path: Path, memory: MemoryBackend) -> None:
        with pytest.raises(ic.UntrackedDrawError):
            train(tmp_path, memory, lambda context, ids, op: context.session.run(op), 3)

    def test_training_that_ends_without_its_hooks_is_an_error(
        self, tmp_path: Path, memory: MemoryBackend
    ) -> None:
        def hooked_once(context: Any, ids: Any, op: Any) -> None:
            (context.session.run if seen else context.run_with_hooks)(op)
            seen.append(1)

        seen: list[int] = []
        with pytest.raises(ic.UntrackedDrawError, match="after global step 1"):
            train(tmp_path, memory, hooked_once, 3)
        assert committed_steps(memory) == [0]

    def test_a_step_function_that_uses_the_hooks_resumes_exactly(
        self, tmp_path: Path, memory: MemoryBackend, reference: Steps
    ) -> None:
        def step(context: Any, ids: Any, op: Any) -> None:
            context.session.run(v1.train.get_global_step())
            context.run_with_hooks(op)

        for _ in range(2):
            train(tmp_path, memory, step, 7)
        assert trained_on(tmp_path) == reference[:14]

    def test_an_element_that_is_fed_to_the_raw_session_is_not_drawn(
        self, tmp_path: Path, memory: MemoryBackend, reference: Steps
    ) -> None:
        def step(context: Any, ids: Any, op: Any) -> None:
            context.session.run(ids, {ids: [1, 2, 3, 4]})
            context.run_with_hooks(op)

        for _ in range(2):
            train(tmp_path, memory, step, 7)
        assert trained_on(tmp_path) == reference[:14]


class TestHooks:
    @pytest.mark.parametrize(
        ("event", "ours_first"),
        [
            ("after_create_session", True),
            ("before_run", True),
            ("before_run", False),
            ("after_run", True),
            ("after_run", False),
        ],
    )
    def test_a_draw_by_another_hook_is_an_error(
        self, event: str, ours_first: bool, tmp_path: Path, memory: MemoryBackend
    ) -> None:
        estimator = make_estimator(tmp_path / "model")
        hooks = [ic.CheckpointInputPipelineHook(estimator, backend=memory), Calls(event, draw)]
        with pytest.raises(ic.UntrackedDrawError, match=r"return the fetch from before_run"):
            estimator.train(shuffled_ids, hooks=hooks if ours_first else hooks[::-1], steps=5)
        assert committed_steps(memory) in ([], [0])

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_a_draw_for_the_last_report_is_not_in_the_saved_state(
        self,
        ours_first: bool,
        tmp_path: Path,
        memory: MemoryBackend,
        reference: Steps,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for _ in range(2):
            estimator = make_estimator(tmp_path / "model")
            hooks = [ic.CheckpointInputPipelineHook(estimator, backend=memory), Calls("end", draw)]
            with caplog.at_level(logging.WARNING, "input_checkpoint"):
                estimator.train(shuffled_ids, hooks=hooks if ours_first else hooks[::-1], steps=7)
        assert ("checkpoint of step 7 in" in caplog.text) is not ours_first
        assert trained_on(tmp_path / "model") == reference[:14]

    def test_tensorflows_own_hooks_draw_nothing(
        self, tmp_path: Path, memory: MemoryBackend, reference: Steps, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            estimator = make_estimator(
                tmp_path / "model", log_step_count_steps=2, save_summary_steps=3, save_checkpoints_steps=4
            )
            hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
            step = "global_step"
            with v1.Graph().as_default():
                profiler = v1.train.ProfilerHook(save_steps=5, output_dir=str(tmp_path / "profile"))
            others = [
                profiler,
                v1.train.LoggingTensorHook([step], every_n_iter=2, at_end=True),
                v1.train.FinalOpsHook(step),
                v1.train.NanTensorHook("Const:0"),
                v1.train.GlobalStepWaiterHook(0),
                v1.train.FeedFnHook(dict),
            ]
            with caplog.at_level(logging.WARNING, "input_checkpoint"):
                estimator.train(shuffled_ids, hooks=[*others[:3], hook, *others[3:]], steps=10)
        assert [record for record in caplog.records if record.name.startswith("input_checkpoint")] == []
        assert trained_on(tmp_path / "model") == reference[:20]

    def test_a_logging_hook_may_draw_for_its_last_line(
        self, tmp_path: Path, memory: MemoryBackend, reference: Steps
    ) -> None:
        for _ in range(2):
            estimator = make_estimator(tmp_path / "model")
            log = v1.train.LoggingTensorHook(["IteratorGetNext"], every_n_iter=3, at_end=True)
            hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
            estimator.train(shuffled_ids, hooks=[log, hook], steps=7)
        assert trained_on(tmp_path / "model") == reference[:14]

    def test_a_hook_may_draw_by_a_run_with_hooks(
        self, tmp_path: Path, memory: MemoryBackend, reference: Steps
    ) -> None:
        class Sees(tf.estimator.SessionRunHook):
            def before_run(self, run_context: Any) -> Any:
                return v1.train.SessionRunArgs("IteratorGetNext:0")

        for _ in range(2):
            estimator = make_estimator(tmp_path / "model")
            hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
            estimator.train(shuffled_ids, hooks=[Sees(), hook, Sees()], steps=7)
        assert trained_on(tmp_path / "model") == reference[:14]

    def test_two_hooks_watch_one_session(
        self, tmp_path: Path, memory: MemoryBackend, reference: Steps
    ) -> None:
        for _ in range(2):
            estimator = make_estimator(tmp_path / "model")
            hooks = [
                ic.CheckpointInputPipelineHook(estimator, backend=memory),
                ic.CheckpointInputPipelineHook(estimator, backend=tmp_path / "second"),
            ]
            estimator.train(shuffled_ids, hooks=hooks, steps=7)
        assert trained_on(tmp_path / "model") == reference[:14]


class TestValidation:
    """Another iterator may be drawn from in any way."""

    @pytest.mark.parametrize("trained_by_handle", [True, False])
    @pytest.mark.parametrize("validated_by_handle", [True, False])
    def test_a_hook_validates_with_the_raw_session(
        self,
        trained_by_handle: bool,
        validated_by_handle: bool,
        tmp_path: Path,
        memory: MemoryBackend,
        reference: Steps,
    ) -> None:
        for _ in range(2):
            self.train_and_validate(tmp_path, memory, trained_by_handle, validated_by_handle)
        assert trained_on(tmp_path) == reference[:14]

    @pytest.mark.parametrize("trained_by_handle", [True, False])
    def test_a_hook_draws_from_the_iterator_of_the_training_by_its_handle(
        self, trained_by_handle: bool, tmp_path: Path, memory: MemoryBackend
    ) -> None:
        with pytest.raises(ic.UntrackedDrawError):
            self.train_and_validate(tmp_path, memory, trained_by_handle, True, wrong_handle=True)

    @staticmethod
    def train_and_validate(
        model_dir: Path,
        backend: ic.Backend,
        trained_by_handle: bool,
        validated_by_handle: bool,
        wrong_handle: bool = False,
    ) -> None:
        class Validates(tf.estimator.SessionRunHook):
            def after_create_session(self, session: Any, coord: Any) -> None:
                values = session.run([training.string_handle(), validation.string_handle()])
                feeds.extend({handle: value} for value in values)

            def after_run(self, run_context: Any, run_values: Any) -> None:
                run_context.session.run(validation.initializer)
                for _ in range(3):
                    feed = feeds[0 if wrong_handle else 1]
                    run_context.session.run(fed if validated_by_handle else other, feed)

        with v1.Graph().as_default():
            training = v1.data.make_one_shot_iterator(shuffled_ids())
            validation = v1.data.make_initializable_iterator(shuffled_ids(seed=9))
            v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, validation.initializer)
            handle = v1.placeholder(tf.string, [])
            fed = v1.data.Iterator.from_string_handle(handle, tf.int64, [None]).get_next()
            op = train_op(fed if trained_by_handle else training.get_next())
            other = validation.get_next()
            feeds: list[dict[Any, Any]] = []
            hook = ic.SessionHook(model_dir=str(model_dir), backend=backend, save_steps=3)
            with v1.train.MonitoredTrainingSession(
                checkpoint_dir=str(model_dir), save_checkpoint_steps=3, hooks=[hook, Validates()]
            ) as session:
                for _ in range(7):
                    session.run(op, feeds[0])


def test_a_recovered_session_is_watched_as_well(
    tmp_path: Path, memory: MemoryBackend, reference: Steps
) -> None:
    def draw_at_step_9(session: Any, ids: Any) -> None:
        if session.run(v1.train.get_global_step()) == 9:
            session.run(ids)

    drawing = [Calls("after_run", draw_at_step_9, at_run=run) for run in range(1, 20)]
    with pytest.raises(ic.UntrackedDrawError, match="after global step 9"):
        train(tmp_path, memory, None, 12, hooks=(preempted(7), *drawing))
    assert committed_steps(memory) == [0, 5]
    train(tmp_path, memory, None, 5)
    assert trained_on(tmp_path) == reference[:10]


def test_a_queue_that_is_filled_from_the_input_is_refused(tmp_path: Path, memory: MemoryBackend) -> None:
    def input_fn() -> Any:
        ids = v1.data.make_one_shot_iterator(tf.data.Dataset.range(100)).get_next()
        return v1.train.batch([ids], 4)

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
    with pytest.raises(ic.UnsupportedPipelineError, match="in a thread of its own"):
        estimator.train(input_fn, hooks=[hook], steps=5)
