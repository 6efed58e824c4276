"""Marks: how far the input had been drawn since a full checkpoint, at a step of the model."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Optional

from input_checkpoint.checkpoint import CheckpointRef, MarkRef
from input_checkpoint.errors import UNREADABLE_JSON, CheckpointTooLargeError, CorruptCheckpointError
from input_checkpoint.format.checked_json import decode_record, encode_record
from input_checkpoint.format.keys import mark_key, parse_mark_key
from input_checkpoint.format.limits import MAX_MARK_BYTES, MAX_NUMBER
from input_checkpoint.format.strict_json import (
    read_number,
    read_object,
    read_optional_text,
    read_text,
)
from input_checkpoint.format.timestamps import decode_timestamp, encode_timestamp
from input_checkpoint.whole_numbers import normalize, whole_number

_HEXADECIMAL = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Mark:
    """How far the input had been drawn since a full checkpoint, its base, when the model was saved.

    Whoever restores the base and draws as often from each iterator has the input of the model's step. The
    digest of the last element shows whether the pipeline has repeated itself.

    Example:
        >>> base = CheckpointRef("main", lineage=1, step=500)
        >>> ref = MarkRef(CheckpointRef("main", lineage=1, step=530), base)
        >>> Mark(ref, draws={"Iterator": 30}, digests={"Iterator": "9f3c"}).key
        'checkpoints/main/00000001/000000000530-00000001-000000000500.mark'
    """

    ref: MarkRef
    draws: Mapping[str, int] = field(hash=False)
    """How often each iterator was drawn from since the base, by its name."""
    digests: Mapping[str, str] = field(hash=False)
    """Digest of the last element that was drawn from each iterator since the base, in hexadecimal."""
    model_digest: Optional[str] = None
    """Digest of the model checkpoint of the same step, in hexadecimal; None if it is unknown."""
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    """When it was written, by the writer's clock, in UTC."""
    host: str = field(default_factory=platform.node)
    """Host name of the writer."""
    pid: int = field(default_factory=os.getpid)
    """Process id of the writer."""

    def __post_init__(self) -> None:
        draws = {name: whole_number(f"draws[{name!r}]", count) for name, count in self.draws.items()}
        normalize(self, draws=draws)

    @property
    def key(self) -> str:
        """Key of the object that holds this mark."""
        return mark_key(self.ref)


def encode_mark(mark: Mark) -> bytes:
    """Return the stored form of a mark: JSON with the checksum of its content.

    Raises:
        ValueError: its fields contradict each other.
        CheckpointTooLargeError: it would be larger than a reader accepts.
    """
    _check(mark)
    fields = {
        **mark.ref.to_dict(),
        "draws": dict(mark.draws),
        "digests": dict(mark.digests),
        "model_digest": mark.model_digest,
        "created": encode_timestamp(mark.created),
        "host": mark.host,
        "pid": mark.pid,
    }
    stored = encode_record("mark", fields)
    if len(stored) > MAX_MARK_BYTES:
        raise CheckpointTooLargeError(
            f"{mark.ref} was not written: it has {len(stored)} bytes, at most {MAX_MARK_BYTES} are allowed. "
            f"It lists {len(mark.draws)} iterators.",
            key=mark.key,
            ref=mark.ref.ref,
        )
    return stored


def decode_mark(data: bytes) -> Mark:
    """Return the mark that `encode_mark` encoded.

    Raises:
        CorruptCheckpointError: the mark cannot be read, or fails its checksum.
    """
    if len(data) > MAX_MARK_BYTES:
        raise CorruptCheckpointError(
            f"a mark has more than {MAX_MARK_BYTES} bytes, more than the format allows"
        )
    try:
        fields = decode_record(data, "mark", what="a mark")
        draws, digests = read_object(fields, "draws"), read_object(fields, "digests")
        mark = Mark(
            ref=MarkRef(_read_ref(fields, "ref"), _read_ref(fields, "base")),
            draws={name: read_number(draws, name) for name in draws},
            digests={name: read_text(digests, name) for name in digests},
            model_digest=read_optional_text(fields, "model_digest"),
            created=decode_timestamp(read_text(fields, "created")),
            host=read_text(fields, "host"),
            pid=read_number(fields, "pid"),
        )
        _check(mark)
    except UNREADABLE_JSON as error:
        raise CorruptCheckpointError(f"a mark cannot be read: {error!r:.200}") from error
    return mark


def _read_ref(fields: Mapping[str, Any], name: str) -> CheckpointRef:
    ref = read_object(fields, name)
    return CheckpointRef(read_text(ref, "worker"), read_number(ref, "lineage"), read_number(ref, "step"))


def _check(mark: Mark) -> None:
    """Raise ValueError if the fields of a mark contradict each other."""
    if parse_mark_key(mark_key(mark.ref)) != mark.ref:
        raise ValueError(f"{mark.ref} has a worker, a run or a step that no key can hold")
    for name, count in mark.draws.items():
        if not 0 <= count <= MAX_NUMBER:
            raise ValueError(f"{mark.ref} counts {count} draws from {name}")
    drawn = {name for name, count in mark.draws.items() if count}
    if mark.digests.keys() != drawn:
        names = ", ".join(sorted(mark.digests.keys() ^ drawn))
        raise ValueError(
            f"{mark.ref} must have one digest for each iterator that was drawn from, and no other. "
            f"Missing or superfluous: {names}"
        )
    for name, text in mark.digests.items():
        if not _HEXADECIMAL.fullmatch(text):
            raise ValueError(f"{mark.ref} has a digest for {name} that is not hexadecimal")
