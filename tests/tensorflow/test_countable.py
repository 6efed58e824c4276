"""The graph tells of some iterators that their draws cannot be counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Callable, Optional

import pytest
import tensorflow as tf

from input_checkpoint.tensorflow.batch_digest import BatchDigests
from input_checkpoint.tensorflow.countable import why_not_countable
from input_checkpoint.tensorflow.iterators import GraphIterators

v1 = tf.compat.v1
Dataset = tf.data.Dataset


@pytest.fixture(autouse=True)
def graph() -> Iterator[Any]:
    with v1.Graph().as_default() as graph:
        yield graph


def reason() -> Optional[str]:
    graph = v1.get_default_graph()
    # As with a second hook: what the first has added is not the training's.
    GraphIterators(graph, policy=2)
    return why_not_countable(graph, BatchDigests(graph))


def numbers() -> Any:
    return v1.data.make_initializable_iterator(Dataset.range(100))


def conditional(iterator: Any) -> Any:
    return tf.cond(v1.placeholder(tf.bool, []), iterator.get_next, lambda: tf.constant(0, tf.int64))


def conditional_v1(iterator: Any) -> Any:
    v1.disable_control_flow_v2()
    try:
        return conditional(iterator)
    finally:
        v1.enable_control_flow_v2()


def by_handle(handle: Any) -> Any:
    return v1.data.Iterator.from_string_handle(handle, tf.int64, []).get_next()


POSSIBLE: dict[str, Callable[[], Any]] = {
    "a plain draw": lambda: numbers().get_next(),
    "several iterators": lambda: (numbers().get_next(), numbers().get_next()),
    "an iterator that is never drawn from": numbers,
    "an iterator by handle": lambda: (numbers(), numbers(), by_handle(v1.placeholder(tf.string, []))),
    "a conditional beside a plain draw": lambda: (lambda one: (one.get_next(), conditional(one)))(numbers()),
}
IMPOSSIBLE: dict[str, tuple[Callable[[], Any], str]] = {
    "only a conditional": (
        lambda: conditional(numbers()),
        r"iterator 'IteratorV2': operation 'cond' \(If\) decides by itself how often it draws, so its draws",
    ),
    "only a conditional of TensorFlow 1": (
        lambda: conditional_v1(numbers()),
        "iterator 'IteratorV2': operation 'cond/IteratorGetNext' draws inside a conditional or a loop",
    ),
    "only a function": (lambda: tf.function(numbers().get_next)(), r"PartitionedCall\) decides by itself"),
    "one of several iterators": (
        lambda: (numbers().get_next(), conditional(numbers())),
        "iterator 'IteratorV2_1': operation 'cond'",
    ),
    "two iterators with one state": (
        lambda: [
            v1.data.Iterator.from_structure(tf.int64, [], shared_name="one").get_next() for _ in range(2)
        ],
        "iterator 'IteratorV2': it shares its state with iterator 'IteratorV2_1'",
    ),
}


@pytest.mark.parametrize("kind", POSSIBLE)
def test_draws_may_turn_out_to_be_certain(kind: str) -> None:
    POSSIBLE[kind]()
    assert reason() is None


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_draws_that_can_never_be_counted_have_a_reason(kind: str) -> None:
    build, expected = IMPOSSIBLE[kind]
    build()
    found = reason()
    assert found is not None
    assert re.search(expected, found)


def test_batches_without_a_digest_have_a_reason() -> None:
    # No dataset has such elements, but TensorFlow allows the operation.
    resource = numbers()._iterator_resource
    tf.raw_ops.IteratorGetNext(iterator=resource, output_types=[tf.resource], output_shapes=[[]])
    assert reason() == (
        "iterator 'IteratorV2': operation 'IteratorGetNext': a batch with components of type resource has no "
        "digest"
    )
