"""Draws from an iterator without training, to reach the input that belongs to a model."""

from __future__ import annotations

from typing import Any, Optional

import tensorflow as tf

from input_checkpoint.errors import UnsupportedPipelineError
from input_checkpoint.tensorflow.batch_digest import batch_digest, digest_text, why_not_digestible
from input_checkpoint.tensorflow.restoring import restoring

v1 = tf.compat.v1

_RUN_SECONDS = 1.0
"""Python handles signals only between two runs of a session."""


class DiscardedDraws:
    """The operations that draw from one iterator without training.

    Create it before the graph is finalized.

    Args:
        resource: resource tensor of the iterator.
    """

    def __init__(self, resource: Any) -> None:
        operation = resource.op
        self._name = str(operation.name)
        self._resource = resource
        self._types = operation.get_attr("output_types")
        self._shapes = [tf.TensorShape(shape) for shape in operation.get_attr("output_shapes")]
        self._limit = v1.placeholder(tf.int64, [], name="limit")
        self._skipped = self._skip()
        batch = self._get_next()
        self._why_not = why_not_digestible(batch)
        self._digest: Optional[Any] = None if self._why_not else batch_digest(batch)

    def skip(self, session: Any, count: int) -> None:
        """Draw ``count`` elements in a session, one after another, and discard them.

        Raises:
            tf.errors.OutOfRangeError: the data ended before.
        """
        left = count
        while left > 0:
            with restoring():
                left -= int(session.run(self._skipped, {self._limit: left}))

    def draw(self, session: Any) -> str:
        """Draw one element in a session, and return its digest.

        Raises:
            UnsupportedPipelineError: such elements have no digest.
            tf.errors.OutOfRangeError: the data has ended.
        """
        if self._digest is None:
            raise UnsupportedPipelineError(f"Iterator {self._name!r}: {self._why_not}.")
        with restoring():
            text = digest_text(session.run(self._digest))
        if text is None:
            raise UnsupportedPipelineError(
                f"Iterator {self._name!r} returns values whose content TensorFlow cannot encode, such as "
                "datasets, so its elements have no digest."
            )
        return text

    def _get_next(self) -> Any:
        return tf.raw_ops.IteratorGetNext(
            iterator=self._resource, output_types=self._types, output_shapes=self._shapes
        )

    def _skip(self) -> Any:
        """Return how many elements were drawn: ``limit``, or fewer if a run would take too long."""
        deadline = tf.timestamp() + _RUN_SECONDS

        def has_time(drawn: Any) -> Any:
            in_time = tf.logical_or(tf.equal(drawn, 0), tf.timestamp() < deadline)
            return tf.logical_and(drawn < self._limit, in_time)

        def draw(drawn: Any) -> Any:
            with tf.control_dependencies(self._get_next()):
                return drawn + 1

        (drawn,) = tf.while_loop(has_time, draw, [tf.constant(0, tf.int64)], parallel_iterations=1)
        return drawn
