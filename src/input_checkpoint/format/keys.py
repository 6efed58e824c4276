"""Keys: where everything that belongs to a store is found in it.

This is the one module that knows how keys are spelled. (Keys under ``probe/`` are the backends' own, see
`backends.base.TRIAL_PREFIX`.)
"""

from __future__ import annotations

import re
from typing import Optional

from input_checkpoint.checkpoint import CheckpointRef

FORMAT_KEY = "format.json"

_WORKER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_CHECKPOINT_KEY = re.compile(r"checkpoints/([^/]+)/(\d{8,})/(\d{12,})\.manifest")
_LINEAGE_KEY = re.compile(r"lineages/([^/]+)/(\d{8,})\.json")
_ANNOUNCEMENT_KEY = re.compile(r"saves/([^/]+)/(\d{8,})/(\d{12,})-[^/]+")
_PIN_KEY = re.compile(r"pins/([^/]+)/(\d{8,})/(\d{12,})\.json")
_PACK_KEY = re.compile(r"packs/([^/]+)/(\d{8,})/(\d{12,})-[^/]+\.pack")
_TRACE = re.compile(r"(?:checkpoints|lineages|packs|saves)/([^/]+)/.+")


_NO_LINEAGE = 99_999_999  # newer than any, so that every clean-up takes it seriously


def manifest_key(ref: CheckpointRef) -> str:
    """Key of the manifest of a checkpoint."""
    return f"{lineage_prefix(ref.worker, ref.lineage)}{ref.step:012d}.manifest"


def pin_key(ref: CheckpointRef) -> str:
    """Key of the object that pins a checkpoint."""
    return f"{pins_prefix(ref.worker)}{ref.lineage:08d}/{ref.step:012d}.json"


def pack_key(ref: CheckpointRef, save_id: str, number: int) -> str:
    """Key of the ``number``-th pack that the save ``save_id`` of a checkpoint uploads."""
    return f"{packs_prefix(ref.worker)}{ref.lineage:08d}/{ref.step:012d}-{save_id}-{number:05d}.pack"


def check_worker(worker: str) -> str:
    """Return ``worker`` if it can be part of a key, else raise ValueError."""
    if not _WORKER.fullmatch(worker):
        raise ValueError(f"not a worker name: {worker!r}; use letters, digits, '-' and '_'")
    return worker


def checkpoints_prefix(worker: Optional[str] = None) -> str:
    """Prefix of all manifests, of one worker or of all."""
    return "checkpoints/" if worker is None else f"checkpoints/{worker}/"


def lineage_prefix(worker: str, lineage: int) -> str:
    """Prefix of the manifests of one lineage."""
    return f"{checkpoints_prefix(worker)}{lineage:08d}/"


def pins_prefix(worker: Optional[str] = None) -> str:
    """Prefix of all pins, of one worker or of all."""
    return "pins/" if worker is None else f"pins/{worker}/"


def packs_prefix(worker: Optional[str] = None) -> str:
    """Prefix of all packs, of one worker or of all."""
    return "packs/" if worker is None else f"packs/{worker}/"


def lineages_prefix(worker: Optional[str] = None) -> str:
    """Prefix of all lineage records, of one worker or of all."""
    return "lineages/" if worker is None else f"lineages/{worker}/"


def lineage_key(worker: str, number: int) -> str:
    """Key of one lineage record."""
    return f"{lineages_prefix(worker)}{number:08d}.json"


def announcements_prefix(worker: Optional[str] = None) -> str:
    """Prefix of the announcements of saves in flight, of one worker or of all."""
    return "saves/" if worker is None else f"saves/{worker}/"


def announcement_key(ref: CheckpointRef, write_id: str) -> str:
    """Key of the object that says that a save is in flight."""
    return f"{announcements_prefix(ref.worker)}{ref.lineage:08d}/{ref.step:012d}-{write_id[:8]}"


def hold_key(worker: str, name: str) -> str:
    """Key of the announcement of somebody who saves nothing but needs what is there, of no lineage."""
    return f"{announcements_prefix(worker)}{_NO_LINEAGE:08d}/{0:012d}-{name[:8]}"


def worker_of(key: str) -> Optional[str]:
    """Return the worker that has left an object, or None if it is no worker's or the name cannot be one.

    >>> worker_of("packs/worker-3/00000001/notes"), worker_of("format.json")
    ('worker-3', None)
    """
    match = _TRACE.fullmatch(key)
    return match.group(1) if match and _WORKER.fullmatch(match.group(1)) else None


def parse_announcement_key(key: str) -> Optional[CheckpointRef]:
    """Return the save that an announcement is about, or None if the key is no announcement's."""
    return _parse(_ANNOUNCEMENT_KEY, key)


def parse_checkpoint_key(key: str) -> Optional[CheckpointRef]:
    """Return what a manifest's key says, or None if it is no manifest's.

    >>> parse_checkpoint_key(manifest_key(CheckpointRef("main", 1, 20)))
    CheckpointRef(worker='main', lineage=1, step=20)
    """
    return _parse(_CHECKPOINT_KEY, key)


def parse_pin_key(key: str) -> Optional[CheckpointRef]:
    """Return the checkpoint that a pin's key names, or None if it is no pin's."""
    return _parse(_PIN_KEY, key)


def parse_pack_key(key: str) -> Optional[CheckpointRef]:
    """Return the save that a pack was made by, or None if the key is no pack's."""
    return _parse(_PACK_KEY, key)


def parse_lineage_key(key: str) -> Optional[int]:
    """Return the number of the lineage that a record's key names, or None if it is no record's."""
    match = _LINEAGE_KEY.fullmatch(key)
    return int(match.group(2)) if match else None


def _parse(pattern: re.Pattern[str], key: str) -> Optional[CheckpointRef]:
    match = pattern.fullmatch(key)
    if not match:
        return None
    return CheckpointRef(match.group(1), int(match.group(2)), int(match.group(3)))
