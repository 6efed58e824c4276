"""A constant has one digest, however a graph holds it, and a large one leaves no copy behind."""

from __future__ import annotations

import gc
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from blake3 import blake3

from input_checkpoint.tensorflow.dataset_graph import read_pipelines
from input_checkpoint.tensorflow.graph_constants import read_constant
from tests.support.pipelines import Dataset, numbers

MIB = 1 << 20
STATM = Path("/proc/self/statm")

KINDS = [
    tf.bfloat16,
    tf.bool,
    tf.complex64,
    tf.float16,
    tf.float32,
    tf.float64,
    tf.int8,
    tf.int64,
    tf.qint8,
    tf.uint16,
    tf.uint64,
]


def expected(value: Any, content: bytes) -> str:
    kind = "bytes" if value.dtype == object else value.dtype.str
    return blake3(f"{kind}{value.shape}".encode() + content).hexdigest(12)


@pytest.mark.parametrize("count", [0, 1, 3, 40], ids="{} values".format)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_digest_covers_type_shape_and_content(kind: Any, count: int) -> None:
    value = np.arange(count).astype(kind.as_numpy_dtype).reshape(count, 1)
    constant = read_constant(tf.make_tensor_proto(value, kind))
    assert constant.digest == expected(value, value.tobytes())
    assert constant.size == count


@pytest.mark.parametrize("count", [0, 1, 3, 5000], ids="{} values".format)
def test_the_digest_of_texts_covers_where_one_ends(count: int) -> None:
    texts = np.array([b"part-%d" % number for number in range(count)], object)
    framed = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    assert read_constant(tf.make_tensor_proto(texts, tf.string)).digest == expected(texts, framed)


@pytest.mark.parametrize("value", [b"", 0, 0.0], ids=repr)
def test_a_constant_without_values_may_hold_one_all_the_same(value: Any) -> None:
    kind = tf.as_dtype(np.asarray(value).dtype)
    held = tf.make_tensor_proto(value, kind)
    held.tensor_shape.dim.add().size = 0
    assert read_constant(held).digest == read_constant(tf.make_tensor_proto([], kind)).digest


@pytest.mark.parametrize("kind", [tf.float32, tf.int64, tf.bfloat16], ids=lambda kind: kind.name)
def test_a_value_that_is_written_once_for_all_places_has_the_digest_of_all_of_them(kind: Any) -> None:
    one = tf.make_tensor_proto(1, kind, [100], allow_broadcast=True)
    assert len(one.SerializeToString()) < 100
    value = np.ones(100, kind.as_numpy_dtype)
    assert read_constant(one).digest == expected(value, value.tobytes())


def test_a_text_that_is_written_once_for_all_places_has_the_digest_of_all_of_them() -> None:
    one = tf.make_tensor_proto("x", tf.string, [100], allow_broadcast=True)
    assert len(one.string_val) == 1
    assert read_constant(one) == read_constant(tf.make_tensor_proto(["x"] * 100, tf.string, [100]))


def test_the_order_in_memory_does_not_matter() -> None:
    value = np.arange(60.0).reshape(6, 10)
    assert read_constant(tf.make_tensor_proto(np.asfortranarray(value))) == read_constant(
        tf.make_tensor_proto(value)
    )


def test_only_a_small_constant_keeps_its_value() -> None:
    small, large = (read_constant(tf.make_tensor_proto(np.arange(count))) for count in (3, 3000))
    assert small.value is not None
    assert small.value.tolist() == [0, 1, 2]
    assert (large.value, large.size) == (None, 3000)


BIG = np.zeros(8 * MIB)
"""64 MiB."""


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: Dataset.from_tensor_slices(BIG), id="slices"),
        pytest.param(lambda: numbers().map(lambda number: tf.constant(BIG)[number]), id="inside a function"),
    ],
)
@pytest.mark.skipif(not STATM.exists(), reason="the memory of a process is read from /proc")
def test_a_large_constant_leaves_no_copy_behind(build: Any) -> None:
    with tf.Graph().as_default() as graph:
        tf.compat.v1.data.make_initializable_iterator(build())
        before = resident_bytes()
        pipelines = read_pipelines(graph, graph.get_collection("iterators"))
        after = resident_bytes()
    assert pipelines
    assert after - before < 32 * MIB


def resident_bytes() -> int:
    gc.collect()
    return int(STATM.read_text().split()[1]) * resource.getpagesize()
