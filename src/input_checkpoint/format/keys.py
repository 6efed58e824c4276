"""Keys: where each object of a store is found.

Only this module knows how keys are spelled. Each kind of key has one parser, and it accepts exactly what the
function beside it builds: `manifest_key(parse_checkpoint_key(key)) == key` for every key that is accepted.
Any other name in the storage is somebody else's. It is not listed, not counted, not read and not deleted.

Keys under ``probe/`` belong to the backends, see `backends.probe_keys`.
"""

from __future__ import annotations

import re
from typing import Optional

from input_checkpoint.backends.probe_keys import PROBE_PREFIX
from input_checkpoint.checkpoint import CheckpointRef, MarkRef
from input_checkpoint.whole_numbers import whole_number

FORMAT_KEY = "format.json"

MAX_STEP = (1 << 63) - 1
"""The largest step: TensorFlow counts in int64."""

MAX_LINEAGE = 99_999_998
"""The largest number of a run."""

_COPY_LINEAGE = 99_999_999
"""Lineage in the announcement of a copy. It is newer than any real one, so every prune respects it."""
_PRUNE_STEP = 900_000_000_000
"""Added to the lineage that prunes, it is the step in the announcement of a prune. No other key of a worker's
lineages and announcements comes after it."""

# Numbers are padded to a fixed width, and have no further zeros in front of them. The upper bounds only keep
# them in int64.
_LINEAGE = r"(?!0{8})[0-9]{8}"
_STEP = r"(?:[0-9]{12}|[1-9][0-9]{12,18})"
_PACK_NUMBER = r"(?:[0-9]{5}|[1-9][0-9]{5,8})"
_SAVE_ID = r"[0-9a-f]{8}"
_WORKER = r"[A-Za-z0-9_][A-Za-z0-9_-]*"

_WORKER_NAME = re.compile(_WORKER)
_CHECKPOINT_KEY = re.compile(rf"checkpoints/({_WORKER})/({_LINEAGE})/({_STEP})\.manifest")
_MARK_KEY = re.compile(rf"checkpoints/({_WORKER})/({_LINEAGE})/({_STEP})-({_LINEAGE})-({_STEP})\.mark")
_LINEAGE_KEY = re.compile(rf"lineages/({_WORKER})/({_LINEAGE})\.json")
_ANNOUNCEMENT_KEY = re.compile(rf"lineages/({_WORKER})/({_LINEAGE})/({_STEP})-{_SAVE_ID}")
_PIN_KEY = re.compile(rf"pins/({_WORKER})/({_LINEAGE})/({_STEP})\.json")
_PACK_KEY = re.compile(rf"packs/({_WORKER})/({_LINEAGE})/({_STEP})-{_SAVE_ID}-{_PACK_NUMBER}\.pack")
_WORKER_KEYS = (_CHECKPOINT_KEY, _MARK_KEY, _LINEAGE_KEY, _ANNOUNCEMENT_KEY, _PIN_KEY, _PACK_KEY)


def manifest_key(ref: CheckpointRef) -> str:
    """Return the key of a checkpoint's manifest."""
    return f"{lineage_prefix(ref.worker, ref.lineage)}{ref.step:012d}.manifest"


def mark_key(mark: MarkRef) -> str:
    """Return the key of a mark.

    It is next to the manifests, so that one listing shows both, and names the base of the mark.

    Example:
        >>> mark_key(MarkRef(CheckpointRef("main", 2, 530), base=CheckpointRef("main", 1, 500)))
        'checkpoints/main/00000002/000000000530-00000001-000000000500.mark'

    Raises:
        ValueError: the base is a checkpoint of another worker, a later run or a later step.
    """
    ref, base = mark.ref, mark.base
    if base.worker != ref.worker or base.lineage > ref.lineage or base.step > ref.step:
        raise ValueError(f"there is no {mark}: its base would be {base}, which does not come before it")
    return (
        f"{lineage_prefix(ref.worker, ref.lineage)}{ref.step:012d}-{base.lineage:08d}-{base.step:012d}.mark"
    )


def pin_key(ref: CheckpointRef) -> str:
    """Return the key of the object that pins a checkpoint."""
    return f"{pins_prefix(ref.worker)}{ref.lineage:08d}/{ref.step:012d}.json"


def pack_key(ref: CheckpointRef, save_id: str, number: int) -> str:
    """Return the key of the ``number``-th pack that the save ``save_id`` of a checkpoint uploads."""
    return f"{packs_prefix(ref.worker)}{ref.lineage:08d}/{ref.step:012d}-{save_id}-{number:05d}.pack"


def check_worker(worker: str) -> str:
    """Return ``worker`` if it is a valid worker name.

    Raises:
        ValueError: it cannot be part of a key.
    """
    if not _WORKER_NAME.fullmatch(worker):
        raise ValueError(f"not a worker name: {worker!r}. Use letters, digits, '-' and '_'.")
    return worker


def checkpoints_prefix(worker: Optional[str] = None) -> str:
    """Return the prefix of all manifests and marks, of one worker or of all."""
    return "checkpoints/" if worker is None else f"checkpoints/{worker}/"


def lineage_prefix(worker: str, lineage: int) -> str:
    """Return the prefix of the manifests and marks of one lineage."""
    return f"{checkpoints_prefix(worker)}{lineage:08d}/"


def pins_prefix(worker: Optional[str] = None) -> str:
    """Return the prefix of all pins, of one worker or of all."""
    return "pins/" if worker is None else f"pins/{worker}/"


def packs_prefix(worker: Optional[str] = None) -> str:
    """Return the prefix of all packs, of one worker or of all."""
    return "packs/" if worker is None else f"packs/{worker}/"


