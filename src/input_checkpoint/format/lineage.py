"""Lineages: one writer's unbroken run each, chained by the step from which the next one restarted.

History is a line: what an older lineage wrote past the step from which its successor restarted is abandoned.
"""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Optional

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import UNREADABLE_JSON, CorruptCheckpointError
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.keys import lineage_key
from input_checkpoint.format.timestamps import decode_timestamp, encode_timestamp

_NO_STEP_IS_LATER = (1 << 63) - 1


@dataclass(frozen=True)
class Ancestor:
    """A part of the history: what ``lineage`` wrote up to and including ``last_step``."""

    lineage: int
    last_step: int


@dataclass(frozen=True)
class Lineage:
    """One writer's unbroken run, as recorded when it began."""

    worker: str
    number: int
    ancestors: tuple[Ancestor, ...]
    """Newest first. The first one is the parent; empty when the input started from its beginning."""
    write_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)

    @property
    def key(self) -> str:
        """Key of this lineage's record."""
        return lineage_key(self.worker, self.number)

    @property
    def parent(self) -> Optional[CheckpointRef]:
        """The checkpoint that this run was resumed from, or None if the input started from its beginning."""
        if not self.ancestors:
            return None
        return CheckpointRef(self.worker, self.ancestors[0].lineage, self.ancestors[0].last_step)

    def holds(self, ref: CheckpointRef) -> bool:
        """Whether ``ref`` is part of the history that this lineage continues."""
        if ref.worker != self.worker:
            return False
        return ref.lineage == self.number or any(
            ref.lineage == ancestor.lineage and ref.step <= ancestor.last_step for ancestor in self.ancestors
        )

    def history(self, refs: Iterable[CheckpointRef]) -> list[CheckpointRef]:
        """Return those of ``refs`` that are part of the history, from old to new."""
        return sorted(ref for ref in refs if self.holds(ref))


@dataclass(frozen=True)
class LostLineage(Lineage):
    """Stands in for a run whose record cannot be read. Its number is certain, its ancestors are a guess.

    So it supersedes older writers as any other, and one can go on from its history; but nothing may be given
    up on its word.
    """


def lost_lineage(
    worker: str, number: int, before: Optional[Lineage], present: Iterable[CheckpointRef]
) -> LostLineage:
    """Return the stand-in for a lineage whose record cannot be read.

    What it wrote itself is certainly of its history. From where it was started is not known; steps grow, so
    it cannot have been from a step past its own first one.

    Args:
        worker: whose.
        number: of the lineage.
        before: the lineage opened before it, or None if there was none.
        present: the worker's checkpoints.
    """
    if before is None:
        return LostLineage(worker, number, ())
    own = [ref.step for ref in present if ref.lineage == number]
    last = min(own) - 1 if own else _NO_STEP_IS_LATER
    older = [Ancestor(each.lineage, min(each.last_step, last)) for each in before.ancestors]
    return LostLineage(worker, number, (Ancestor(before.number, last), *older))


def next_lineage(
    worker: str,
    newest: Optional[Lineage],
    parent: Optional[CheckpointRef],
    present: Collection[CheckpointRef],
    line: Optional[Lineage] = None,
) -> Lineage:
    """Return the lineage that follows ``newest``, restarted from ``parent`` (None: from the beginning).

    ``line`` is a lineage that holds the parent, if the newest one does not. Ancestors of which nothing is
    stored any more are left out, so that a record stays small however often a run restarts.
    """
    number = newest.number + 1 if newest else 1
    if newest is None or parent is None:
        return Lineage(worker, number, ())
    older = [
        ancestor
        for ancestor in (line or newest).ancestors
        if ancestor.lineage < parent.lineage and _any_left(worker, ancestor, present)
    ]
    return Lineage(worker, number, (Ancestor(parent.lineage, parent.step), *older))


def _any_left(worker: str, ancestor: Ancestor, present: Collection[CheckpointRef]) -> bool:
    return any(
        ref.worker == worker and ref.lineage == ancestor.lineage and ref.step <= ancestor.last_step
        for ref in present
    )


def abandoned_checkpoints(newest: Lineage, refs: Sequence[CheckpointRef]) -> list[CheckpointRef]:
    """Return the checkpoints that ``newest`` has left behind for good.

    They are given up only once this lineage has committed twice: until then somebody who restarted from
    the wrong place can still stop and go back. What a still newer lineage has written is not for this one to
    judge.
    """
    own = sum(ref.lineage == newest.number for ref in refs)
    if own < 2:
        return []
    return [ref for ref in refs if ref.lineage < newest.number and not newest.holds(ref)]


def encode_lineage(lineage: Lineage) -> bytes:
    """Return the bytes of a lineage record: JSON with the checksum of its content."""
    fields = asdict(lineage)
    fields["created"] = encode_timestamp(lineage.created)
    text = json.dumps(fields, sort_keys=True)
    return json.dumps({"lineage": fields, "digest": digest(text.encode()).hex()}, indent=1).encode()


def decode_lineage(data: bytes) -> Lineage:
    """Return the lineage that a record describes.

    Raises:
        CorruptCheckpointError: the record cannot be read, or fails its checksum.
    """
    try:
        record = json.loads(data)
        fields = record["lineage"]
        if digest(json.dumps(fields, sort_keys=True).encode()).hex() != record["digest"]:
            raise CorruptCheckpointError("a lineage record fails its checksum")
        return Lineage(
            worker=str(fields["worker"]),
            number=int(fields["number"]),
            ancestors=tuple(
                Ancestor(int(ancestor["lineage"]), int(ancestor["last_step"]))
                for ancestor in fields["ancestors"]
            ),
            write_id=str(fields["write_id"]),
            created=decode_timestamp(fields["created"]),
            host=str(fields["host"]),
            pid=int(fields["pid"]),
        )
    except UNREADABLE_JSON as error:
        raise CorruptCheckpointError(f"a lineage record cannot be read: {error!r}") from error
