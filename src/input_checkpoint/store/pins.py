"""Pins: checkpoints that stay until they are unpinned, whatever the retention policy says.

A pin is a small object beside the checkpoints. That it is there is what counts; its note is for people.
"""

from __future__ import annotations

import contextlib
import json
from typing import Optional

from input_checkpoint.backends.base import Backend
from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError
from input_checkpoint.format.keys import parse_pin_key, pin_key, pins_prefix


def write_pin(backend: Backend, ref: CheckpointRef, note: str) -> None:
    """Pin a checkpoint, or change the note of its pin. Without a note, one that is there stays."""
    data = json.dumps({"note": note}).encode()
    if note:
        backend.put(pin_key(ref), data)
    else:
        with contextlib.suppress(ObjectExistsError):
            backend.create(pin_key(ref), data)


def read_pins(backend: Backend, worker: Optional[str] = None) -> dict[CheckpointRef, str]:
    """Return the pinned checkpoints, of one worker or of all, each with its note."""
    notes: dict[CheckpointRef, str] = {}
    for info in backend.list(pins_prefix(worker)):
        ref = parse_pin_key(info.key)
        if ref is not None:
            with contextlib.suppress(ObjectNotFoundError):  # unpinned in the meantime
                notes[ref] = _note(backend.get(info.key))
    return notes


def pin_reason(note: str) -> str:
    """Return why a pinned checkpoint is kept.

    >>> pin_reason("best so far")
    'pinned: best so far'
    """
    return f"pinned: {note}" if note else "pinned"


def _note(data: bytes) -> str:
    """Return the note of a pin; a pin that cannot be read still holds, without one."""
    try:
        return str(json.loads(data)["note"])
    except (KeyError, TypeError, ValueError):
        return ""
