"""The hook behaves as TensorFlow's own hook does. Each scenario runs on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import tensorflow as tf

import input_checkpoint as ic
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted

v1 = tf.compat.v1

MakeHook = Callable[..., Any]
HOOKS = {
    "tensorflow": tf.data.experimental.CheckpointInputPipelineHook,
    "ours": ic.CheckpointInputPipelineHook,
}


@pytest.fixture(params=sorted(HOOKS))
def make_hook(request: pytest.FixtureRequest) -> MakeHook:
    return HOOKS[request.param]


def initializable_iterator_in_input_fn() -> Any:
    iterator = v1.data.make_initializable_iterator(shuffled_ids())
    v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
    return iterator.get_next()


def one_shot_iterator_in_input_fn() -> Any:
    return v1.data.make_one_shot_iterator(shuffled_ids()).get_next()


def two_iterators_in_input_fn() -> Any:
    left = v1.data.make_one_shot_iterator(shuffled_ids(seed=1)).get_next()
    right = v1.data.make_one_shot_iterator(shuffled_ids(seed=2)).get_next()
    return left * 1000 + right


@pytest.mark.parametrize(
    "input_fn",
    [
        shuffled_ids,
        initializable_iterator_in_input_fn,
        one_shot_iterator_in_input_fn,
        two_iterators_in_input_fn,
    ],
)
def test_a_second_train_call_continues_where_the_first_one_stopped(
    make_hook: MakeHook, input_fn: Callable[[], Any], tmp_path: Path
) -> None:
    for _ in range(2):
        estimator = make_estimator(tmp_path / "model")
        estimator.train(input_fn, hooks=[make_hook(estimator)], steps=15)
    assert trained_on(tmp_path / "model") == uninterrupted(input_fn, 30, tmp_path / "reference")


def test_without_the_hook_the_input_starts_over(make_hook: MakeHook, tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model")
    estimator.train(shuffled_ids, hooks=[make_hook(estimator)], steps=10)
    estimator.train(shuffled_ids, steps=10)
    history = trained_on(tmp_path / "model")
    assert history[10:] == history[:10]


def test_evaluate_and_predict_between_train_calls_change_nothing(make_hook: MakeHook, tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model")
    for _ in range(2):
        estimator.train(shuffled_ids, hooks=[make_hook(estimator)], steps=10)
        estimator.evaluate(shuffled_ids, steps=3)
        next(estimator.predict(shuffled_ids))
    assert trained_on(tmp_path / "model") == uninterrupted(shuffled_ids, 20, tmp_path / "reference")


def test_a_graph_without_an_iterator_raises_a_value_error(make_hook: MakeHook, tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model")
    with pytest.raises(ValueError, match=r"no iterator|No variables|Saver"):
        estimator.train(lambda: tf.constant([1, 2, 3, 4], tf.int64), hooks=[make_hook(estimator)], steps=1)


def test_an_unknown_external_state_policy_raises_a_value_error(make_hook: MakeHook, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Supported values include 'warn', 'ignore', and 'fail\.'"):
        make_hook(make_estimator(tmp_path / "model"), "maybe")


@pytest.mark.parametrize("policy", ["fail", "warn", "ignore", None])
def test_every_known_external_state_policy_is_accepted_as_a_positional_argument(
    make_hook: MakeHook, policy: Any, tmp_path: Path
) -> None:
    estimator = make_estimator(tmp_path / "model")
    estimator.train(shuffled_ids, hooks=[make_hook(estimator, policy)], steps=1)


def test_a_run_config_that_never_saves_raises_a_value_error(make_hook: MakeHook, tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model", save_checkpoints_steps=None)
    with pytest.raises(ValueError, match="should be provided"):
        make_hook(estimator)


def test_external_state_is_refused_with_fail_and_dropped_with_ignore(
    make_hook: MakeHook, tmp_path: Path
) -> None:
    def input_fn() -> Any:
        noisy = tf.data.Dataset.range(100).map(lambda i: i + tf.random.uniform([], maxval=1, dtype=tf.int64))
        return noisy.batch(4)

    estimator = make_estimator(tmp_path / "model")
    with pytest.raises((tf.errors.FailedPreconditionError, ic.UnsupportedPipelineError), match="stateful"):
        estimator.train(input_fn, hooks=[make_hook(estimator, "fail")], steps=3)
    estimator.train(input_fn, hooks=[make_hook(estimator, "ignore")], steps=3)


def test_input_that_has_ended_does_not_silently_start_over(make_hook: MakeHook, tmp_path: Path) -> None:
    def input_fn() -> Any:
        return tf.data.Dataset.range(20).shuffle(20, seed=1).batch(4)

    for _ in range(2):
        estimator = make_estimator(tmp_path / "model")
        estimator.train(input_fn, hooks=[make_hook(estimator)])
    seen = [example for step in trained_on(tmp_path / "model") for example in step]
    assert sorted(seen) == list(range(20))
