"""Which datasets of a pipeline draw random numbers, and which of them start again with other ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.dataset_operations import DatasetOperation

RANDOM_KINDS = frozenset(("Random", "Shuffle", "ShuffleAndRepeat"))
"""Datasets that draw random numbers. Their iterators save the seeds of the present pass."""

READS_ITS_INPUT_ONCE = frozenset(
    (
        "Batch",
        "DirectedInterleave",
        "Filter",
        "FlatMap",
        "IgnoreErrors",
        "Interleave",
        "Map",
        "Options",
        "PaddedBatch",
        "ParallelBatch",
        "ParallelInterleave",
        "ParallelMap",
        "Prefetch",
        "Rebatch",
        "Scan",
        "Shard",
        "Skip",
        "Take",
        "TakeWhile",
        "Unbatch",
        "Window",
        "Zip",
    )
)
"""Datasets that create the iterator of their input once, together with their own.

The others create it again for each pass, or only when they are drawn from.
"""


def is_unseeded(operation: DatasetOperation) -> bool:
    """Whether a dataset draws random numbers with seeds that differ in each process."""
    seeds = [operation.constant(name) for name in ("seed", "seed2") if name in operation.arguments]
    return operation.kind in RANDOM_KINDS and all(seed == 0 for seed in seeds)


def restarts_at_random(pipeline: Pipeline) -> bool:
    """Whether a part of a pipeline may start again with random numbers that no other process can repeat.

    This is so for a ``shuffle`` without a seed below a ``repeat``, or inside a function of ``interleave``.
    Its state holds the seeds of the present pass, so that this pass can be repeated in another process. Those
    of the next pass are drawn when it begins. `ShuffleSeeds` recognizes that.

    Args:
        pipeline: as `read_pipelines` returns it.

    Example:
        ``range(9).shuffle(9)`` does not restart. ``range(9).shuffle(9).repeat()`` does, unless it has a seed.
    """
    inside = [level for level in pipeline.every_level() if level is not pipeline.operations]
    if any(is_unseeded(operation) for level in inside for operation in level):
        return True
    started_once = _started_once(pipeline.operations)
    return any(
        is_unseeded(operation) and (operation.kind == "ShuffleAndRepeat" or not started_once[index])
        for index, operation in enumerate(pipeline.operations)
    )


def count_random_iterators(pipeline: Pipeline) -> Optional[int]:
    """Return how many iterators with seeds the state of a pipeline holds at most.

    None if that depends on what is being read, because some are created by functions, or a dataset is read
    twice.
    """
    for level in pipeline.every_level():
        if level is not pipeline.operations and any(each.kind in RANDOM_KINDS for each in level):
            return None
    reads = [index for operation in pipeline.operations for index in operation.inputs]
    if len(reads) > len(set(reads)):
        return None
    return sum(operation.kind in RANDOM_KINDS for operation in pipeline.operations)


def callers_of_random_functions(
    operations: Sequence[DatasetOperation],
) -> Iterator[DatasetOperation]:
    """Yield the datasets at any depth whose functions return a dataset with random numbers without a seed."""
    for operation in operations:
        for function in operation.functions.values():
            if any(map(is_unseeded, function.operations)):
                yield operation
            yield from callers_of_random_functions(function.operations)


def reads_random(operations: Sequence[DatasetOperation], operation: DatasetOperation) -> bool:
    """Whether what a dataset reads, directly or not, is shuffled without a seed.

    Args:
        operations: all datasets of the same level.
        operation: one of them.
    """
    pending = list(operation.inputs)
    while pending:
        below = operations[pending.pop()]
        if is_unseeded(below) or any(callers_of_random_functions([below])):
            return True
        pending.extend(below.inputs)
    return False


def _started_once(operations: Sequence[DatasetOperation]) -> list[bool]:
    """Return for each dataset whether its iterator is created once, together with that of the pipeline."""
    found = [True] * len(operations)
    for index in reversed(range(len(operations))):
        operation = operations[index]
        is_once = found[index] and (
            operation.kind in READS_ITS_INPUT_ONCE
            or (operation.kind == "Repeat" and operation.constant("count") == 1)
        )
        for parent in operation.inputs:
            found[parent] = found[parent] and is_once
    return found
