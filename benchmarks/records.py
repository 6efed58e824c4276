"""Input pipelines that read files, as most users' pipelines do, for trainings in new processes.

Making the elements would take longer than the start that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

from benchmarks import pipelines
from benchmarks.pipelines import Pipeline

_MORE_RECORDS = 2_000
"""The file has more elements than the buffer, so that some are new in every step."""


@dataclass(frozen=True)
class _Kind:
    """A kind of elements."""

    pipeline: Callable[[int], Pipeline]
    element: Callable[[Any], Any]
    """Returns the element with a number."""
    row: int
    """Numbers in an element. 0: an element is a string."""


KINDS = {
    "pictures": _Kind(pipelines.pictures, pipelines.jpeg, 0),
    "tokens": _Kind(pipelines.tokens, pipelines.token_row, pipelines.ROW_TOKENS),
    "vectors": _Kind(pipelines.vectors, pipelines.vector, pipelines.VECTOR_NUMBERS),
}


def write(kind: str, elements: int, path: Path) -> None:
    """Write a file for a buffer of that many elements."""
    numbers = tf.data.Dataset.range(elements + _MORE_RECORDS)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for element in numbers.map(KINDS[kind].element, num_parallel_calls=2).as_numpy_iterator():
            writer.write(element if isinstance(element, bytes) else element.tobytes())


def batches(kind: str, elements: int, path: Path) -> Any:
    """Return the dataset of batches, shuffled with a buffer of that many elements."""
    row = KINDS[kind].row

    def decode(record: Any) -> Any:
        return tf.reshape(tf.io.decode_raw(record, tf.int64), [row])

    def shuffled(pipeline: Pipeline) -> Any:
        records = tf.data.TFRecordDataset(str(path)).repeat()
        return (records.map(decode) if row else records).shuffle(pipeline.elements, seed=1)

    return replace(KINDS[kind].pipeline(elements), make=shuffled).dataset()
