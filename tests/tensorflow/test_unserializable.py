"""What TensorFlow can never serialize is refused before training begins, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number
from input_checkpoint.tensorflow.unserializable import check_serializable
from tests.support.batches import BATCHES
from tests.support.hooked_training import train
from tests.support.pipelines import PIPELINES, numbers, read
from tests.support.repeatability import table
from tests.support.training import make_estimator, shuffled_ids

v1 = tf.compat.v1
Dataset = tf.data.Dataset
experimental = tf.data.experimental
Build = Callable[[], Any]


def generated(*_: Any) -> Any:
    return Dataset.from_generator(lambda: iter(range(9)), output_signature=tf.TensorSpec([], tf.int64))


def generated_objects() -> Any:
    def rows() -> Any:
        for number in range(9):
            yield tf.ragged.constant([[1], [2, number]])

    return Dataset.from_generator(rows, output_signature=tf.RaggedTensorSpec([2, None], tf.int32))


def captured() -> Any:
    inner = generated()
    return numbers(3).flat_map(lambda number: inner)


GENERATORS: dict[str, Build] = {
    "from_generator": generated,
    "from_generator of composite tensors": generated_objects,
    "in flat_map": lambda: numbers(3).flat_map(generated),
    "in interleave": lambda: numbers(3).interleave(generated, cycle_length=2),
    "in parallel interleave": lambda: numbers(3).interleave(generated, 2, num_parallel_calls=2),
    "in a function inside a function": lambda: numbers(3).flat_map(
        lambda number: numbers(3).interleave(generated, cycle_length=2)
    ),
    "captured by a function": captured,
    "after concatenate": lambda: numbers(3).concatenate(generated()),
    "in zip": lambda: Dataset.zip((numbers(3), generated())),
    "below other transformations": lambda: generated().map(lambda n: n + 1).shuffle(3).batch(2).prefetch(1),
}
DEVICES: dict[str, Build] = {
    "prefetch_to_device": lambda: numbers(3).apply(experimental.prefetch_to_device("/cpu:0")),
    "copy_to_device": lambda: numbers(3).apply(experimental.copy_to_device("/cpu:0")),
}
SERVICES: dict[str, Build] = {
    "the tf.data service": lambda: numbers(3).apply(
        experimental.service.distribute("parallel_epochs", "grpc://localhost:1")
    ),
}


def refusal(build: Build, policy: str = "fail", one_shot: bool = False) -> str:
    """Return the message with which a pipeline is refused."""
    make = v1.data.make_one_shot_iterator if one_shot else v1.data.make_initializable_iterator
    with tf.Graph().as_default() as graph:
        make(build())
        with pytest.raises(ic.UnsupportedPipelineError) as raised:
            GraphIterators(graph, external_state_policy_number(policy))
    return str(raised.value)


@pytest.mark.parametrize("one_shot", [False, True])
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_python_generator_is_refused_wherever_it_is(kind: str, one_shot: bool) -> None:
    message = refusal(GENERATORS[kind], one_shot=one_shot)
    name = "OneShotIterator" if one_shot else "IteratorV2"
    assert message.startswith(
        f"Iterator {name} cannot be saved: it uses Dataset.from_generator, and TensorFlow cannot serialize "
        "GeneratorDataset. Read files or tensors instead"
    )


@pytest.mark.parametrize("kind", DEVICES)
def test_a_copy_to_a_device_is_refused(kind: str) -> None:
    assert "prefetch_to_device or copy_to_device" in refusal(DEVICES[kind])
    assert "Use prefetch instead" in refusal(DEVICES[kind])


def test_the_tfdata_service_is_refused() -> None:
    message = refusal(SERVICES["the tf.data service"])
    assert "uses the tf.data service" in message
    assert "DataServiceDataset" in message


@pytest.mark.parametrize("policy", ["fail", "warn", "ignore"])
def test_no_external_state_policy_changes_a_refusal(policy: str) -> None:
    assert "from_generator" in refusal(generated, policy)


def _run_in_turn(session: Any, *operations: Any) -> None:
    for _ in range(10):
        for operation in operations:
            session.run(operation)


@pytest.mark.parametrize("kind", {**GENERATORS, **DEVICES})
def test_tensorflow_cannot_serialize_what_is_refused(kind: str) -> None:
    with tf.Graph().as_default():
        iterator = v1.data.make_initializable_iterator({**GENERATORS, **DEVICES}[kind]())
        following = iterator.get_next()
        resource = iterator.initializer.inputs[1]
        saved = tf.raw_ops.SerializeIterator(resource_handle=resource, external_state_policy=1)
        with v1.Session() as session:
            session.run(iterator.initializer)
            with pytest.raises(tf.errors.UnimplementedError, match="does not support checkpointing"):
                _run_in_turn(session, saved.op, following)


@pytest.mark.parametrize("kind", {**PIPELINES, **BATCHES})
def test_what_tensorflow_can_serialize_is_not_refused(kind: str) -> None:
    build = {**PIPELINES, **BATCHES}[kind]
    check_serializable(read(build).values())
    if kind != "map with a table":
        check_serializable(read(build, one_shot=True).values())


def test_a_pipeline_that_only_cannot_be_fast_forwarded_is_not_refused(tmp_path: Path) -> None:
    never = {"generator", "prefetch to a device", "tf.data service"}
    for name, row in table(tmp_path).items():
        if name not in never:
            check_serializable(read(row.build).values())


def test_a_generator_that_a_function_runs_to_its_end_is_not_refused() -> None:
    def total(number: Any) -> Any:
        return generated().reduce(number, lambda so_far, each: so_far + each)

    check_serializable(read(lambda: numbers(3).map(total)).values())


def test_an_iterator_that_may_be_initialized_from_a_generator_is_not_refused() -> None:
    with tf.Graph().as_default() as graph:
        iterator = v1.data.Iterator.from_structure(tf.int64, [])
        iterator.make_initializer(numbers())
        iterator.make_initializer(generated())
        GraphIterators(graph, policy=2)


class CreatesSession(tf.estimator.SessionRunHook):
    def after_create_session(self, session: Any, coord: Any) -> None:
        raise AssertionError("a session was created")


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: generated().batch(4), id="a generator"),
        pytest.param(lambda: numbers(3).interleave(generated).batch(4), id="a generator in a function"),
        pytest.param(lambda: DEVICES["prefetch_to_device"]().batch(4), id="a copy to a device"),
        pytest.param(lambda: SERVICES["the tf.data service"]().batch(4), id="the tf.data service"),
    ],
)
def test_the_hook_refuses_before_a_session_is_created(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ic.UnsupportedPipelineError, match="cannot be saved"):
        train(tmp_path / "model", 1, build, hooks=[CreatesSession()], external_state_policy="ignore")


def test_the_refusal_of_a_strategy_names_it_and_the_wrapper(tmp_path: Path) -> None:
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    estimator = make_estimator(tmp_path / "model", train_distribute=strategy)
    hook = ic.CheckpointInputPipelineHook(estimator)
    with pytest.raises(ic.UnsupportedPipelineError) as raised:
        estimator.train(shuffled_ids, hooks=[hook, CreatesSession()])
    message = str(raised.value)
    assert "it uses OneDeviceStrategy, and TensorFlow cannot serialize GeneratorDataset" in message
    assert "input_checkpoint.checkpointable_input_fn(input_fn)" in message


def test_the_refusal_of_a_strategy_that_the_wrapper_does_not_support_says_so(tmp_path: Path) -> None:
    strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"], "CPU:0")
    estimator = make_estimator(tmp_path / "model", train_distribute=strategy)
    hook = ic.CheckpointInputPipelineHook(estimator)
    with pytest.raises(ic.UnsupportedPipelineError) as raised:
        estimator.train(ic.checkpointable_input_fn(shuffled_ids), hooks=[hook, CreatesSession()])
    assert "CentralStorageStrategy is not supported. Use MirroredStrategy" in str(raised.value)
