"""What a prune keeps and what it removes: pure decisions, each with its reason."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, MarkRef
from input_checkpoint.format.keys import (
    parse_announcement_key,
    parse_pack_key,
    parse_prune_announcement_key,
)
from input_checkpoint.format.lineage import (
    InferredLineage,
    Lineage,
    abandoned_checkpoints,
    abandoned_marks,
)
from input_checkpoint.retention.policy import RetentionPolicy, merge_reasons
from input_checkpoint.store.announcing import STALE_ANNOUNCEMENT_SECONDS
from input_checkpoint.store.pins import pin_reason
from input_checkpoint.store.saving import PendingSave

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
    newest: Lineage,
    present: Sequence[CheckpointRef],
    history: ReadableHistory,
    policy: RetentionPolicy,
    marks: Sequence[MarkRef] = (),
) -> dict[CheckpointRef, str]:
    """Return which checkpoints of a worker stay even if none is pinned, each with the reason.

    Args:
        newest: the worker's newest lineage.
        present: all its checkpoints, from old to new.
        history: those that it can resume from.
        policy: what to keep.
        marks: all its marks.
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
    if not any(ref.lineage == newest.number for ref in present):
        for mark in marks:
            if mark.ref == newest.parent and mark.base in line:
                kept.setdefault(mark.base, "the newest run was resumed from it, and has not saved yet")
    return kept


def unneeded_marks(
    newest: Lineage,
    present: Sequence[CheckpointRef],
    kept: Collection[CheckpointRef],
    marks: Sequence[MarkRef],
) -> list[MarkRef]:
    """Return the marks of a worker that are of no use: their base goes or is gone, or they are abandoned.

    Args:
        newest: the worker's newest lineage.
        present: all its checkpoints, from old to new.
        kept: those that stay.
        marks: all its marks.
    """
    abandoned = set(abandoned_marks(newest, present, marks))
    return [mark for mark in marks if mark in abandoned or mark.base not in kept]


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


@dataclass(frozen=True)
class AnnouncementPlan:
    """Which of the announcements that a prune has found it respects."""

    respected: tuple[str, ...]
    """Keys of those whose process may be alive and need any pack."""
    dead: tuple[str, ...]
    """Keys of the others. They must be deleted before any pack is."""


def plan_announcements(
    announcements: Mapping[str, ObjectInfo],
    newest: Lineage,
    now: Optional[float],
    is_own_run: bool,
    own: Collection[Optional[str]],
) -> AnnouncementPlan:
    """Decide which announcements a prune respects.

    Args:
        announcements: their entries in a listing, by key.
        newest: the worker's newest lineage. Saves of older ones cannot commit any more.
        now: the time by the clock of the storage; None if it is unknown.
        is_own_run: whether ``newest`` is the run that prunes. Its own saves are no obstacle.
        own: keys of the announcements of this prune, and of the save in progress of this run.
    """
    respected: list[str] = []
    dead: list[str] = []
    for key, info in announcements.items():
        if key in own:
            continue
        age = age_of(info, now)
        is_stale = age is not None and age >= STALE_ANNOUNCEMENT_SECONDS
        pruning = parse_prune_announcement_key(key)
        if pruning is not None:
            # Prunes do not hold each other back.
            if is_stale or pruning < newest.number:
                dead.append(key)
        elif is_stale or _is_over(key, newest, is_own_run):
            dead.append(key)
        else:
            respected.append(key)
    return AnnouncementPlan(tuple(respected), tuple(dead))


def _is_over(announcement: str, newest: Lineage, is_own_run: bool) -> bool:
    """Whether an announcement is of an older run, or of an earlier save of the run that prunes."""
    save = parse_announcement_key(announcement)
    if save is None:
        return False
    return save.lineage < newest.number or (is_own_run and save.lineage == newest.number)


def age_of(info: ObjectInfo, now: Optional[float]) -> Optional[float]:
    """Return the age of an object in seconds by the clock of the storage, or None if it is unknown.

    Args:
        info: its entry in a listing.
        now: when an object was written that this process has just written, from a listing of the same
            storage.
    """
    return None if info.modified is None or now is None else now - info.modified


def unneeded_packs(
    packs: Mapping[str, Optional[float]],
    newest: Lineage,
    committed: Collection[CheckpointRef],
    needs: PackNeeds,
    released: Collection[CheckpointRef],
    pending: Optional[PendingSave],
    orphan_age: float,
) -> list[str]:
    """Return the keys of the packs that nobody needs any more.

    Args:
        packs: key of each pack, with its age in seconds; None if it is unknown.
        newest: the worker's newest lineage.
        committed: the checkpoints that remain.
        needs: what they need.
        released: checkpoints that were removed, whose packs may go at any age.
        pending: this run's own save in progress, if there is one.
        orphan_age: seconds after which a pack without a checkpoint counts as left behind by a crash.
    """

    def is_unneeded(key: str, age: Optional[float]) -> bool:
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
        if owner in released:
            return True
        # Without times, only a run that has been superseded is known to have left its data behind.
        return owner.lineage < newest.number if age is None else age >= orphan_age

    return [key for key, age in packs.items() if is_unneeded(key, age)]


def unneeded_lineages(
    newest: Lineage, records: Mapping[int, str], committed: Collection[CheckpointRef]
) -> list[str]:
    """Return the keys of the records of lineages of which nothing is left.

    All records are evidence while the newest one cannot be read.

    Args:
        newest: the worker's newest lineage.
        records: key of each record by the number of its lineage.
        committed: the checkpoints that remain, and the steps of the marks that remain.
    """
    if isinstance(newest, InferredLineage):
        return []
    needed = {ref.lineage for ref in committed}
    return [key for number, key in records.items() if number < newest.number and number not in needed]
