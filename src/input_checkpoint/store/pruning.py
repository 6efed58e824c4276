"""Pruning: manifests are removed before data, and data only while no save is in progress."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.format.keys import (
    announcements_prefix,
    lineages_prefix,
    manifest_key,
    packs_prefix,
    parse_announcement_key,
    parse_pack_key,
)
from input_checkpoint.format.lineage import InferredLineage, Lineage
from input_checkpoint.format.manifest import Header
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.fencing import Fence
from input_checkpoint.store.pins import read_pins
from input_checkpoint.store.prune_plan import (
    CheckpointPlan,
    PackNeeds,
    ReadableHistory,
    blocks_removal,
    kept_checkpoints,
    plan_checkpoints,
    unneeded_lineages,
    unneeded_packs,
)
from input_checkpoint.store.saving import CheckpointSaver

ORPHAN_AGE_SECONDS = 3600.0
"""Age at which data that no manifest names counts as left behind by a crash, and is removed."""

_DELETE_BATCH = 500


@dataclass(frozen=True)
class PruneReport:
    """What a prune kept and removed, or would."""

    kept: Mapping[CheckpointRef, str]
    """Every checkpoint that stays, with the reason."""
    removed: tuple[CheckpointRef, ...]
    """Checkpoints that were removed, from old to new."""
    removed_packs: tuple[str, ...]
    """Keys of the data that was removed with them, or that a crash had left behind."""
    removed_bytes: int = 0
    """Size of that data."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values.

        Example:
            >>> PruneReport({CheckpointRef("main", 1, 20): "the newest"}, (), ()).to_dict()["kept"]
            [{'worker': 'main', 'lineage': 1, 'step': 20, 'reason': 'the newest'}]
        """
        return {
            "kept": [{**ref.to_dict(), "reason": reason} for ref, reason in self.kept.items()],
            "removed": [ref.to_dict() for ref in self.removed],
            "removed_packs": list(self.removed_packs),
            "removed_bytes": self.removed_bytes,
        }


class ReleasedPacks:
    """Checkpoints whose manifests this process has removed, while some of their data remains.

    A prune must leave data in place if a save is in progress or another checkpoint refers to it. A later
    prune then removes that data at once instead of waiting until it has the age of an orphan.
    """

    def __init__(self) -> None:
        self.refs: frozenset[CheckpointRef] = frozenset()

    def add(self, removed: Iterable[CheckpointRef]) -> None:
        """Remember checkpoints whose manifests are gone."""
        self.refs = self.refs | frozenset(removed)

    def keep_only_owners(self, worker: str, packs: Iterable[str]) -> None:
        """Forget the worker's checkpoints that own none of these packs."""
        if not self.refs:
            return
        owners = frozenset(filter(None, map(parse_pack_key, packs)))
        self.refs = frozenset(ref for ref in self.refs if ref.worker != worker or ref in owners)


