"""The digest of a batch covers its values, shapes and types."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import pytest
import tensorflow as tf

from input_checkpoint.tensorflow.batch_digest import BatchDigests, batch_digest, digest_text
from tests.support.batches import BATCHES

v1 = tf.compat.v1
Dataset = tf.data.Dataset


def digests(build: Callable[[], Any], count: int) -> list[Any]:
    """The digests of the first batches, taken by the operation of the training."""
    with v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(build())
        iterator.get_next()
        tensor = BatchDigests(graph).tensor("IteratorGetNext")
        with v1.Session() as session:
            session.run(iterator.initializer)
            return [digest_text(session.run(tensor)) for _ in range(count)]


def digest_of(*values: Any) -> Any:
    with v1.Graph().as_default(), v1.Session() as session:
        return digest_text(session.run(batch_digest([tf.constant(value) for value in values])))


@pytest.mark.parametrize("kind", BATCHES)
def test_equal_batches_have_equal_digests_and_others_have_others(kind: str) -> None:
    first = digests(BATCHES[kind], 20)
    assert digests(BATCHES[kind], 20) == first
    assert len(set(first)) == 20
    assert all(len(text) == 32 and set(text) <= set("0123456789abcdef") for text in first)


DIFFERENT: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "a value": ((np.int32([1, 2]),), (np.int32([1, 3]),)),
    "the order": ((np.int32([1, 2]),), (np.int32([2, 1]),)),
    "the shape": ((np.int32([[1, 2]]),), (np.int32([[1], [2]]),)),
    "the rank": ((np.int32(1),), (np.int32([1]),)),
    "the type": ((np.int32([0, 0]),), (np.float32([0, 0]),)),
    "the order of components": ((np.int32(1), np.int32(2)), (np.int32(2), np.int32(1))),
    "where one component ends": ((np.int32([1]), np.int32([2, 3])), (np.int32([1, 2]), np.int32([3]))),
    "the number of components": ((np.int32(1),), (np.int32(1), np.int32(1))),
    "the shape of nothing": ((np.zeros([0, 2], np.int32),), (np.zeros([2, 0], np.int32),)),
    "the sign of zero": ((np.float32(0.0),), (np.float32(-0.0),)),
    "where one string ends": ((np.array([b"ab", b"c"]),), (np.array([b"a", b"bc"]),)),
    "an empty string": ((np.array([b"a"]),), (np.array([b"a", b""]),)),
    "a zero byte": ((np.array([b"a\0"], object),), (np.array([b"a"], object),)),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_a_different_batch_has_a_different_digest(difference: str) -> None:
    one, other = DIFFERENT[difference]
    assert digest_of(*one) != digest_of(*other)


@pytest.mark.parametrize("dtype", [tf.float32, tf.string, tf.int8, tf.bool])
@pytest.mark.parametrize("shape", [[0], [0, 3], [3, 0]])
def test_an_empty_component_always_has_the_same_digest(dtype: Any, shape: list[int]) -> None:
    """TensorFlow's own fingerprint of no strings is whatever the memory holds."""
    empty = np.zeros(shape, dtype.as_numpy_dtype)
    with v1.Graph().as_default(), v1.Session() as session:
        component = v1.placeholder(dtype, [None] * len(shape))
        tensor = batch_digest([component])
        noise = v1.placeholder(tf.uint8, [None])
        fills_memory = tf.reduce_sum(tf.cast(tf.bitwise.invert(noise), tf.int64))
        found = set()
        for number in range(200):
            session.run(fills_memory, {noise: np.full([8 if number % 2 else 64], number, np.uint8)})
            found.add(digest_text(session.run(tensor, {component: empty})))
    assert len(found) == 1


@pytest.mark.parametrize("build", [lambda: Dataset.range(1, 9).map(lambda n: tf.sparse.from_dense([0 * n]))])
def test_a_sparse_tensor_without_values_has_a_digest(build: Callable[[], Any]) -> None:
    assert len(set(digests(build, 3))) == 1


OPAQUE: dict[str, Callable[[], Any]] = {
    "datasets": lambda: Dataset.range(100).window(3),
    "datasets from map": lambda: Dataset.range(100).map(Dataset.range),
    "optionals": lambda: Dataset.range(100).map(tf.experimental.Optional.from_value),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_values_whose_content_tensorflow_does_not_encode_have_no_digest(kind: str) -> None:
    assert digests(OPAQUE[kind], 2) == [None, None]


def test_a_digest_draws_nothing_more() -> None:
    with v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(Dataset.range(100))
        batch = iterator.get_next()
        tensor = BatchDigests(graph).tensor("IteratorGetNext")
        with v1.Session() as session:
            session.run(iterator.initializer)
            assert [session.run([batch, tensor])[0] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_an_operation_in_a_conditional_has_no_digest() -> None:
    v1.disable_control_flow_v2()
    try:
        with v1.Graph().as_default() as graph:
            iterator = v1.data.make_initializable_iterator(Dataset.range(100))
            zero = tf.constant(0, tf.int64)
            tf.cond(v1.placeholder(tf.bool, []), iterator.get_next, lambda: zero)
            (operation,) = [op for op in graph.get_operations() if op.type == "IteratorGetNext"]
            assert BatchDigests(graph).tensor(operation.name) is None
    finally:
        v1.enable_control_flow_v2()


def test_a_second_hook_takes_no_digests_of_what_the_first_has_added() -> None:
    with v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(Dataset.range(100))
        with graph.name_scope("input_checkpoint"):
            own = iterator.get_next()
        assert BatchDigests(graph).tensor(own.op.name) is None
