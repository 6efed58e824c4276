"""Saving and restoring an iterator with TensorFlow alone, to see what TensorFlow does with a pipeline."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tests.support.pipelines import Dataset, increment, numbers

v1 = tf.compat.v1
_IGNORE = 1
READ_AHEAD_SECONDS = 0.1
"""How long a pipeline that reads ahead gets to do so before its state is saved."""


class PlainIterator:
    """An iterator in a session of its own."""

    def __init__(self, session: Any, iterator: Any) -> None:
        self._session = session
        self._next = iterator.get_next()
        resource = iterator._iterator_resource
        state = tf.raw_ops.SerializeIterator(resource_handle=resource, external_state_policy=_IGNORE)
        self._save = tf.io.serialize_tensor(state)
        self._stored = v1.placeholder(tf.string, [])
        stored = tf.io.parse_tensor(self._stored, tf.variant)
        self._restore = tf.raw_ops.DeserializeIterator(resource_handle=resource, serialized=stored)

    def draw(self, count: int) -> list[Any]:
        """The next elements, fewer at the end of the input."""
        drawn = []
        with contextlib.suppress(tf.errors.OutOfRangeError):
            for _ in range(count):
                drawn.append(tf.nest.map_structure(_plain, self._session.run(self._next)))
        return drawn

    def save(self) -> bytes:
        state: bytes = self._session.run(self._save)
        return state

    def restore(self, state: bytes) -> None:
        self._session.run(self._restore, {self._stored: state})


@contextlib.contextmanager
def plain_iterator(build: Callable[[], Any]) -> Iterator[PlainIterator]:
    with tf.Graph().as_default(), v1.Session() as session:
        iterator = v1.data.make_initializable_iterator(build())
        plain = PlainIterator(session, iterator)
        session.run([v1.tables_initializer(), iterator.initializer])
        yield plain


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


def uninterrupted(build: Callable[[], Any], count: int) -> list[Any]:
    with plain_iterator(build) as iterator:
        return iterator.draw(count)


def resumed(
    build: Callable[[], Any],
    saved_at: int,
    count: int,
    then: Any = None,
    restored: Callable[[], object] = lambda: None,
) -> list[Any]:
    """The elements after ``saved_at``, from an iterator that was restored there.

    Args:
        then: the pipeline to restore into; the same one by default.
        restored: called when the iterator is restored, before anything is drawn from it.
    """
    with plain_iterator(build) as iterator:
        iterator.draw(saved_at)
        time.sleep(READ_AHEAD_SECONDS)
        state = iterator.save()
    with plain_iterator(then or build) as iterator:
        iterator.restore(state)
        restored()
        return iterator.draw(count - saved_at)


def mixture() -> Any:
    parts = [Dataset.range(10), Dataset.range(100, 140)]
    return Dataset.sample_from_datasets(parts, [0.5, 0.5], seed=3, stop_on_empty_dataset=False)


def shuffled(buffer: int) -> Any:
    return numbers(2000).shuffle(buffer, seed=1).batch(4)


def mapped(batch: int) -> Any:
    return numbers(1000).map(increment, num_parallel_calls=4).batch(batch)


def interleaved(cycle: int, parallel: Optional[int] = None) -> Any:
    return numbers(8).interleave(lambda number: Dataset.range(30), cycle, num_parallel_calls=parallel)


# What ends the process or never ends: for a process of its own, which prints what it draws.
DANGEROUS: dict[str, Callable[[], list[Any]]] = {
    "mixture": lambda: resumed(mixture, 30, 60, restored=lambda: print("restored", flush=True)),
    "shuffle": lambda: resumed(lambda: shuffled(1000), 10, 30, then=lambda: shuffled(500)),
    "map and batch": lambda: resumed(lambda: mapped(3), 10, 60, then=lambda: mapped(16)),
}

if __name__ == "__main__":
    print(json.dumps(DANGEROUS[sys.argv[1]]()))
