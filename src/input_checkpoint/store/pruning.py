"""Pruning: manifests are removed before data, and data only while no save is in progress."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.checkpoint import CheckpointRef, MarkRef, with_marks
from input_checkpoint.errors import (
    BackendError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
)
from input_checkpoint.format.keys import (
    manifest_key,
    mark_key,
    packs_prefix,
    parse_pack_key,
    prune_announcement_key,
)
from input_checkpoint.format.lineage import InferredLineage, Lineage, abandoned_marks
from input_checkpoint.format.manifest import Header
from input_checkpoint.parallel import map_ordered
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.store.announcing import Announcement
from input_checkpoint.store.catalog import Catalog, CheckpointListing, RunListing, saved_refs
from input_checkpoint.store.contradictions import inconsistent_listing
from input_checkpoint.store.cross_check import checked_listing, owners
from input_checkpoint.store.fencing import Fence
from input_checkpoint.store.pins import read_pin, read_pins
from input_checkpoint.store.prune_plan import (
    AnnouncementPlan,
    CheckpointPlan,
    PackNeeds,
    ReadableHistory,
    age_of,
    kept_checkpoints,
    plan_announcements,
    plan_checkpoints,
    unneeded_lineages,
    unneeded_marks,
    unneeded_packs,
)
from input_checkpoint.store.saving import CheckpointSaver, PendingSave

logger = logging.getLogger(__name__)

ORPHAN_AGE_SECONDS = 3600.0
"""Age at which data that no manifest names counts as left behind by a crash, and is removed."""

_DELETE_BATCH = 500
_PINS_AT_ONCE = 16


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
    held_back_by: tuple[str, ...] = ()
    """Keys of the announcements of saves and copies in progress. If there are any, this prune has left all
    data in place, and a later prune removes it."""
    removed_marks: tuple[MarkRef, ...] = ()
    """Marks that were removed: the checkpoint that they lean on is gone, or a restart left them behind."""

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
            "held_back_by": list(self.held_back_by),
            "removed_marks": [mark.to_dict() for mark in self.removed_marks],
        }


class ReleasedPacks:
    """What this process knows about checkpoints that are gone, while some of their data remains.

    A prune must leave data in place if a save is in progress or another checkpoint refers to it. A later
    prune then removes that data at once instead of waiting until it has the age of an orphan.
    """

    def __init__(self) -> None:
        self.refs: frozenset[CheckpointRef] = frozenset()
        """Checkpoints whose manifests this process has removed."""
        self.absent: frozenset[CheckpointRef] = frozenset()
        """Checkpoints that others have removed or never committed. Nobody can commit them any more."""

    def add(self, removed: Iterable[CheckpointRef]) -> None:
        """Remember checkpoints whose manifests are gone."""
        self.refs = self.refs | frozenset(removed)

    def add_absent(self, absent: Iterable[CheckpointRef]) -> None:
        """Remember checkpoints that do not exist and never will."""
        self.absent = self.absent | frozenset(absent)

    def keep_only(self, worker: str, owners: Collection[CheckpointRef]) -> None:
        """Forget the worker's checkpoints except these."""
        self.refs = frozenset(ref for ref in self.refs if ref.worker != worker or ref in owners)
        self.absent = frozenset(ref for ref in self.absent if ref.worker != worker or ref in owners)


