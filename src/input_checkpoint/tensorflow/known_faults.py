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
from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.dataset_operations import DatasetOperation

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
    """Refuse the pipelines that lose data when TensorFlow restores them. Warn if only the order changes.

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
    endless = _endless(operations)
    return any(
        each.kind == "DirectedInterleave"
        and each.constant("stop_on_empty_dataset") is not True
        and endless[each.inputs[0]]
        and not any(endless[parent] for parent in each.inputs[1:])
        for each in operations
    )


_ENDLESS_WITH_ONE_INPUT = frozenset(("Concatenate", "DirectedInterleave"))
_CALLING = frozenset(("FlatMap", "Interleave", "LegacyParallelInterleave", "ParallelInterleave"))


def _endless(operations: Operations) -> list[bool]:
    """Return for each dataset whether it never ends. What is not known to be endless counts as finite."""
    found: list[bool] = []
    for operation in operations:
        found.append(_is_endless(operation, [found[parent] for parent in operation.inputs]))
    return found


def _is_endless(operation: DatasetOperation, inputs: Sequence[bool]) -> bool:
    has_endless_input = bool(inputs) and all(inputs)
    if operation.kind == "Random":
        return True
    if operation.kind == "Repeat":
        return has_endless_input or (operation.constant("count") or 0) < 0
    if operation.kind == "Take":
        return has_endless_input and (operation.constant("count") or 0) < 0
    if operation.kind == "TakeWhile":
        return False
    if operation.kind in _ENDLESS_WITH_ONE_INPUT:
        return any(inputs)
    if operation.kind in _CALLING:
        functions = [each.operations for each in operation.functions.values() if each.operations]
        return has_endless_input or any(_endless(inside)[-1] for inside in functions)
    return has_endless_input


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
    (
        "Interleave",
        "LegacyParallelInterleave",
        "Map",
        "ParallelBatch",
        "ParallelInterleave",
        "ParallelMap",
        "Prefetch",
        "Shuffle",
    )
)
"""Transformations that read ahead, so that elements remain to be drawn when their input has ended."""


def _repeats_a_consumed_reshuffle(operations: Operations) -> bool:
    """Whether there is a moment at which the state lacks a shuffle that the next pass needs."""
    pending = [_Place(index, below_repeat=True) for each in _repeats(operations) for index in each.inputs]
    seen = set(pending)
    while pending:
        place = pending.pop()
        operation = operations[place.index]
        # TensorFlow merges a batch with the map below it.
        is_fused = operation.kind == "Batch" and operations[operation.inputs[0]].kind in _MAPS
        if operation.kind in _DROPS_EXHAUSTED_INPUT and not is_fused:
            # It also merges a shuffle with the repeat above it, and then loses nothing.
            keeps_some = (
                not place.below_repeat if operation.kind == "Shuffle" else _ends_with_a_part(operation)
            )
            if (place.holds or keeps_some) and _reads_reshuffle(operations, operation):
                return True
        holds = place.holds or is_fused or operation.kind in _HOLDS_ELEMENTS
        below = {_Place(index, holds=holds) for index in operation.inputs} - seen
        seen |= below
        pending.extend(below)
    return False


_MAPS = frozenset(("Map", "ParallelMap"))


@dataclass(frozen=True)
class _Place:
    """A dataset below a ``repeat``, and how it is reached."""

    index: int
    below_repeat: bool = False
    """Whether the ``repeat`` reads it directly."""
    holds: bool = False
    """Whether a transformation in between may still hold elements when its input has ended."""


def _ends_with_a_part(operation: DatasetOperation) -> bool:
    """Whether a last, incomplete batch or window may come when the input has ended."""
    if operation.kind in ("Batch", "PaddedBatch", "Window"):
        return operation.constant("drop_remainder") is not True
    return False


def _repeats_a_concatenated_reshuffle(operations: Operations) -> bool:
    return any(
        operations[index].kind == "Concatenate" and _reads_reshuffle(operations, operations[index])
        for repeated in _repeats(operations)
        for index in _ancestors(operations, repeated)
    )


def _repeats(operations: Operations) -> Iterator[DatasetOperation]:
    for operation in operations:
        if operation.kind == "Repeat" and operation.constant("count") not in (0, 1):
            yield operation


def _reads_reshuffle(operations: Operations, operation: DatasetOperation) -> bool:
    """Whether a dataset reads, directly or not, a seeded shuffle whose order changes from pass to pass."""
    return any(_is_reshuffle(operations[index]) for index in _ancestors(operations, operation))


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
