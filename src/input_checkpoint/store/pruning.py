"""Clean-up: references before data, and data only while no save is in flight."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.format.keys import (
    announcements_prefix,
    lineages_prefix,
    manifest_key,
    packs_prefix,
    parse_announcement_key,
    parse_lineage_key,
    parse_pack_key,
)
from input_checkpoint.format.lineage import InferredLineage, Lineage, abandoned_checkpoints
from input_checkpoint.retention.policy import RetentionPolicy, merge_reasons
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.pins import pin_reason, read_pins
from input_checkpoint.store.saving import LineageSaver, SaveInFlight

ORPHAN_AGE_SECONDS = 3600.0
"""Data that no manifest names and no clean-up has set free (a crash has left it) is removed at this age."""

_STALE_ANNOUNCEMENT_SECONDS = 24 * 3600
_DELETE_BATCH = 500


@dataclass(frozen=True)
class PruneReport:
    """What a prune kept and removed, or would."""

    kept: Mapping[CheckpointRef, str]
    """Every checkpoint that stays, with the reason."""
    removed: tuple[CheckpointRef, ...]
    """Checkpoints that go, from old to new."""
    removed_packs: tuple[str, ...]
    """Keys of the data that goes with them, or that a crash has left."""


class ReleasedPacks:
    """Checkpoints whose manifests this process has removed, and of whose data something is still there.

    Data that a prune must leave, since a save is in flight or another checkpoint refers to it, then goes with
    a later prune and need not reach the age of an orphan.
    """

    def __init__(self) -> None:
        self.refs: frozenset[CheckpointRef] = frozenset()

    def add(self, removed: Iterable[CheckpointRef]) -> None:
        """Remember checkpoints whose manifests are gone."""
        self.refs = self.refs | frozenset(removed)

    def keep_only_makers_of(self, packs: Iterable[str]) -> None:
        """Forget those of which none of these packs is left."""
        self.refs &= frozenset(filter(None, map(parse_pack_key, packs)))


class Pruner:
    """Prunes one worker.

    Removing data is safe against a save that runs at the same time, in this process or another, without a
    lock. A save first announces itself, then lists the manifests and builds only on those, then uploads,
    commits, and at last takes its announcement back. A prune deletes manifests, then lists packs, then looks
    for announcements, then lists the manifests again. Whatever the order in which these steps of the two
    meet, either the prune sees the announcement and leaves the packs alone, or the save sees that the
    manifest is gone, or the prune sees the new manifest.

    A writer that prunes beside its own save knows what that save builds on, and spares just that. Saves that
    follow one another without a pause would otherwise let nothing be removed.

    Args:
        catalog: what there is, and where.
        newest: the worker's newest lineage.
        check_may_delete: called before anything is deleted; raises if it must not be.
        set_free: what earlier prunes of this process have left.
        own: the saver of ``newest``, if it is the writer who prunes.
    """

    def __init__(
        self,
        catalog: Catalog,
        newest: Lineage,
        check_may_delete: Callable[[], None],
        set_free: ReleasedPacks,
        own: Optional[LineageSaver] = None,
    ) -> None:
        self._catalog = catalog
        self._backend = catalog.backend
        self._newest = newest
        self._check_may_delete = check_may_delete
        self._set_free = set_free
        self._own = own

    def prune(self, policy: RetentionPolicy, orphan_age: float, dry_run: bool) -> PruneReport:
        """See `CheckpointStore.prune`."""
        present = self._present()
        kept = self._kept(policy, present)
        removed = tuple(ref for ref in present if ref not in kept)
        if not dry_run:
            self._delete([manifest_key(ref) for ref in removed])
            self._set_free.add(removed)
        packs = list(self._backend.list(packs_prefix(self._newest.worker)))
        announcements = list(self._backend.list(announcements_prefix(self._newest.worker)))
        if any(map(self._is_of_another_save, announcements)):
            return PruneReport(kept, removed, ())
        # Asked after the announcements: a save that has begun since then builds on nothing that is gone.
        own = self._own.in_flight() if self._own else None
        remaining = kept if dry_run else self._present()
        freed = {*removed, *self._set_free.refs}
        unneeded = self._unneeded(
            [info for info in packs if not _needs(own, info)], remaining, freed, orphan_age
        )
        if not dry_run:
            self._delete(unneeded)
            self._set_free.keep_only_makers_of({info.key for info in packs} - set(unneeded))
            self._delete([info.key for info in announcements if own is None or info.key != own.announcement])
            self._delete(self._outlived_lineages(remaining))
        return PruneReport(kept, removed, tuple(unneeded))

    def _present(self) -> Sequence[CheckpointRef]:
        return self._catalog.refs(self._newest.worker)

    def _kept(self, policy: RetentionPolicy, present: Sequence[CheckpointRef]) -> dict[CheckpointRef, str]:
        if isinstance(self._newest, InferredLineage):
            # Neither what it has left behind is known, nor what there is for the policy to choose from.
            kept = dict.fromkeys(present, f"the record of lineage {self._newest.number} cannot be read")
        else:
            kept = self._kept_of_line(policy, self._newest.history(present), present)
        return merge_reasons((kept, self._pinned(present)))

    def _kept_of_line(
        self, policy: RetentionPolicy, history: Sequence[CheckpointRef], present: Sequence[CheckpointRef]
    ) -> dict[CheckpointRef, str]:
        given_up = set(abandoned_checkpoints(self._newest, present))
        judged = {*given_up, *history}
        kept = {ref: "not yet given up" for ref in present if ref not in judged}
        self._catalog.fetch_headers(history)
        readable = []
        for ref in history:
            try:
                readable.append(self._catalog.header(ref).info)
            except CorruptCheckpointError:
                kept[ref] = "its manifest cannot be read"
            except CheckpointNotFoundError:
                continue  # somebody else has just removed it
        kept.update(policy.keep(readable))
        if history:
            kept.setdefault(history[-1], "the newest")
        return kept

    def _pinned(self, present: Sequence[CheckpointRef]) -> dict[CheckpointRef, str]:
        # Asked for last: reading headers and listing a model directory take time, in which a pin may come.
        notes = read_pins(self._backend, self._newest.worker)
        return {ref: pin_reason(notes[ref]) for ref in present if ref in notes}

    def _is_of_another_save(self, announcement: ObjectInfo) -> bool:
        """Whether somebody else's save may be in flight. Those of older lineages can no longer commit."""
        save = parse_announcement_key(announcement.key)
        if save is None or save.lineage < self._newest.number:
            return False
        if self._own is not None and save.lineage == self._newest.number:
            return False
        # A process that was killed, and that no run has followed, takes nothing back.
        return _age(announcement) < _STALE_ANNOUNCEMENT_SECONDS

    def _unneeded(
        self,
        packs: Sequence[ObjectInfo],
        remaining: Collection[CheckpointRef],
        freed: Collection[CheckpointRef],
        orphan_age: float,
    ) -> list[str]:
        named: set[str] = set()
        damaged: list[CheckpointRef] = []
        committed = set(remaining)
        self._catalog.fetch_headers(committed)
        for ref in committed:
            try:
                named.update(pack.key for pack in self._catalog.header(ref).packs)
            except CorruptCheckpointError:
                damaged.append(ref)
            except CheckpointNotFoundError:
                continue  # somebody else has just removed it
        unneeded = []
        for pack in packs:
            maker = parse_pack_key(pack.key)
            if maker is None or maker in committed or pack.key in named:
                continue
            if any(maker <= ref for ref in damaged):
                # What a damaged manifest names is unknown to us, but not to the writer that goes on from it.
                continue
            if maker in freed or _age(pack) >= orphan_age:
                unneeded.append(pack.key)
        return unneeded

    def _outlived_lineages(self, remaining: Collection[CheckpointRef]) -> list[str]:
        """Return records of lineages of which nothing is left. All are evidence while the newest is lost."""
        if isinstance(self._newest, InferredLineage):
            return []
        needed = {self._newest.number, *(ref.lineage for ref in remaining)}
        keys = [info.key for info in self._backend.list(lineages_prefix(self._newest.worker))]
        numbers = {key: parse_lineage_key(key) for key in keys}
        return [
            key
            for key, number in numbers.items()
            if number is not None and number < self._newest.number and number not in needed
        ]

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            self._check_may_delete()
            self._backend.delete(keys[start : start + _DELETE_BATCH])


def _needs(save: Optional[SaveInFlight], pack: ObjectInfo) -> bool:
    """Whether a save has made a pack, or may refer to it."""
    return save is not None and (parse_pack_key(pack.key) == save.ref or pack.key in save.built_on)


def _age(info: ObjectInfo) -> float:
    """Return the age in seconds; of unknown age is old."""
    return math.inf if info.modified is None else time.time() - info.modified