class Pruner:
    """Prunes one worker.

    Removing data is safe without a lock, even while a save is running in this or another process. A save
    first announces itself, then looks up the manifests that it may build on and builds only on those that
    exist. It uploads meanwhile. Then it commits, makes sure that its announcement still exists, and withdraws
    it. A prune lists packs, deletes manifests, looks for announcements, deletes those that it does not
    respect, then lists the manifests again. In whatever order these steps interleave, either the prune sees
    the announcement and leaves the packs alone, or the save sees that the manifest or its announcement is
    gone, or the prune sees the new manifest.

    A run that prunes beside its own save knows what that save builds on and spares exactly that. Otherwise
    nothing could ever be removed while one save follows the other without a pause.

    No data is removed because of one answer of the storage. Before manifests are deleted, and again before
    packs are, the manifest of every checkpoint that has a pack but is not listed is requested by its key.

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
        self._announcement: Optional[str] = None

    def prune(self, policy: RetentionPolicy, orphan_age: float, dry_run: bool) -> PruneReport:
        """See `CheckpointStore.prune`."""
        with contextlib.ExitStack() as announced:
            self._announcement = None if dry_run else self._announce(announced)
            return self._prune(policy, orphan_age, dry_run)

    def _announce(self, announced: contextlib.ExitStack) -> Optional[str]:
        """Announce this prune, and return the key; None if there is no space for an empty object."""
        announcement = Announcement(
            self._backend, lambda unique: prune_announcement_key(self._worker, self._newest.number, unique)
        )
        try:
            announced.enter_context(announcement.in_force())
        except BackendError as error:
            if type(error) is not BackendError:
                raise
            # A full disk must not keep a prune from freeing space. Without an announcement, ages are unknown.
            problem = str(error).rstrip(".")
            logger.warning("%s. This prune removes only data whose age does not matter.", problem)
            return None
        return announcement.key

    def _prune(self, policy: RetentionPolicy, orphan_age: float, dry_run: bool) -> PruneReport:
        listed = self._backend.list(packs_prefix(self._worker))
        # Nothing but what the library itself has named can be removed.
        packs = {info.key: info for info in listed if parse_pack_key(info.key)}
        plan, marks = self._plan(policy, packs)
        if not dry_run:
            # A mark goes after its base, so that none is missing whose base is still there.
            self._delete([*map(manifest_key, plan.removed), *map(mark_key, marks)])
            self._released.add(plan.removed)
        report = PruneReport(plan.kept, plan.removed, (), removed_marks=marks)
        view = self._look(dry_run)
        if view.plan.dead and not dry_run:
            # Before any data is removed, so that a process that is still alive notices. It may have renewed
            # its announcement in the meantime.
            self._backend.delete(view.plan.dead)
            view = self._look(dry_run)
        held_back_by = view.plan.respected + (() if dry_run else view.plan.dead)
        if held_back_by:
            self._log_obstacles(view, held_back_by)
            return replace(report, held_back_by=held_back_by)
        return self._remove_data(report, packs, view, orphan_age, dry_run)

    def _plan(
        self, policy: RetentionPolicy, packs: Collection[str]
    ) -> tuple[CheckpointPlan, tuple[MarkRef, ...]]:
        """Return which checkpoints stay, and which marks go."""
        expected = {self._newest.parent, self._own.last_committed if self._own else None}
        listing = self._list_checkpoints({*owners(packs), *filter(None, expected)})
        present, marks = listing.checkpoints, listing.marks
        kept = kept_checkpoints(self._newest, present, self._read_history(listing), policy, marks)
        # Pins are read last: all of the above takes time, in which one may be added.
        plan = plan_checkpoints(present, kept, read_pins(self._backend, self._worker))
        found = map_ordered(lambda ref: read_pin(self._backend, ref), plan.removed, _PINS_AT_ONCE)
        unlisted = {ref: note for ref, note in zip(plan.removed, found) if note is not None}
        if unlisted:
            plan = plan_checkpoints(present, plan.kept, unlisted)
        return plan, tuple(unneeded_marks(self._newest, present, plan.kept, marks))

    def _look(self, dry_run: bool) -> _View:
        """Look for announcements."""
        now: Optional[float] = None
        if dry_run:
            listing = self._catalog.list_runs(self._worker)
            now = time.time()  # for a report, this clock is good enough
        else:
            listing = self._fence.check_may_delete(self._announcement)
            if self._announcement:
                now = listing.announcements[self._announcement].modified
        # Read after the announcements: a save that has begun since then builds on nothing that is gone.
        pending = self._own.pending() if self._own else None
        own = {self._announcement} | (pending.announcements if pending else frozenset())
        plan = plan_announcements(listing.announcements, self._newest, now, self._own is not None, own)
        return _View(listing, now, pending, plan)

    def _remove_data(
        self,
        report: PruneReport,
        packs: Mapping[str, ObjectInfo],
        view: _View,
        orphan_age: float,
        dry_run: bool,
    ) -> PruneReport:
        listing = None if dry_run else self._list_checkpoints({*owners(packs), *report.kept})
        remaining = set(report.kept if listing is None else listing.checkpoints)
        unneeded = unneeded_packs(
            {key: age_of(info, view.now) for key, info in packs.items()},
            self._newest,
            remaining,
            self._read_needs(remaining),
            {*report.removed, *self._released.refs},
            view.pending,
            orphan_age,
        )
        if listing is not None:
            records = unneeded_lineages(self._newest, view.listing.records, saved_refs(listing))
            self._delete([*unneeded, *records])
            self._released.keep_only(self._worker, owners(packs.keys() - set(unneeded)))
        return replace(
            report,
            removed_packs=tuple(unneeded),
            removed_bytes=sum(packs[key].size for key in unneeded),
        )

    def _list_checkpoints(self, expected: Collection[CheckpointRef]) -> CheckpointListing:
        """List the worker's checkpoints, and request the manifests of those that may exist unlisted."""
        pending = self._own.pending() if self._own else None
        known = {*self._released.refs, *self._released.absent, *([pending.ref] if pending else [])}
        listing = checked_listing(self._catalog, self._worker, expected, known)
        expected = {*expected, *(mark.base for mark in listing.marks)}.difference(known)
        # Steps only grow, and a run that has been superseded commits nothing more.
        newest = max(listing.checkpoints, default=None)
        self._released.add_absent(
            ref
            for ref in expected.difference(listing.checkpoints)
            if ref.lineage < self._newest.number or (newest is not None and ref < newest)
        )
        return listing

    def _read_history(self, listing: CheckpointListing) -> ReadableHistory:
        if isinstance(self._newest, InferredLineage):
            return ReadableHistory((), ())  # not needed: everything is kept
        headers, damaged = self._read_headers(self._newest.history(listing.checkpoints))
        left_behind = set(abandoned_marks(self._newest, listing.checkpoints, listing.marks))
        marks = [mark for mark in listing.marks if mark not in left_behind]
        return ReadableHistory(with_marks([header.info for header in headers], marks), damaged)

    def _read_needs(self, committed: Collection[CheckpointRef]) -> PackNeeds:
        headers, damaged = self._read_headers(committed)
        return PackNeeds({pack.key for header in headers for pack in header.packs}, damaged)

    def _read_headers(self, refs: Collection[CheckpointRef]) -> tuple[list[Header], list[CheckpointRef]]:
        """Return the headers that can be read, and the checkpoints whose manifest is damaged.

        Raises:
            InconsistentListingError: a manifest is listed and cannot be found.
        """
        self._catalog.fetch_headers(refs)
        headers, damaged = [], []
        for ref in refs:
            try:
                headers.append(self._catalog.header(ref))
            except CorruptCheckpointError:
                damaged.append(ref)
            except CheckpointNotFoundError as error:
                # Another process may have just removed it.
                if self._catalog.holds(ref):
                    raise inconsistent_listing(
                        f"{error}, although it is listed",
                        "No data was removed because of this.",
                        uri=error.uri,
                        key=error.key,
                        ref=ref,
                    ) from error
        return headers, damaged

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            self._fence.check_may_delete(self._announcement)
            self._backend.delete(keys[start : start + _DELETE_BATCH])

    def _log_obstacles(self, view: _View, keys: Sequence[str]) -> None:
        is_unclear = any(age_of(view.listing.announcements[key], view.now) is None for key in keys)
        logger.log(
            logging.WARNING if is_unclear else logging.INFO,
            "%s: no data was removed, because a save or copy of worker %r seems to be in progress (%s). %s",
            self._backend.uri,
            self._worker,
            ", ".join(keys),
            "This storage does not report the age of an announcement. If the process is dead, delete it."
            if is_unclear
            else "The next prune removes it.",
        )


@dataclass(frozen=True)
class _View:
    """What a prune has seen when it looked for announcements."""

    listing: RunListing
    now: Optional[float]
    """The time by the clock of the storage; None if it is unknown."""
    pending: Optional[PendingSave]
    """The save in progress of the run that prunes."""
    plan: AnnouncementPlan
