"""Lineages: uninterrupted runs of one writer, each linked to the checkpoint that it resumed from.

The history of a worker is linear: a checkpoint that an older lineage wrote after the step from which its
successor resumed is abandoned.
"""

from __future__ import annotations

import math
import os
import platform
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Optional

from input_checkpoint.checkpoint import CheckpointRef, MarkRef
from input_checkpoint.errors import UNREADABLE_JSON, CheckpointTooLargeError, CorruptCheckpointError
from input_checkpoint.format.checked_json import decode_record, encode_record
from input_checkpoint.format.keys import lineage_key
from input_checkpoint.format.limits import MAX_LINEAGE_BYTES, MAX_NUMBER
from input_checkpoint.format.strict_json import (
    read_number,
    read_objects,
    read_optional_number,
    read_text,
)
from input_checkpoint.format.timestamps import decode_timestamp, encode_timestamp


@dataclass(frozen=True)
class Ancestor:
    """A part of the history: the checkpoints of ``lineage`` up to and including ``last_step``."""

    lineage: int
    last_step: int


def _last_steps(ancestors: Iterable[Ancestor]) -> dict[int, int]:
    last_steps: dict[int, int] = {}
    for ancestor in ancestors:
        last_steps[ancestor.lineage] = max(ancestor.last_step, last_steps.get(ancestor.lineage, -1))
    return last_steps


@dataclass(frozen=True)
class Lineage:
    """An uninterrupted run of one writer, as recorded when it began."""

    worker: str
    number: int
    ancestors: tuple[Ancestor, ...]
    """Newest first, beginning with the parent. Empty if the run began at the start of the input."""
    write_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    run_id: str = ""
    """Random, the same in all lineages of one training; empty if it is unknown."""
    start_step: Optional[int] = None
    """Step of the model when the run began; None if it is unknown."""

    @property
    def key(self) -> str:
        """Key of this lineage's record."""
        return lineage_key(self.worker, self.number)

    @property
    def parent(self) -> Optional[CheckpointRef]:
        """Where this run resumed, or None if it began at the start of the input.

        A checkpoint, or the step of a mark, which has no manifest.
        """
        if not self.ancestors:
            return None
        return CheckpointRef(self.worker, self.ancestors[0].lineage, self.ancestors[0].last_step)

    def holds(self, ref: CheckpointRef) -> bool:
        """Whether ``ref`` is part of the history of this lineage: its own checkpoints and its ancestors'."""
        if ref.worker != self.worker:
            return False
        return ref.lineage == self.number or ref.step <= self._last_steps.get(ref.lineage, -1)

    @cached_property
    def _last_steps(self) -> Mapping[int, int]:
        """The last step of each ancestor. A lookup does not slow down with the number of ancestors."""
        return _last_steps(self.ancestors)

    def history(self, refs: Iterable[CheckpointRef]) -> list[CheckpointRef]:
        """Return the ``refs`` that are part of the history, from oldest to newest."""
        return sorted(ref for ref in refs if self.holds(ref))


@dataclass(frozen=True)
class InferredLineage(Lineage):
    """Replaces a lineage whose record is missing or damaged.

    Its number is certain, so it supersedes older writers like any other lineage. Its ancestors are a guess. A
    run can resume from its history, but no checkpoint may be removed for being outside that history.
    """


def infer_lineage(
    worker: str, number: int, previous: Optional[Lineage], present: Iterable[CheckpointRef]
) -> InferredLineage:
    """Return the replacement for a lineage whose record is missing or damaged.

    Its own checkpoints are certainly part of its history. Where it resumed from is unknown. Steps only grow,
    so it was before the first step that it saved.

    Args:
        worker: the worker of the lineage.
        number: the number of the lineage.
        previous: the lineage that was opened before it, or None if there was none.
        present: the worker's checkpoints.
    """
    if previous is None:
        return InferredLineage(worker, number, ())
    own_steps = [ref.step for ref in present if ref.lineage == number]
    last_step = min(own_steps) - 1 if own_steps else MAX_NUMBER
    older = [
        Ancestor(ancestor.lineage, min(ancestor.last_step, last_step)) for ancestor in previous.ancestors
    ]
    return InferredLineage(worker, number, (Ancestor(previous.number, last_step), *older))


