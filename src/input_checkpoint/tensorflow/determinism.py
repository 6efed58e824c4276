"""Whether another process draws the same batches from a restored pipeline, judged by the graph alone.

What the graph does not show, such as files that have changed, is not judged here. `OBSTACLES` is the table in
docs/pipelines.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Callable, Optional

from google.protobuf.message import DecodeError
from tensorflow.core.framework import dataset_options_pb2

from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.dataset_operations import DatasetOperation, dataset_kind
from input_checkpoint.tensorflow.external_state import HARMLESS_TYPES, SAVED_WITH_THE_ITERATOR
from input_checkpoint.tensorflow.known_faults import find_faults
from input_checkpoint.tensorflow.random_datasets import (
    callers_of_random_functions,
    reads_random,
    restarts_at_random,
)

_POLICY_FAIL = 2
# As in `external_state_policy_number`.

REPEATABLE_KINDS = frozenset(
    (
        "Argument",
        "AssertCardinality",
        "Batch",
        "CSV",
        "Cache",
        "Concatenate",
        "DenseToSparseBatch",
        "DirectedInterleave",
        "ExperimentalGroupByReducer",
        "Filter",
        "FixedLengthRecord",
        "FlatMap",
        "GroupByWindow",
        "IgnoreErrors",
        "Interleave",
        "LegacyParallelInterleave",
        "Map",
        "MapAndBatch",
        "Options",
        "PaddedBatch",
        "ParallelBatch",
        "ParallelInterleave",
        "ParallelMap",
        "ParseExample",
        "Prefetch",
        "RaggedTensorToVariant",
        "Random",
        "Range",
        "Rebatch",
        "Repeat",
        "Rewrite",
        "Scan",
        "SerializeManySparse",
        "SerializeSparse",
        "Shard",
        "Shuffle",
        "ShuffleAndRepeat",
        "Skip",
        "TFRecord",
        "Take",
        "TakeWhile",
        "Tensor",
        "TensorSlice",
        "TextLine",
        "Unbatch",
        "Unique",
        "Window",
        "Zip",
    )
)
"""Datasets that were tested: a restored one returns the same elements in another process."""

_OUTSIDE = {
    "DataService": "the tf.data service",
    "Generator": "`from_generator`, `prefetch_to_device` or `copy_to_device`",
}
_PYTHON = frozenset(("EagerPyFunc", "PyFunc"))
_TABLES = frozenset(("HashTable", "HashTableV2"))
"""Lookup tables that do not change any more once they are initialized."""
_LOOKUPS = frozenset(("LookupTableFind", "LookupTableFindV2"))
"""TensorFlow counts them as stateful, but not in its own check. The table is what matters."""
_PLACEHOLDERS = frozenset(("Placeholder", "PlaceholderV2", "PlaceholderWithDefault"))
_METHODS = {
    "LegacyParallelInterleave": "parallel_interleave",
    "ParallelBatch": "batch",
    "ParallelFilter": "filter",
    "ParallelInterleave": "interleave",
    "ParallelMap": "map",
    "ParseExample": "parse_example_dataset",
}
_RESTARTING = frozenset(("FlatMap", "Interleave", "ParallelInterleave"))
"""Datasets whose functions may shuffle without a seed: `ShuffleSeeds` sees that they are called again."""


@dataclass(frozen=True)
class Obstacle:
    """One reason why another process may draw other batches."""

    what: str
    """What the pipeline does."""
    such_as: str
    """What the user may have written."""
    cure: str
    """What to change. Empty if there is nothing."""
    find: Callable[[Pipeline], Optional[str]]
    """Returns what the pipeline has of it, such as ``map(deterministic=False)``, or None."""


def why_not_repeatable(pipeline: Optional[Pipeline], policy: int) -> Optional[str]:
    """Return why a restored pipeline may return other batches in a new process, or None if it cannot.

    A pipeline that `restarts_at_random` is repeatable up to its next pass.

    Args:
        pipeline: as `read_pipelines` returns it. None if it returns none for an iterator.
        policy: a number from `external_state_policy_number`.

    Returns:
        The reason, and what to change if there is something. Begins in lower case and ends with a period.

    Example:
        ``it returns elements in any order (map(deterministic=False)). Remove that setting.``
    """
    if pipeline is None:
        return "its graph does not show what it reads. Initialize it with an operation of the same graph."
    for obstacle in OBSTACLES:
        found = obstacle.find(pipeline)
        if found is not None:
            return f"it {obstacle.what} ({found}). {obstacle.cure}".rstrip()
    for fault in find_faults(pipeline):
        return f"it uses {fault.pipeline}. {fault.fault} {fault.cure}"
    if policy != _POLICY_FAIL:
        return (
            "TensorFlow does not check whether it has state that is not saved. Leave out "
            "external_state_policy, or pass 'fail'."
        )
    return None


def repeatable_table() -> str:
    """Return `OBSTACLES` as the table in docs/pipelines.md."""
    rows = [f"| {each.what} | {each.such_as} | {each.cure or '-'} |" for each in OBSTACLES]
    return "\n".join(("| the pipeline … | such as | what to change |", "|---|---|---|", *rows))


def _operations(pipeline: Pipeline) -> Iterator[DatasetOperation]:
    for operations in pipeline.every_level():
        yield from operations


def _unordered(pipeline: Pipeline) -> Optional[str]:
    for operation in _operations(pipeline):
        options = _options(operation)
        if not options.is_known:
            return "tf.data.Options of another version of TensorFlow"
        if options.deterministic is False:
            return "tf.data.Options.deterministic=False"
        method = _METHODS.get(operation.kind, operation.kind)
        if operation.constant("deterministic") in (b"false", False):
            return f"{method}(deterministic=False)"
        if (
            "sloppy" in {**operation.arguments, **operation.attributes}
            and operation.constant("sloppy") is not False
        ):
            return f"{method}(sloppy=True)"
    return None


@dataclass(frozen=True)
class _Options:
    deterministic: Optional[bool] = None
    symbolic_checkpoint: bool = False
    is_known: bool = True


def _options(operation: DatasetOperation) -> _Options:
    serialized = operation.constant("serialized_options")
    if not isinstance(serialized, bytes):
        return _Options()
    try:
        options = dataset_options_pb2.Options.FromString(serialized)
    except DecodeError:
        return _Options(is_known=False)
    is_set = options.WhichOneof("optional_deterministic") is not None
    return _Options(options.deterministic if is_set else None, options.symbolic_checkpoint)


def _symbolic_checkpoint(pipeline: Pipeline) -> Optional[str]:
    if any(_options(operation).symbolic_checkpoint for operation in _operations(pipeline)):
        return "tf.data.Options.experimental_symbolic_checkpoint"
    return None


def _outside(pipeline: Pipeline) -> Optional[str]:
    return next((_OUTSIDE[each.kind] for each in _operations(pipeline) if each.kind in _OUTSIDE), None)


def _python(pipeline: Pipeline) -> Optional[str]:
    return _listed(pipeline.stateful_types() & _PYTHON)


def _external_state(pipeline: Pipeline) -> Optional[str]:
    stateful = {each for each in pipeline.stateful_types() if not dataset_kind(each)}
    return _listed(stateful - HARMLESS_TYPES - SAVED_WITH_THE_ITERATOR - _LOOKUPS)


def _fed(pipeline: Pipeline) -> Optional[str]:
    return _listed(_computed_from(pipeline) & _PLACEHOLDERS)


def _computed(pipeline: Pipeline) -> Optional[str]:
    return _listed(_computed_from(pipeline) - HARMLESS_TYPES - SAVED_WITH_THE_ITERATOR - _TABLES)


def _computed_from(pipeline: Pipeline) -> frozenset[str]:
    return frozenset[str]().union(*(operation.computed_from for operation in _operations(pipeline)))


def _files(pipeline: Pipeline) -> Optional[str]:
    for operations in pipeline.every_level():
        for operation in operations:
            if operation.kind == "Snapshot":
                return "snapshot"
            is_in_memory = operation.kind != "Cache" or operation.constant("filename") == b""
            if not is_in_memory and reads_random(operations, operation):
                return "cache(file) after a shuffle without a seed"
    return None


def _unseen(pipeline: Pipeline) -> Optional[str]:
    types: frozenset[str] = frozenset()
    for operation in _operations(pipeline):
        for function in operation.functions.values():
            types |= function.unseen_types
    return _listed(types)


def _several(pipeline: Pipeline) -> Optional[str]:
    return f"{pipeline.datasets} datasets" if pipeline.datasets > 1 else None


def _random_functions(pipeline: Pipeline) -> Optional[str]:
    return _listed(
        caller.kind
        for caller in callers_of_random_functions(pipeline.operations)
        if caller.kind not in _RESTARTING
    )


def _untested(pipeline: Pipeline) -> Optional[str]:
    return _listed(each.kind for each in _operations(pipeline) if each.kind not in REPEATABLE_KINDS)


def _listed(names: Iterable[str]) -> Optional[str]:
    return ", ".join(sorted(set(names))) or None


OBSTACLES = (
    Obstacle(
        what="returns elements in any order",
        such_as="`deterministic=False` or `sloppy=True`, as an argument or in `tf.data.Options`",
        cure="Remove that setting.",
        find=_unordered,
    ),
    Obstacle(
        what="gets elements from a Python generator, another device or the tf.data service",
        such_as="`from_generator`, `prefetch_to_device`",
        cure="Read files or tensors instead.",
        find=_outside,
    ),
    Obstacle(
        what="calls Python code",
        such_as="`py_function`, `numpy_function`",
        cure="Use TensorFlow operations. If the result depends on the arguments alone, use"
        " `numpy_function(stateful=False)`.",
        find=_python,
    ),
    Obstacle(
        what="uses state that is not saved",
        such_as="random numbers or variables in `map`",
        cure="Use stateless operations such as `tf.random.stateless_uniform`, with seeds from the elements.",
        find=_external_state,
    ),
    Obstacle(
        what="is initialized with values that are fed",
        such_as="`from_tensor_slices(placeholder)`",
        cure="Use constants or files.",
        find=_fed,
    ),
    Obstacle(
        what="depends on random numbers, variables or other state when it is initialized",
        such_as="`range(tf.random.uniform(...))`, mutable lookup tables",
        cure="Use constants.",
        find=_computed,
    ),
    Obstacle(
        what="reads what an earlier pass has written",
        such_as="`snapshot`; `cache(file)` after a `shuffle` without a seed",
        cure="Use `cache()`, or shuffle after `cache(file)`.",
        find=_files,
    ),
    Obstacle(
        what="reads a dataset inside a function that does not return it",
        such_as="`reduce` inside `map`",
        cure="Use `flat_map`, and return the dataset.",
        find=_unseen,
    ),
    Obstacle(
        what="can be initialized from several datasets",
        such_as="`Iterator.from_structure`",
        cure="Use one iterator for each dataset.",
        find=_several,
    ),
    Obstacle(
        what="has a `shuffle` without a seed in a function of another transformation than "
        "`flat_map` or `interleave`",
        such_as="`group_by_window`",
        cure="Set its seed.",
        find=_random_functions,
    ),
    Obstacle(
        what="is saved without its buffers",
        such_as="`experimental_symbolic_checkpoint` in `tf.data.Options`",
        cure="Remove that setting.",
        find=_symbolic_checkpoint,
    ),
    Obstacle(
        what="uses a transformation that has not been tested for this",
        such_as="`SqlDataset`",
        cure="",
        find=_untested,
    ),
)
"""The table, in the order in which it is checked."""

__all__ = ["OBSTACLES", "REPEATABLE_KINDS", "repeatable_table", "restarts_at_random", "why_not_repeatable"]
