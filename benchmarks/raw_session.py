"""A pipeline in a plain session, for measurements without hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks.candidates import serialize_op
from benchmarks.pipelines import Pipeline
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number

v1 = tf.compat.v1


@dataclass(frozen=True)
class RawSession:
    """A session whose pipeline has filled its buffers."""

    session: Any
    iterators: GraphIterators
    saver: Any
    """The saver of the iterator's state that TensorFlow's hook uses."""
    batch: Any
    """The operation that draws a batch."""
    serialize: Any
    """See `serialize_op`."""

    def draw(self, batches: int) -> None:
        """Draw that many batches."""
        for _ in range(batches):
            self.session.run(self.batch)

    def save_as_tensorflow_does(self, folder: Path) -> str:
        """Save to a folder with TensorFlow's saver. Return the prefix of its files."""
        prefix: str = self.saver.save(self.session, str(folder / "input.ckpt"), write_meta_graph=False)
        return prefix


@contextlib.contextmanager
def raw_session(pipeline: Pipeline) -> Iterator[RawSession]:
    """Open a session that draws from a pipeline."""
    with v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(pipeline.dataset())
        batch = iterator.get_next().op
        saveable = tf.data.experimental.make_saveable_from_iterator(iterator)
        iterators = GraphIterators(graph, external_state_policy_number("fail"))
        serialize = serialize_op(iterator._iterator_resource)
        with v1.Session() as session:
            saver = v1.train.Saver([saveable], sharded=True)
            opened = RawSession(session, iterators, saver, batch, serialize)
            session.run(iterator.initializer)
            opened.draw(pipeline.batches_to_fill)
            yield opened
