"""Datasets whose elements have components of all kinds."""

from __future__ import annotations

from typing import Any, Callable

import tensorflow as tf

Dataset = tf.data.Dataset


def _cast(dtype: str) -> Callable[[], Any]:
    return lambda: Dataset.range(1, 40).map(lambda n: tf.cast(tf.fill([2, 3], n), dtype))


def _bits(dtype: str) -> Callable[[], Any]:
    """Types that TensorFlow cannot cast to."""
    return lambda: Dataset.range(1, 40).map(lambda n: tf.bitcast(tf.cast([n, n + 1], tf.int8), dtype))


def _sparse(number: Any) -> Any:
    return tf.sparse.from_dense(tf.eye(3, dtype=tf.int64) * number)


def _ragged(number: Any) -> Any:
    return tf.RaggedTensor.from_row_lengths(tf.range(number % 5 + 2), [number % 5, 2])


def _rows(number: Any) -> Any:
    return tf.fill([number % 4], number)


BATCHES: dict[str, Callable[[], Any]] = {
    **{
        name: _cast(name)
        for name in (
            *("bfloat16", "complex128", "complex64", "float16", "float32", "float64"),
            *("int16", "int32", "int64", "int8", "uint16", "uint32", "uint64", "uint8"),
        )
    },
    "qint8": _bits("qint8"),
    "quint8": _bits("quint8"),
    "bool": lambda: Dataset.range(1, 40).map(lambda n: tf.equal((n // [1, 2, 4, 8, 16, 32]) % 2, 1)),
    "scalars": lambda: Dataset.range(40),
    "strings": lambda: Dataset.range(40).map(lambda n: tf.strings.as_string([n, n + 1])),
    "a string": lambda: Dataset.range(40).map(tf.strings.as_string),
    "a dict": lambda: Dataset.range(40).map(lambda n: {"b": n, "a": tf.strings.as_string(n)}),
    "a nested structure": lambda: Dataset.range(40).map(lambda n: ({"a": (n, [n + 1, n])}, tf.fill([2], n))),
    "sparse": lambda: Dataset.range(1, 40).map(_sparse),
    "a batch of sparse": lambda: Dataset.range(1, 160).map(_sparse).batch(4),
    "ragged": lambda: Dataset.range(1, 40).map(lambda n: (_ragged(n), n)),
    "a batch of ragged": lambda: Dataset.range(1, 160).map(lambda n: (_ragged(n), n)).batch(4),
    "a batch of rows": lambda: Dataset.range(1, 160).map(_rows).ragged_batch(4),
    "a padded batch": lambda: Dataset.range(1, 160).map(_rows).padded_batch(4),
    "sparse and dense in a dict": lambda: Dataset.range(1, 40).map(lambda n: {"s": _sparse(n), "d": n}),
    "a large batch": lambda: Dataset.range(1, 400_000).batch(10_000),
    "many sparse": lambda: Dataset.range(1, 12_000).map(_sparse).batch(300),
}
"""At least 30 elements each, all different. With an iterator, each one is a batch."""