def next_lineage(
    worker: str,
    newest: Optional[Lineage],
    parent: Optional[CheckpointRef],
    present: Collection[CheckpointRef],
    parent_lineage: Optional[Lineage] = None,
) -> Lineage:
    """Return the lineage that follows ``newest`` and continues from ``parent``.

    Ancestors of which nothing is stored are left out, so a record stays small however often a run resumes.

    Args:
        worker: the worker of the lineage.
        newest: the worker's newest lineage, or None if this is the first.
        parent: the checkpoint, or the step of a mark, to resume from. None means the beginning of the input.
        present: the worker's checkpoints, and the steps of its marks.
        parent_lineage: a lineage whose history holds the parent, if that of ``newest`` does not.
    """
    number = newest.number + 1 if newest else 1
    if newest is None or parent is None:
        return Lineage(worker, number, ())
    first_steps = {ref.lineage: ref.step for ref in sorted(present, reverse=True) if ref.worker == worker}
    older = [
        ancestor
        for ancestor in (parent_lineage or newest).ancestors
        if ancestor.lineage < parent.lineage
        and ancestor.last_step >= first_steps.get(ancestor.lineage, math.inf)
    ]
    return Lineage(worker, number, (Ancestor(parent.lineage, parent.step), *older))


def abandoned_checkpoints(newest: Lineage, refs: Sequence[CheckpointRef]) -> list[CheckpointRef]:
    """Return the checkpoints of older lineages that are not part of the history of ``newest`` and may go.

    There are none until ``newest`` has committed two checkpoints. Until then, somebody who resumed from the
    wrong checkpoint can stop the run and go back. Checkpoints of newer lineages are never abandoned.
    """
    return [ref for ref in refs if _is_left_behind(newest, ref)] if _has_saved_twice(newest, refs) else []


def abandoned_marks(
    newest: Lineage, checkpoints: Sequence[CheckpointRef], marks: Sequence[MarkRef]
) -> list[MarkRef]:
    """Return the marks of older lineages that are not part of the history of ``newest`` and may go.

    They may go when abandoned checkpoints may. There are none while the history is only inferred.

    Args:
        newest: the worker's newest lineage.
        checkpoints: all its checkpoints.
        marks: all its marks.
    """
    if isinstance(newest, InferredLineage) or not _has_saved_twice(newest, checkpoints):
        return []
    return [mark for mark in marks if _is_left_behind(newest, mark.ref)]


def _has_saved_twice(newest: Lineage, checkpoints: Sequence[CheckpointRef]) -> bool:
    return sum(ref.lineage == newest.number for ref in checkpoints) >= 2


def _is_left_behind(newest: Lineage, ref: CheckpointRef) -> bool:
    return ref.lineage < newest.number and not newest.holds(ref)


def encode_lineage(lineage: Lineage) -> bytes:
    """Return the stored form of a lineage: JSON with the checksum of its content.

    Raises:
        CheckpointTooLargeError: it would be larger than a reader accepts.
    """
    fields = asdict(lineage)
    fields["created"] = encode_timestamp(lineage.created)
    stored = encode_record("lineage", fields)
    if len(stored) > MAX_LINEAGE_BYTES:
        raise CheckpointTooLargeError(
            f"run {lineage.number} of worker {lineage.worker!r} was not begun: its record has {len(stored)} "
            f"bytes, at most {MAX_LINEAGE_BYTES} are allowed. It lists the {len(lineage.ancestors)} earlier "
            "runs that still have checkpoints. Prune the store.",
            key=lineage.key,
        )
    return stored


def decode_lineage(data: bytes) -> Lineage:
    """Return the lineage that `encode_lineage` encoded.

    Raises:
        CorruptCheckpointError: the record cannot be read, or fails its checksum.
    """
    if len(data) > MAX_LINEAGE_BYTES:
        raise CorruptCheckpointError(
            f"a lineage record has more than {MAX_LINEAGE_BYTES} bytes, more than the format allows"
        )
    try:
        fields = decode_record(data, "lineage", what="a lineage record")
        return Lineage(
            worker=read_text(fields, "worker"),
            number=read_number(fields, "number"),
            ancestors=tuple(
                Ancestor(read_number(ancestor, "lineage"), read_number(ancestor, "last_step"))
                for ancestor in read_objects(fields, "ancestors")
            ),
            write_id=read_text(fields, "write_id"),
            created=decode_timestamp(read_text(fields, "created")),
            host=read_text(fields, "host"),
            pid=read_number(fields, "pid"),
            run_id=read_text(fields, "run_id") if "run_id" in fields else "",
            start_step=read_optional_number(fields, "start_step"),
        )
    except UNREADABLE_JSON as error:
        raise CorruptCheckpointError(f"a lineage record cannot be read: {error!r:.200}") from error