class Pruner:
    """Prunes one worker.

    Removing data is safe without a lock, even while a save is running in this or another process. A save
    first announces itself, then looks up the manifests that it may build on and builds only on those that
    exist, then uploads, commits, and finally withdraws its announcement. A prune deletes manifests, then
    lists packs, then looks for announcements, then lists the manifests again. In whatever order these steps
    interleave, either the prune sees the announcement and leaves the packs alone, or the save sees that the
    manifest is gone, or the prune sees the new manifest.

    A run that prunes beside its own save knows what that save builds on and spares exactly that. Otherwise
    nothing could ever be removed while one save follows the other without a pause.

    Args:
        catalog: of the store.
        newest: the worker's newest lineage.
        fence: raises if a newer one has begun.
        released: what earlier prunes of this process have left.
        own: the saver of ``newest``, if it is that run which prunes.
    """

    def __init__(
        self,
        catalog: Catalog,
        newest: Lineage,
        fence: Fence,
        released: ReleasedPacks,
        own: Optional[CheckpointSaver] = None,
    ) -> None:
        self._catalog = catalog
        self._backend = catalog.backend
        self._newest = newest
        self._worker = newest.worker
        self._fence = fence
        self._released = released
        self._own = own

    def prune(self, policy: RetentionPolicy, orphan_age: float, dry_run: bool) -> PruneReport:
        """See `CheckpointStore.prune`."""
        plan = self._plan(policy)
        if not dry_run:
            self._delete([manifest_key(ref) for ref in plan.removed])
            self._released.add(plan.removed)
        # Nothing but what the library itself has named can be removed.
        packs = [info for info in self._backend.list(packs_prefix(self._worker)) if parse_pack_key(info.key)]
        announcements = [
            info
            for info in self._backend.list(announcements_prefix(self._worker))
            if parse_announcement_key(info.key)
        ]
        if any(map(self._blocks_removal, announcements)):
            return PruneReport(plan.kept, plan.removed, ())
        return self._remove_data(plan, packs, announcements, orphan_age, dry_run)

    def _plan(self, policy: RetentionPolicy) -> CheckpointPlan:
        present = self._catalog.refs(self._worker)
        history = self._read_history(self._newest.history(present))
        kept = kept_checkpoints(self._newest, present, history, policy)
        # Pins are read last: all of the above takes time, in which one may be added.
        return plan_checkpoints(present, kept, read_pins(self._backend, self._worker))

    def _remove_data(
        self,
        plan: CheckpointPlan,
        packs: Sequence[ObjectInfo],
        announcements: Sequence[ObjectInfo],
        orphan_age: float,
        dry_run: bool,
    ) -> PruneReport:
        # Read after the announcements: a save that has begun since then builds on nothing that is gone.
        pending = self._own.pending() if self._own else None
        remaining = set(plan.kept if dry_run else self._catalog.refs(self._worker))
        unneeded = unneeded_packs(
            {info.key: _age(info) for info in packs},
            remaining,
            self._read_needs(remaining),
            {*plan.removed, *self._released.refs},
            pending,
            orphan_age,
        )
        if not dry_run:
            self._delete(unneeded)
            self._released.keep_only_owners(self._worker, {info.key for info in packs} - set(unneeded))
            own_announcement = pending.announcement if pending else None
            self._delete([info.key for info in announcements if info.key != own_announcement])
            lineages = [info.key for info in self._backend.list(lineages_prefix(self._worker))]
            self._delete(unneeded_lineages(self._newest, lineages, remaining))
        sizes = {info.key: info.size for info in packs}
        return PruneReport(plan.kept, plan.removed, tuple(unneeded), sum(sizes[key] for key in unneeded))

    def _blocks_removal(self, announcement: ObjectInfo) -> bool:
        return blocks_removal(announcement, self._newest, _age(announcement), self._own is not None)

    def _read_history(self, history: Sequence[CheckpointRef]) -> ReadableHistory:
        if isinstance(self._newest, InferredLineage):
            return ReadableHistory((), ())  # not needed: everything is kept
        headers, damaged = self._read_headers(history)
        return ReadableHistory([header.info for header in headers], damaged)

    def _read_needs(self, committed: Collection[CheckpointRef]) -> PackNeeds:
        headers, damaged = self._read_headers(committed)
        return PackNeeds({pack.key for header in headers for pack in header.packs}, damaged)

    def _read_headers(self, refs: Collection[CheckpointRef]) -> tuple[list[Header], list[CheckpointRef]]:
        """Return the headers that can be read, and the checkpoints whose manifest is damaged."""
        self._catalog.fetch_headers(refs)
        headers, damaged = [], []
        for ref in refs:
            try:
                headers.append(self._catalog.header(ref))
            except CorruptCheckpointError:
                damaged.append(ref)
            except CheckpointNotFoundError:
                continue  # another process has just removed it
        return headers, damaged

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            self._fence.check_may_delete()
            self._backend.delete(keys[start : start + _DELETE_BATCH])


def _age(info: ObjectInfo) -> float:
    """Return the age in seconds. An unknown age counts as old."""
    return math.inf if info.modified is None else time.time() - info.modified
