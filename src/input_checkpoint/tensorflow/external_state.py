"""Which state outside a pipeline TensorFlow restores although its own check refuses it."""

from __future__ import annotations

from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.dataset_operations import dataset_kind

SAVED_WITH_THE_ITERATOR = frozenset(
    (
        "AnonymousMemoryCache",
        "AnonymousSeedGenerator",
        "DummyMemoryCache",
        "DummySeedGenerator",
    )
)
"""Operations that a ``shuffle`` or ``cache`` inside a function makes. Its iterator saves what they hold."""
_HOLDING_STATE = frozenset(("Cache", "Shuffle", "ShuffleAndRepeat"))
# As in TensorFlow's own check (IsNodeStateful in tensorflow/core/data/captured_function.cc). What the
# functions of If and While run is looked at separately.
HARMLESS_TYPES = frozenset(("Assert", "If", "While"))


def is_saved_with_iterator(pipeline: Pipeline) -> bool:
    """Whether the functions of a pipeline use state outside it, and all of it is saved with the iterator.

    TensorFlow refuses a ``shuffle`` inside ``interleave`` as stateful, although it restores it exactly: its
    iterator saves the numbers that it has drawn from the seed generator. With the policy ``ignore`` nothing
    is lost then.
    """
    stateful = {
        each for each in pipeline.stateful_types() if not dataset_kind(each) and each not in HARMLESS_TYPES
    }
    return bool(stateful) and stateful <= SAVED_WITH_THE_ITERATOR and not _hides_state(pipeline)


def _hides_state(pipeline: Pipeline) -> bool:
    """Whether a function runs a ``shuffle`` or ``cache`` to its end itself, as with ``reduce`` in a ``map``.

    Such a dataset has no iterator in the pipeline that could save its state.
    """
    functions = (function for each in pipeline.operations for function in each.functions.values())
    unseen = {dataset_kind(each) or each for function in functions for each in function.unseen_types}
    return not unseen.isdisjoint(_HOLDING_STATE)
