"""All replicas of a strategy are fed from one iterator, which is saved and restored exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Optional

import numpy as np
import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.tensorflow import distributed_input
from tests.support import replicas
from tests.support.hooked_training import preempted
from tests.support.kills import Outcome, RunningTraining
from tests.support.replicas import ReplicaIds, ReplicatedTraining, trained_on_by_replica
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted

v1 = tf.compat.v1
Dataset = tf.data.Dataset


def training(folder: Path, **settings: Any) -> ReplicatedTraining:
    return ReplicatedTraining(folder / "model", str(folder / "store"), **settings)


def expected(steps: int, count: int = 2, build: Callable[[], Any] = replicas.ids_dataset) -> ReplicaIds:
    """Return what ``count`` replicas are trained on: each gets a batch of its own, in turn."""
    batches = replicas.drawn_ids(build, steps * count)
    nothing: ReplicaIds = [[[]] * (replicas.REPLICAS - count)]
    return [batches[step * count : (step + 1) * count] + nothing[0] for step in range(steps)]


def resume(interrupted: ReplicatedTraining, step: int = 12) -> Outcome:
    """Kill a training after a step, and train to the end."""
    replicas.kill(interrupted, step)
    return replicas.succeed(interrupted)


def first_step(outcome: Outcome) -> int:
    """Return the first step that a training ran."""
    return int(re.findall(r"^step (\d+)$", outcome.output, re.MULTILINE)[0])


class TestResume:
    """Training is killed after step 12, and continues at step 10."""

    @pytest.mark.parametrize("structure", replicas.STRUCTURES)
    def test_every_replica_gets_the_elements_of_an_uninterrupted_training(
        self, structure: str, tmp_path: Path
    ) -> None:
        interrupted = training(tmp_path, structure=structure, steps=20, step_seconds=0.02)
        assert first_step(resume(interrupted)) == 11
        assert trained_on_by_replica(interrupted.model_dir) == expected(20)

    @pytest.mark.parametrize(
        ("strategy", "count"), [("mirrored", 2), ("one device", 1), ("one worker", 1), ("none", 1)]
    )
    def test_a_local_init_op_of_the_user_need_not_initialize_the_input(
        self, strategy: str, count: int, tmp_path: Path
    ) -> None:
        interrupted = training(tmp_path, steps=20, strategy=strategy, own_local_init=True, step_seconds=0.02)
        assert first_step(resume(interrupted)) == 11
        assert trained_on_by_replica(interrupted.model_dir) == expected(20, count)

    def test_a_dataset_may_use_a_lookup_table(self, tmp_path: Path) -> None:
        interrupted = training(tmp_path, steps=20, with_table=True, step_seconds=0.02)
        assert first_step(resume(interrupted)) == 11
        assert trained_on_by_replica(interrupted.model_dir) == expected(20, build=replicas.looked_up)

    @pytest.mark.parametrize("batches", [36, 37])
    def test_finite_data_ends_at_the_same_step(self, batches: int, tmp_path: Path) -> None:
        interrupted = training(tmp_path, batches=batches, steps=100, step_seconds=0.02)
        resume(interrupted)
        found = trained_on_by_replica(interrupted.model_dir)
        assert found == expected(18, build=lambda: replicas.ids_dataset(batches))
        again = replicas.succeed(interrupted)
        assert "No step was run at global step 18" in again.output

    def test_rarely_saved_input_is_reached_from_a_mark(self, tmp_path: Path) -> None:
        interrupted = training(tmp_path, steps=30, options={"save_steps": 100}, step_seconds=0.02)
        replicas.kill(interrupted, 23, seconds=0.01)
        full = (tmp_path / "store" / "checkpoints" / "main" / "00000001").glob("*.manifest")
        assert [file.name for file in full] == [f"{0:012d}.manifest"]
        outcome = replicas.succeed(interrupted)
        assert first_step(outcome) == 21
        assert "cannot be marked" not in outcome.output
        assert trained_on_by_replica(interrupted.model_dir) == expected(30)

    def test_a_training_may_continue_with_another_number_of_replicas(self, tmp_path: Path) -> None:
        first = training(tmp_path, steps=10)
        replicas.succeed(first)
        replicas.succeed(dataclasses.replace(first, steps=30, strategy="one device"))
        found = [ids for step in trained_on_by_replica(first.model_dir) for ids in step if ids]
        assert found == replicas.drawn_ids(replicas.ids_dataset, 40)


def test_a_session_that_is_created_again_resumes(tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model", train_distribute=tf.distribute.OneDeviceStrategy("CPU:0"))
    hook = ic.CheckpointInputPipelineHook(estimator)
    wrapped = ic.checkpointable_input_fn(shuffled_ids)
    estimator.train(wrapped, hooks=[hook, preempted(17)], max_steps=30)
    assert trained_on(tmp_path / "model") == uninterrupted(shuffled_ids, 30, tmp_path / "reference")


def test_tensorflow_can_export_the_graph(caplog: pytest.LogCaptureFixture) -> None:
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with tf.Graph().as_default() as graph, strategy.scope():
        strategy.make_input_fn_iterator(lambda context: ic.checkpointable_input_fn(shuffled_ids)())
        v1.train.export_meta_graph(graph=graph)
    assert "Issue encountered when serializing" not in caplog.text


def test_the_dataset_is_made_once(tmp_path: Path) -> None:
    def count() -> Any:
        made.append(True)
        return np.int64(1000)

    def input_fn() -> Any:
        return Dataset.range(tf.reshape(tf.numpy_function(count, [], tf.int64), [])).batch(4)

    made: list[bool] = []
    estimator = make_estimator(tmp_path / "model", train_distribute=tf.distribute.OneDeviceStrategy("CPU:0"))
    hook = ic.CheckpointInputPipelineHook(estimator)
    estimator.train(ic.checkpointable_input_fn(input_fn), hooks=[hook], max_steps=3)
    assert made == [True]


@pytest.mark.parametrize(("batches", "steps"), [(None, 10), (13, 6)])
def test_the_replicas_get_what_the_strategy_itself_would_give_them(
    batches: Optional[int], steps: int, tmp_path: Path
) -> None:
    wrapped = training(tmp_path, steps=10, batches=batches)
    plain = dataclasses.replace(wrapped, model_dir=tmp_path / "plain", backend=None, is_wrapped=False)
    for each in (wrapped, plain):
        replicas.succeed(each)
    found = trained_on_by_replica(plain.model_dir)
    assert trained_on_by_replica(wrapped.model_dir) == found
    assert found == expected(steps, build=lambda: replicas.ids_dataset(batches))


def test_without_the_wrapper_the_hook_refuses_before_the_first_step(tmp_path: Path) -> None:
    outcome = replicas.finish(training(tmp_path, is_wrapped=False))
    assert "UnsupportedPipelineError" in outcome.error
    assert "it uses MirroredStrategy" in outcome.error
    assert "step 1" not in outcome.output


def test_several_workers_are_refused_before_the_first_step(tmp_path: Path) -> None:
    addresses = replicas.free_addresses(2)
    several = training(tmp_path, strategy="one worker")
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                RunningTraining(functools.partial(replicas.train_as_worker, several, addresses, index))
            )
            for index in range(2)
        ]
        # The first one to fail ends its server, at which the other one may fail before its hook begins.
        assert any(
            "MultiWorkerMirroredStrategy with several workers" in each.finish().error for each in workers
        )


@pytest.mark.parametrize("own_local_init", [False, True])
def test_a_wrapped_input_fn_can_be_evaluated(own_local_init: bool, tmp_path: Path) -> None:
    trained = training(tmp_path, steps=5)
    replicas.succeed(trained)
    evaluated = dataclasses.replace(trained, batches=6, own_local_init=own_local_init)
    assert "examples 24\n" in replicas.succeed(evaluated, replicas.evaluate).output


class TestWithoutAStrategy:
    def test_the_dataset_is_returned_as_it_is(self) -> None:
        with tf.Graph().as_default() as graph:
            dataset = Dataset.range(3)
            assert ic.checkpointable_input_fn(lambda: dataset)() is dataset
            assert graph.get_collection("iterators") == []

    def test_training_sees_the_same_examples(self, tmp_path: Path) -> None:
        make_estimator(tmp_path / "model").train(ic.checkpointable_input_fn(shuffled_ids), steps=10)
        assert trained_on(tmp_path / "model") == uninterrupted(shuffled_ids, 10, tmp_path / "reference")


class TestUnderAStrategy:
    """What the wrapper leaves alone."""

    def test_what_is_not_a_dataset_is_returned_as_it_is(self) -> None:
        with tf.Graph().as_default(), tf.distribute.OneDeviceStrategy("CPU:0").scope():
            features = tf.constant([1])
            assert ic.checkpointable_input_fn(lambda: features)() is features

    def test_eager_programs_get_the_dataset(self) -> None:
        dataset = Dataset.range(3)
        with tf.distribute.OneDeviceStrategy("CPU:0").scope():
            assert ic.checkpointable_input_fn(lambda: dataset)() is dataset

    def test_a_replica_gets_the_dataset(self) -> None:
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
        with tf.Graph().as_default(), strategy.scope():
            dataset = Dataset.range(3)
            found = strategy.extended.call_for_each_replica(ic.checkpointable_input_fn(lambda: dataset))
            assert found is dataset

    def test_several_workers_get_the_dataset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(distributed_input, "has_several_workers", lambda strategy: True)
        with tf.Graph().as_default(), tf.distribute.OneDeviceStrategy("CPU:0").scope():
            dataset = Dataset.range(3)
            assert ic.checkpointable_input_fn(lambda: dataset)() is dataset


@pytest.mark.parametrize("strategy", [tf.distribute.MirroredStrategy, v1.distribute.MirroredStrategy])
def test_strategies_have_the_names_that_users_know(strategy: Any) -> None:
    assert distributed_input.strategy_name(strategy()) == "MirroredStrategy"


@pytest.mark.parametrize(
    ("devices", "replicas_in_sync", "several"),
    [
        (["/job:localhost/task:0/device:CPU:0"], 1, False),
        (["/job:localhost/task:0/device:GPU:0", "/job:localhost/task:0/device:GPU:1"], 2, False),
        (["/job:worker/task:1/device:GPU:0", "/job:worker/task:1/device:GPU:1"], 4, True),
        (["/job:worker/task:0/device:GPU:0", "/job:worker/task:1/device:GPU:0"], 2, True),
    ],
)
def test_replicas_in_other_processes_are_other_workers(
    devices: list[str], replicas_in_sync: int, several: bool
) -> None:
    strategy = SimpleNamespace(
        num_replicas_in_sync=replicas_in_sync, extended=SimpleNamespace(worker_devices=devices)
    )
    assert distributed_input.has_several_workers(strategy) is several


class TestArguments:
    """Estimator passes the arguments that an ``input_fn`` names."""

    @staticmethod
    def passed(input_fn: Callable[..., Any], folder: Path) -> None:
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
        estimator = make_estimator(folder / "model", train_distribute=strategy)
        estimator.train(ic.checkpointable_input_fn(input_fn), steps=1)

    def test_none(self, tmp_path: Path) -> None:
        self.passed(lambda: shuffled_ids(), tmp_path)

    def test_input_context_and_mode(self, tmp_path: Path) -> None:
        seen: list[Any] = []

        def input_fn(mode: str, config: Any, input_context: Optional[Any] = None) -> Any:
            seen.extend((mode, config.train_distribute, input_context))
            return shuffled_ids()

        self.passed(input_fn, tmp_path)
        assert seen[0] == "train"
        assert isinstance(seen[1], tf.distribute.OneDeviceStrategy)
        assert seen[2].num_input_pipelines == 1

    def test_the_free_arguments_of_a_partial(self, tmp_path: Path) -> None:
        seen: list[Any] = []

        def input_fn(count: int, buffer: int, input_context: Optional[Any] = None) -> Any:
            seen.extend((count, buffer, input_context))
            return shuffled_ids(count, buffer)

        self.passed(functools.partial(input_fn, 50, buffer=20), tmp_path)
        assert seen[:2] == [50, 20]
        assert seen[2].num_replicas_in_sync == 1

    def test_methods_and_callable_objects(self, tmp_path: Path) -> None:
        class Input:
            def __init__(self) -> None:
                self.contexts: list[Any] = []

            def read(self, input_context: Any) -> Any:
                self.contexts.append(input_context)
                return shuffled_ids()

            def __call__(self, input_context: Any) -> Any:
                return self.read(input_context)

        source = Input()
        self.passed(source.read, tmp_path / "method")
        self.passed(source, tmp_path / "object")
        assert [context.input_pipeline_id for context in source.contexts] == [0, 0]

    def test_positional_arguments(self) -> None:
        assert ic.checkpointable_input_fn(lambda left, right: left - right)(5, 3) == 2

    def test_name_and_documentation_are_kept(self) -> None:
        wrapped = ic.checkpointable_input_fn(shuffled_ids)
        assert (wrapped.__name__, wrapped.__doc__) == (shuffled_ids.__name__, shuffled_ids.__doc__)


def test_a_session_without_an_estimator_resumes(tmp_path: Path) -> None:
    def ids(last_step: int) -> list[int]:
        seen: list[int] = []
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
        with tf.Graph().as_default(), strategy.scope():
            iterator = strategy.make_input_fn_iterator(lambda context: wrapped())
            fetches = [iterator.get_next() for _ in range(3)]
            step = v1.train.get_or_create_global_step().assign_add(1)
            hook = ic.SessionHook(model_dir=str(tmp_path / "model"), save_steps=5)
            with v1.train.MonitoredTrainingSession(
                checkpoint_dir=str(tmp_path / "model"),
                save_checkpoint_steps=5,
                save_checkpoint_secs=None,
                hooks=[hook, v1.train.StopAtStepHook(last_step=last_step)],
            ) as session:
                while not session.should_stop():
                    seen.extend(int(number) for number in session.run([*fetches, step])[:3])
        return seen

    wrapped = ic.checkpointable_input_fn(lambda: Dataset.range(1000))
    assert ids(7) + ids(12) == list(range(36))
