"""Pins: checkpoints that are kept until they are unpinned, whatever the retention policy says.

A pin is a small object in the store. Its existence pins the checkpoint. Its content is a note for people.
"""

from __future__ import annotations

import contextlib
import json
from typing import Optional

from input_checkpoint.backends.base import Backend
from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import UNREADABLE_JSON, ObjectExistsError, ObjectNotFoundError
from input_checkpoint.format.keys import parse_pin_key, pin_key, pins_prefix
from input_checkpoint.format.limits import MAX_PIN_BYTES
from input_checkpoint.format.strict_json import parse_object, read_text
from input_checkpoint.store.bounded_reads import read_at_most


def write_pin(backend: Backend, ref: CheckpointRef, note: str) -> None:
    """Pin a checkpoint, or change the note of its pin. An empty note leaves an existing note unchanged.

    Raises:
        ValueError: the note is too long.
    """
    data = json.dumps({"note": note}).encode()
    if len(data) > MAX_PIN_BYTES:
        raise ValueError(f"a note has at most {MAX_PIN_BYTES} bytes, this one has {len(data)}. Shorten it.")
    if note:
        backend.put(pin_key(ref), data)
    else:
        with contextlib.suppress(ObjectExistsError):
            backend.create(pin_key(ref), data)


def read_pins(backend: Backend, worker: Optional[str] = None) -> dict[CheckpointRef, str]:
    """Return the pinned checkpoints of one worker or of all, each with its note."""
    notes: dict[CheckpointRef, str] = {}
    for info in backend.list(pins_prefix(worker)):
        ref = parse_pin_key(info.key)
        if ref is not None:
            with contextlib.suppress(ObjectNotFoundError):  # unpinned after it was listed
                notes[ref] = _note(read_at_most(backend, info.key, MAX_PIN_BYTES))
    return notes


def read_pin(backend: Backend, ref: CheckpointRef) -> Optional[str]:
    """Return the note of the pin of one checkpoint, or None if it is not pinned."""
    try:
        return _note(read_at_most(backend, pin_key(ref), MAX_PIN_BYTES))
    except ObjectNotFoundError:
        return None


def pin_reason(note: str) -> str:
    """Return the reason for which a pinned checkpoint is kept.

    Example:
        >>> pin_reason("best so far")
        'pinned: best so far'
    """
    return f"pinned: {note}" if note else "pinned"


def _note(data: bytes) -> str:
    """Return the note of a pin. A damaged pin is still a pin, with an empty note."""
    if len(data) > MAX_PIN_BYTES:
        return ""
    try:
        return read_text(parse_object(data), "note")
    except UNREADABLE_JSON:
        return ""