def lineages_prefix(worker: Optional[str] = None) -> str:
    """Return the prefix of all lineage records, of one worker or of all."""
    return "lineages/" if worker is None else f"lineages/{worker}/"


def lineage_key(worker: str, number: int) -> str:
    """Return the key of one lineage record."""
    return f"{lineages_prefix(worker)}{number:08d}.json"


def announcement_key(ref: CheckpointRef, write_id: str) -> str:
    """Return the key of an object that announces a save in progress.

    It is next to the lineage records, so that one listing shows both.
    """
    return f"{lineages_prefix(ref.worker)}{ref.lineage:08d}/{ref.step:012d}-{write_id[:8]}"


def copy_announcement_key(worker: str, stores: int, copy_id: str) -> str:
    """Return the key of an object that announces a copy, which needs all objects that exist now.

    Args:
        worker: whose checkpoints are copied.
        stores: a number that stands for the pair of stores.
        copy_id: random.
    """
    return announcement_key(CheckpointRef(worker, _COPY_LINEAGE, stores % _PRUNE_STEP), copy_id)


def prune_announcement_key(worker: str, lineage: int, prune_id: str) -> str:
    """Return the key of an object that announces a prune by, or on behalf of, a lineage."""
    return announcement_key(CheckpointRef(worker, _COPY_LINEAGE, _PRUNE_STEP + lineage), prune_id)


def check_step(step: int) -> int:
    """Return ``step`` as an int if a checkpoint can have it.

    Raises:
        TypeError: it is no whole number.
        ValueError: it cannot be part of a key.
    """
    step = whole_number("step", step)
    if not 0 <= step <= MAX_STEP:
        raise ValueError(f"not a step: {step}. Steps are between 0 and {MAX_STEP}.")
    return step


def worker_of(key: str) -> Optional[str]:
    """Return the worker that an object belongs to, or None if it belongs to no worker.

    Example:
        >>> worker_of("lineages/worker-3/00000001.json"), worker_of("lineages/worker-3/notes")
        ('worker-3', None)
    """
    matches = (pattern.fullmatch(key) for pattern in _WORKER_KEYS)
    return next((match.group(1) for match in matches if match), None)


def folder_patterns(worker: str) -> tuple[str, ...]:
    """Return the folders that hold objects of a worker, or of no worker, as `Backend.remove_leftovers` needs.

    Example:
        >>> folder_patterns("main")[:3]
        ('', 'probe', 'lineages/main')
    """
    by_lineage = (checkpoints_prefix, packs_prefix, pins_prefix, lineages_prefix)
    check_worker(worker)
    return (
        "",
        PROBE_PREFIX.rstrip("/"),
        lineages_prefix(worker).rstrip("/"),
        *(f"{prefix(worker)}{_LINEAGE}" for prefix in by_lineage),
    )


def parse_announcement_key(key: str) -> Optional[CheckpointRef]:
    """Return the save that a key announces, or None if it is not the key of an announcement.

    The lineage of a copy or a prune is higher than any real one.
    """
    return _parse(_ANNOUNCEMENT_KEY, key, _COPY_LINEAGE)


def parse_prune_announcement_key(key: str) -> Optional[int]:
    """Return the lineage whose prune a key announces, or None if it does not announce a prune.

    Example:
        >>> parse_prune_announcement_key(prune_announcement_key("main", 3, "0123abcd"))
        3
    """
    announced = parse_announcement_key(key)
    if announced is None or announced.lineage != _COPY_LINEAGE or announced.step < _PRUNE_STEP:
        return None
    return announced.step - _PRUNE_STEP


def parse_checkpoint_key(key: str) -> Optional[CheckpointRef]:
    """Return the checkpoint that a key commits, or None if it is not the key of a manifest.

    Example:
        >>> parse_checkpoint_key(manifest_key(CheckpointRef("main", 1, 20)))
        CheckpointRef(worker='main', lineage=1, step=20)
    """
    return _parse(_CHECKPOINT_KEY, key)


def parse_mark_key(key: str) -> Optional[MarkRef]:
    """Return the mark that a key names, or None if it is not the key of a mark.

    Example:
        >>> print(parse_mark_key("checkpoints/main/00000002/000000000530-00000001-000000000500.mark"))
        mark at step 530 (worker main, lineage 2, from step 500)
    """
    match = _MARK_KEY.fullmatch(key)
    ref = _parse(_MARK_KEY, key)
    if match is None or ref is None:
        return None
    base = CheckpointRef(ref.worker, int(match.group(4)), int(match.group(5)))
    return MarkRef(ref, base) if base.lineage <= ref.lineage and base.step <= ref.step else None


def parse_pin_key(key: str) -> Optional[CheckpointRef]:
    """Return the checkpoint that a key pins, or None if it is not the key of a pin."""
    return _parse(_PIN_KEY, key)


def parse_pack_key(key: str) -> Optional[CheckpointRef]:
    """Return the save that uploaded a pack, or None if the key is not that of a pack."""
    return _parse(_PACK_KEY, key)


def parse_lineage_key(key: str) -> Optional[int]:
    """Return the number of a lineage, or None if the key is not that of a lineage record."""
    match = _LINEAGE_KEY.fullmatch(key)
    return int(match.group(2)) if match and int(match.group(2)) <= MAX_LINEAGE else None


def _parse(pattern: re.Pattern[str], key: str, highest: int = MAX_LINEAGE) -> Optional[CheckpointRef]:
    match = pattern.fullmatch(key)
    if not match:
        return None
    ref = CheckpointRef(match.group(1), int(match.group(2)), int(match.group(3)))
    return ref if ref.lineage <= highest and ref.step <= MAX_STEP else None
