"""The pipelines that TensorFlow itself restores wrongly, recognized from the graph before training starts.

Each row of `KNOWN_FAULTS` has a test that shows the fault with TensorFlow alone. A row goes when its test
fails.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

import tensorflow as tf

from input_checkpoint.errors import UnsupportedPipelineError
from input_checkpoint.tensorflow.dataset_graph import DatasetOperation, Pipeline

logger = logging.getLogger(__name__)

_POLICY_WARN = 0
_POLICY_IGNORE = 1
# The policies are those of `external_state_policy_number`.

Operations = Sequence[DatasetOperation]


@dataclass(frozen=True)
class KnownFault:
    """One kind of pipeline that TensorFlow restores wrongly."""

    pipeline: str
    """What the user wrote."""
    fault: str
    """What TensorFlow does with it."""
    cure: str
    """What to write instead."""
    loses_data: bool
    """Whether examples are lost or training does not end. Otherwise only their order changes."""
    is_in: Callable[[Operations], bool]
    """Whether the operations of a pipeline, or of one function inside it, are of this kind."""

    @property
    def outcome(self) -> str:
        """What happens under the policy ``'fail'``."""
        return "refused" if self.loses_data else "warning"

    def message(self, iterator: str) -> str:
        """Return what to tell the user."""
        return f"Iterator {iterator} uses {self.pipeline}. {self.fault} {self.cure}"


def check_known_faults(pipelines: Iterable[Pipeline], policy: int) -> None:
    """Refuse the pipelines that TensorFlow restores with a loss, and warn of those whose order it changes.

    Args:
        pipelines: as `read_pipelines` returns them.
        policy: a number from `external_state_policy_number`. ``'warn'`` turns refusals into warnings,
            ``'ignore'`` checks nothing.

    Raises:
        UnsupportedPipelineError: a pipeline loses data when it is restored. The message has the cure.
    """
    if policy == _POLICY_IGNORE:
        return
    for pipeline in pipelines:
        for fault in find_faults(pipeline):
            message = fault.message(pipeline.iterator)
            if fault.loses_data and policy != _POLICY_WARN:
                raise UnsupportedPipelineError(
                    f"{message} To train with this pipeline anyway, pass external_state_policy='warn'."
                )
            logger.warning("%s", message)


def warn_of_locked_caches(pipelines: Iterable[Pipeline]) -> None:
    """Warn of each ``cache(file)`` that a killed run has left locked, and name the file to delete.

    Args:
        pipelines: as `read_pipelines` returns them.
    """
    for pipeline in pipelines:
        for lock_file in _lock_files(pipeline):
            logger.warning(
                "The cache of iterator %s is locked by %s, so TensorFlow will not write to it. Delete that "
                "file if a killed run has left it behind, and no other process is writing to the cache.",
                pipeline.iterator,
                lock_file,
            )


def find_faults(pipeline: Pipeline) -> list[KnownFault]:
    """Return the rows of `KNOWN_FAULTS` that apply to a pipeline."""
    return [fault for fault in KNOWN_FAULTS if any(map(fault.is_in, pipeline.every_level()))]


def known_faults_table() -> str:
    """Return `KNOWN_FAULTS` as the table in docs/pipelines.md."""
    rows = [
        f"| {fault.pipeline} | {fault.fault} | {fault.cure} | {fault.outcome} |" for fault in KNOWN_FAULTS
    ]
    return "\n".join(
        ("| pipeline | what TensorFlow does | what to do | `'fail'` means |", "|---|---|---|---|", *rows)
    )


def _reads_csv_header(operations: Operations) -> bool:
    return any(each.kind == "CSV" and each.constant("header") is True for each in operations)


def _mixes_finite_datasets(operations: Operations) -> bool:
    return any(
        each.kind == "DirectedInterleave"
        and each.constant("stop_on_empty_dataset") is not True
        and _is_endless(operations, each.inputs[0])
        and not any(_is_endless(operations, parent) for parent in each.inputs[1:])
        for each in operations
    )


_REPEATED_ELEMENTWISE = frozenset(("Concatenate", "DirectedInterleave"))
_CALLING = frozenset(("FlatMap", "Interleave", "ParallelInterleave"))


def _is_endless(operations: Operations, index: int) -> bool:
    """Whether a dataset never ends. Whatever is not known to be endless counts as finite."""
    operation = operations[index]
    endless = [_is_endless(operations, parent) for parent in operation.inputs]
    if operation.kind == "Random":
        return True
    if operation.kind == "Repeat":
        return any(endless) or (operation.constant("count") or 0) < 0
    if operation.kind == "Take":
        return all(endless) and (operation.constant("count") or 0) < 0
    if operation.kind == "TakeWhile":
        return False
    if operation.kind in _REPEATED_ELEMENTWISE:
        return any(endless)
    if operation.kind in _CALLING and not all(endless):
        return any(
            _is_endless(function.operations, len(function.operations) - 1)
            for function in operation.functions.values()
            if function.operations
        )
    return bool(endless) and all(endless)


_DROPS_EXHAUSTED_INPUT = frozenset(
    (
        "Batch",
        "Filter",
        "IgnoreErrors",
        "PaddedBatch",
        "Shard",
        "Shuffle",
        "Skip",
        "Take",
        "TakeWhile",
        "Unbatch",
        "Window",
        "Zip",
    )
)
"""Transformations that give up their input once it has ended, and do not save its state any more."""
_HOLDS_ELEMENTS = frozenset(
    ("Interleave", "Map", "ParallelBatch", "ParallelInterleave", "ParallelMap", "Prefetch", "Shuffle")
)
"""Transformations that read ahead, so that elements remain to be drawn when their input has ended."""


def _repeats_a_consumed_reshuffle(operations: Operations) -> bool:
    return any(
        _consumes_reshuffle(operations, parent, is_first=True)
        for repeated in _repeats(operations)
        for parent in repeated.inputs
    )


def _consumes_reshuffle(
    operations: Operations, index: int, is_first: bool = False, holds: bool = False
) -> bool:
    """Whether there is a moment at which the state lacks a shuffle that the next pass needs.

    Args:
        operations: all operations of the pipeline.
        index: where to look, and below.
        is_first: whether the ``repeat`` reads this operation directly.
        holds: whether an operation in between still holds elements when its input has ended.
    """
    operation = operations[index]
    # TensorFlow merges a shuffle directly below a repeat with it, and then loses nothing.
    # It merges a batch with the map below it as well.
    is_fused = operation.kind == "Batch" and operations[operation.inputs[0]].kind in ("Map", "ParallelMap")
    keeps_some = not is_first if operation.kind == "Shuffle" else _ends_with_a_part(operation)
    if operation.kind in _DROPS_EXHAUSTED_INPUT and not is_fused and (holds or keeps_some):
        return any(_has_reshuffle(operations, parent) for parent in operation.inputs)
    holds = holds or is_fused or operation.kind in _HOLDS_ELEMENTS
    return any(_consumes_reshuffle(operations, parent, holds=holds) for parent in operation.inputs)


def _ends_with_a_part(operation: DatasetOperation) -> bool:
    """Whether a last, incomplete batch or window may come when the input has ended."""
    if operation.kind in ("Batch", "PaddedBatch", "Window"):
        return operation.constant("drop_remainder") is not True
    return False


def _repeats_a_concatenated_reshuffle(operations: Operations) -> bool:
    return any(
        operations[index].kind == "Concatenate" and _has_reshuffle(operations, index)
        for repeated in _repeats(operations)
        for index in _ancestors(operations, repeated)
    )


def _repeats(operations: Operations) -> Iterator[DatasetOperation]:
    for operation in operations:
        if operation.kind == "Repeat" and operation.constant("count") not in (0, 1):
            yield operation


def _has_reshuffle(operations: Operations, index: int) -> bool:
    """Whether a dataset, or one that it reads, is a shuffle with a seed and another order in each pass."""
    return any(
        _is_reshuffle(operations[each]) for each in (index, *_ancestors(operations, operations[index]))
    )


def _is_reshuffle(operation: DatasetOperation) -> bool:
    is_seeded = (operation.constant("seed"), operation.constant("seed2")) != (0, 0)
    return (
        operation.kind == "Shuffle" and operation.constant("reshuffle_each_iteration") is True and is_seeded
    )


def _ancestors(operations: Operations, operation: DatasetOperation) -> set[int]:
    """Return the positions of all datasets that one reads, directly or not."""
    found: set[int] = set()
    pending = list(operation.inputs)
    while pending:
        index = pending.pop()
        if index not in found:
            found.add(index)
            pending.extend(operations[index].inputs)
    return found


def _lock_files(pipeline: Pipeline) -> list[str]:
    """Return the lock files of the caches that a pipeline has yet to write."""
    found = []
    for operations in pipeline.every_level():
        for operation in operations:
            name = operation.constant("filename") if operation.kind == "Cache" else None
            if name:
                # The storage of a cache may be unreachable. The pipeline itself then reports it.
                with contextlib.suppress(tf.errors.OpError):
                    found += _locks_of_unfinished_cache(name.decode())
    return found


def _locks_of_unfinished_cache(name: str) -> list[str]:
    if tf.io.gfile.exists(f"{name}.index"):
        return []
    return list(tf.io.gfile.glob(f"{name}_*.lockfile"))


KNOWN_FAULTS = (
    KnownFault(
        pipeline="`CsvDataset` or `make_csv_dataset` with a header line",
        fault="TensorFlow loses its place in the file when it restores the reader. Most rows are never seen.",
        cure="Read the file with `TextLineDataset(file).skip(1)`, and parse its lines with "
        "`tf.io.decode_csv`.",
        loses_data=True,
        is_in=_reads_csv_header,
    ),
    KnownFault(
        pipeline="`sample_from_datasets` or `choose_from_datasets` over finite datasets, without "
        "`stop_on_empty_dataset=True`",
        fault="If the state is saved after one of the datasets has ended, the restored pipeline never ends.",
        cure="Pass `stop_on_empty_dataset=True`, or call `repeat()` on the datasets before mixing them.",
        loses_data=True,
        is_in=_mixes_finite_datasets,
    ),
    KnownFault(
        pipeline="`repeat()` after a seeded `shuffle` and a transformation in between, such as "
        "`shuffle(n).batch(m).repeat()` or `shuffle(n).interleave(f).shuffle(m).batch(b).repeat()`",
        fault="If the state is saved in the last steps of a pass, later passes come in another order than "
        "without the interruption. Each pass is complete.",
        cure="Call `repeat()` directly after the first `shuffle`.",
        loses_data=False,
        is_in=_repeats_a_consumed_reshuffle,
    ),
    KnownFault(
        pipeline="`concatenate` over a seeded `shuffle`, followed by `repeat()`",
        fault="Once the state has been restored, later passes come in another order than without the "
        "interruption. Each pass is complete.",
        cure="Call `shuffle` after `concatenate`, or pass `reshuffle_each_iteration=False`.",
        loses_data=False,
        is_in=_repeats_a_concatenated_reshuffle,
    ),
)
"""The table, in the order in which it is checked."""
