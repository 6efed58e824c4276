"""Refuses the pipelines that TensorFlow can never serialize, before training begins.

They are recognized in the graph alone. TensorFlow itself raises an error when it serializes them, which may
be long after the first step: a generator inside ``interleave`` or after ``concatenate`` has no state before
it is drawn from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

import tensorflow as tf

from input_checkpoint.errors import UnsupportedPipelineError
from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.dataset_operations import DatasetOperation
from input_checkpoint.tensorflow.distributed_input import strategy_name, why_not_one_iterator

_GENERATOR = "Generator"
"""The kind of dataset that ``from_generator``, copies to devices and strategies are made of."""


@dataclass(frozen=True)
class Unserializable:
    """One kind of dataset operation that TensorFlow cannot serialize."""

    kind: str
    """As `DatasetOperation.kind`."""
    calls: frozenset[str]
    """Types of operations of which its functions run one. Empty: whatever they run."""
    source: str
    """What the user wrote."""
    cure: str
    """What to write instead."""

    def matches(self, operation: DatasetOperation) -> bool:
        """Whether an operation is of this kind."""
        called = frozenset[str]().union(*(each.stateful_types for each in operation.functions.values()))
        return operation.kind == self.kind and (not self.calls or not self.calls.isdisjoint(called))


_FROM_STRATEGY = Unserializable(
    kind=_GENERATOR,
    calls=frozenset(("MultiDeviceIteratorFromStringHandle", "MultiDeviceIteratorGetNextFromShard")),
    source="tf.distribute",
    cure="Wrap the input_fn: estimator.train(input_checkpoint.checkpointable_input_fn(input_fn), ...).",
)

UNSERIALIZABLE = (
    _FROM_STRATEGY,
    Unserializable(
        kind=_GENERATOR,
        calls=frozenset(("EagerPyFunc", "PyFunc")),
        source="Dataset.from_generator",
        cure="Read files or tensors instead, for example with TFRecordDataset or from_tensor_slices.",
    ),
    Unserializable(
        kind=_GENERATOR,
        calls=frozenset(("IteratorFromStringHandle", "IteratorFromStringHandleV2")),
        source="prefetch_to_device or copy_to_device",
        cure="Use prefetch instead.",
    ),
    Unserializable(
        kind=_GENERATOR,
        calls=frozenset(),
        source="a generator",
        cure="Read files or tensors instead.",
    ),
    Unserializable(
        kind="DataService",
        calls=frozenset(),
        source="the tf.data service",
        cure="Apply the transformations in the training process instead.",
    ),
)
"""All kinds, in the order in which they are looked for."""


def check_serializable(pipelines: Iterable[Pipeline]) -> None:
    """Raise UnsupportedPipelineError if TensorFlow can never serialize one of the pipelines.

    An iterator that can be initialized from several datasets is not judged: the graph does not show which of
    them training uses.

    Args:
        pipelines: as `read_pipelines` returns them.
    """
    for pipeline in pipelines:
        found = _find(pipeline) if pipeline.datasets == 1 else None
        if found is not None:
            raise UnsupportedPipelineError(_message(pipeline.iterator, found))


def _find(pipeline: Pipeline) -> Optional[Unserializable]:
    for operations in pipeline.every_level():
        for operation in operations:
            for row in UNSERIALIZABLE:
                if row.matches(operation):
                    return row
    return None


def _message(iterator: str, found: Unserializable) -> str:
    source, cure = found.source, found.cure
    if found is _FROM_STRATEGY and tf.distribute.has_strategy():
        strategy = tf.distribute.get_strategy()
        source, why_not = strategy_name(strategy), why_not_one_iterator(strategy)
        if why_not is not None:
            cure = f"{why_not}. Use MirroredStrategy, or train without a strategy."
    return (
        f"Iterator {iterator} cannot be saved: it uses {source}, and TensorFlow cannot serialize "
        f"{found.kind}Dataset. {cure}"
    )
