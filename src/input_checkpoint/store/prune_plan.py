"""What a prune keeps and what it removes: pure decisions, each with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.format.keys import parse_announcement_key, parse_lineage_key, parse_pack_key
from input_checkpoint.format.lineage import InferredLineage, Lineage, abandoned_checkpoints
from input_checkpoint.retention.policy import RetentionPolicy, merge_reasons
from input_checkpoint.store.pins import pin_reason
from input_checkpoint.store.saving import PendingSave

STALE_ANNOUNCEMENT_SECONDS = 24 * 3600.0

_NOT_ABANDONED_YET = "left behind by a restart; kept until the new run has saved twice"


@dataclass(frozen=True)
class ReadableHistory:
    """The history of a worker as far as its manifests could be read, from old to new."""

    infos: Sequence[CheckpointInfo]
    damaged: Collection[CheckpointRef]
    """Checkpoints whose manifest cannot be read."""


@dataclass(frozen=True)
class CheckpointPlan:
    """Which checkpoints a prune keeps and removes."""

    kept: Mapping[CheckpointRef, str]
    """Every checkpoint that stays, with the reason."""
    removed: tuple[CheckpointRef, ...]
    """Checkpoints to remove, from old to new."""


@dataclass(frozen=True)
class PackNeeds:
    """What the remaining checkpoints need."""

    named: Collection[str]
    """Keys of all packs that a readable manifest names."""
    damaged: Collection[CheckpointRef]
    """Checkpoints whose manifest cannot be read: which packs they need is unknown."""


def kept_checkpoints(
    newest: Lineage, present: Sequence[CheckpointRef], history: ReadableHistory, policy: RetentionPolicy
) -> dict[CheckpointRef, str]:
    """Return which checkpoints of a worker stay even if none is pinned, each with the reason.

    Args:
        newest: the worker's newest lineage.
        present: all its checkpoints, from old to new.
        history: those that it can resume from.
        policy: what to keep.
    """
    if isinstance(newest, InferredLineage):
        # Neither what the lineage has left behind is known, nor what the policy could choose from.
        return dict.fromkeys(present, f"the record of lineage {newest.number} cannot be read")
    line = newest.history(present)
    decided = {*abandoned_checkpoints(newest, present), *line}
    kept = {ref: _NOT_ABANDONED_YET for ref in present if ref not in decided}
    kept.update(dict.fromkeys(history.damaged, "its manifest cannot be read"))
    kept.update(policy.keep(history.infos))
    if line:
        kept.setdefault(line[-1], "the newest")
    return kept


def plan_checkpoints(
    present: Sequence[CheckpointRef], kept: Mapping[CheckpointRef, str], pins: Mapping[CheckpointRef, str]
) -> CheckpointPlan:
    """Decide which checkpoints of a worker to keep.

    Args:
        present: all its checkpoints, from old to new.
        kept: see `kept_checkpoints`.
        pins: pinned checkpoints, with their notes.
    """
    pinned = {ref: pin_reason(pins[ref]) for ref in present if ref in pins}
    reasons = merge_reasons((kept, pinned))
    return CheckpointPlan(reasons, tuple(ref for ref in present if ref not in reasons))


def blocks_removal(announcement: ObjectInfo, newest: Lineage, age: float, own_run: bool) -> bool:
    """Whether an announcement may belong to a save in progress that could need any pack.

    Args:
        announcement: its entry in a listing.
        newest: the worker's newest lineage. Saves of older ones can no longer commit.
        age: seconds since the announcement was written.
        own_run: whether ``newest`` is the run that prunes. Its own save is no obstacle.
    """
    save = parse_announcement_key(announcement.key)
    if save is None or save.lineage < newest.number:
        return False
    if own_run and save.lineage == newest.number:
        return False
    # A process that was killed, and that no run has followed, leaves its announcement behind.
    return age < STALE_ANNOUNCEMENT_SECONDS


def unneeded_packs(
    packs: Mapping[str, float],
    committed: Collection[CheckpointRef],
    needs: PackNeeds,
    released: Collection[CheckpointRef],
    pending: Optional[PendingSave],
    orphan_age: float,
) -> list[str]:
    """Return the keys of the packs that nobody needs any more.

    Args:
        packs: key of each pack, with its age in seconds.
        committed: the checkpoints that remain.
        needs: what they need.
        released: checkpoints that were removed, whose packs may go at any age.
        pending: this run's own save in progress, if there is one.
        orphan_age: seconds after which a pack without a checkpoint counts as left behind by a crash.
    """

    def is_unneeded(key: str, age: float) -> bool:
        if key in needs.named:
            return False
        owner = parse_pack_key(key)
        if owner is None or owner in committed:
            return False
        if pending is not None and (owner == pending.ref or key in pending.known_packs):
            return False
        if any(owner <= ref for ref in needs.damaged):
            # We cannot tell what a damaged manifest names, but the run that resumed from it can.
            return False
        return owner in released or age >= orphan_age

    return [key for key, age in packs.items() if is_unneeded(key, age)]


def unneeded_lineages(
    newest: Lineage, keys: Collection[str], committed: Collection[CheckpointRef]
) -> list[str]:
    """Return the keys of lineage records of which no checkpoint is left.

    All records are evidence while the newest one cannot be read.
    """
    if isinstance(newest, InferredLineage):
        return []
    needed = {newest.number, *(ref.lineage for ref in committed)}
    numbers = {key: parse_lineage_key(key) for key in keys}
    return [
        key
        for key, number in numbers.items()
        if number is not None and number < newest.number and number not in needed
    ]
