"""Copies checkpoints from one store to another, verifies them on the way, and commits each one like a save.

Every object keeps its key and its bytes. So the target shares data between checkpoints exactly as the source
does, and a run that was saved to the source can resume from the target.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any, Callable, Optional

import numpy as np

from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.probe_keys import PROBE_PREFIX
from input_checkpoint.checkpoint import CheckpointRef, MarkRef, mark_problems_to_list, problems_to_list
from input_checkpoint.errors import (
    BackendError,
    BackendUnavailableError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    DifferentHistoryError,
    InputCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    SaveExpiredError,
)
from input_checkpoint.format.chunk_table import Column
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.keys import (
    copy_announcement_key,
    lineages_prefix,
    manifest_key,
    mark_key,
    packs_prefix,
    parse_announcement_key,
    parse_lineage_key,
)
from input_checkpoint.format.limits import MAX_LINEAGE_BYTES
from input_checkpoint.format.lineage import decode_lineage
from input_checkpoint.format.manifest import Header, Manifest
from input_checkpoint.format.mark import decode_mark
from input_checkpoint.parallel import map_ordered
from input_checkpoint.store.announcing import Announcement
from input_checkpoint.store.bounded_reads import StoredManifest, read_at_most
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.pins import read_pins, write_pin
from input_checkpoint.store.reading import Extent, decode_chunks, read_chunks
from input_checkpoint.store.rereading import read_again_if_damaged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CopyProgress:
    """The progress of a copy. Marks do not count: they are small, and are copied with their checkpoint."""

    checkpoints: int
    """Checkpoints that are finished: copied, already present, or failed."""
    checkpoints_total: int
    bytes: int
    """Bytes of data that are at the target: copied or already present."""
    bytes_total: int

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in a form that `json.dumps` accepts.

        Example:
            >>> CopyProgress(checkpoints=1, checkpoints_total=3, bytes=500, bytes_total=2000).to_dict()
            {'checkpoints': 1, 'checkpoints_total': 3, 'bytes': 500, 'bytes_total': 2000}
        """
        return asdict(self)


@dataclass(frozen=True)
class CopyReport:
    """The result of a copy."""

    copied: tuple[CheckpointRef, ...]
    """Checkpoints that were copied. Sorted by worker, then from oldest to newest."""
    present: tuple[CheckpointRef, ...]
    """Checkpoints that the target already had."""
    problems: Mapping[CheckpointRef, str]
    """Checkpoints that were not copied, each with the reason: damaged, or removed during the copy."""
    copied_bytes: int
    """Bytes of data that were written."""
    copied_marks: tuple[MarkRef, ...] = ()
    """Marks that were written. Each leans on a checkpoint that the target has."""
    mark_problems: Mapping[MarkRef, str] = field(default_factory=dict)
    """Marks that were not copied, each with the reason: damaged, or removed during the copy."""

    @property
    def ok(self) -> bool:
        """Whether the target now has every requested checkpoint, and its marks."""
        return not self.problems and not self.mark_problems

    def to_dict(self) -> dict[str, Any]:
        """Return `ok` and all fields in a form that `json.dumps` accepts.

        Example:
            >>> ref = CheckpointRef("main", lineage=1, step=500)
            >>> report = CopyReport(copied=(ref,), present=(), problems={}, copied_bytes=2000)
            >>> report.to_dict()["copied"]
            [{'worker': 'main', 'lineage': 1, 'step': 500}]
        """
        return {
            "ok": self.ok,
            "copied": [ref.to_dict() for ref in self.copied],
            "present": [ref.to_dict() for ref in self.present],
            "problems": problems_to_list(self.problems),
            "copied_bytes": self.copied_bytes,
            "copied_marks": [mark.to_dict() for mark in self.copied_marks],
            "mark_problems": mark_problems_to_list(self.mark_problems),
        }


def copy(
    source: Catalog,
    target: Catalog,
    chosen: Sequence[CheckpointRef],
    concurrency: int,
    progress: Callable[[CopyProgress], None],
) -> CopyReport:
    """Copy checkpoints, see `CheckpointStore.copy_to`."""
    _check_not_the_same_place(source, target)
    tracker = _CopyProgressTracker(source, chosen, progress)
    copied_bytes = 0
    for worker, refs in groupby(sorted(chosen), key=lambda ref: ref.worker):
        copier = _WorkerCopier(source, target, worker, concurrency, tracker)
        copier.copy(list(refs))
        copied_bytes += copier.copied_bytes
    return CopyReport(
        copied=tuple(tracker.copied),
        present=tuple(tracker.present),
        problems=dict(tracker.problems),
        copied_bytes=copied_bytes,
        copied_marks=tuple(tracker.copied_marks),
        mark_problems=dict(tracker.mark_problems),
    )


def _check_not_the_same_place(source: Catalog, target: Catalog) -> None:
    """Raise ValueError if an object that is written to the target can be read from the source.

    URIs do not show this: two servers may have buckets of the same name, and one folder may have two names.
    """
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    target.backend.put(key, b"")
    try:
        is_same = source.exists(key)
    finally:
        with contextlib.suppress(BackendError):
            target.backend.delete([key])
    if is_same:
        raise ValueError(
            f"{source.backend.uri} cannot be copied to itself: {target.backend.uri} is the same place"
        )


class _CopyProgressTracker:
    """Collects the outcome of each checkpoint and reports progress."""

    def __init__(
        self, source: Catalog, chosen: Sequence[CheckpointRef], progress: Callable[[CopyProgress], None]
    ) -> None:
        sizes: dict[str, int] = {}
        for ref in chosen:
            # A checkpoint that cannot be read is reported when it is copied.
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                sizes.update((pack.key, pack.size) for pack in source.read_header(ref).packs)
        self._sizes = sizes
        self._finished_packs: set[str] = set()
        self._report = progress
        self._progress = CopyProgress(0, len(chosen), 0, sum(sizes.values()))
        self.copied: list[CheckpointRef] = []
        self.present: list[CheckpointRef] = []
        self.problems: dict[CheckpointRef, str] = {}
        self.copied_marks: list[MarkRef] = []
        self.mark_problems: dict[MarkRef, str] = {}

    def finish_packs(self, keys: Iterable[str]) -> None:
        """Record that packs are at the target."""
        self._finished_packs.update(keys)
        finished_bytes = sum(self._sizes.get(key, 0) for key in self._finished_packs)
        self._progress = replace(self._progress, bytes=finished_bytes)
        self._report(self._progress)

    def fail(self, ref: CheckpointRef, error: InputCheckpointError, target: Catalog) -> None:
        """Record that a checkpoint is not, or not completely, at the target."""
        logger.warning("Checkpoint was not copied to %s: %s", target.backend.uri, error)
        self.problems[ref] = str(error)
        for outcome in (self.copied, self.present):
            if ref in outcome:
                outcome.remove(ref)

    def fail_mark(self, mark: MarkRef, error: InputCheckpointError, target: Catalog) -> None:
        """Record that a mark is not at the target."""
        logger.warning("Mark was not copied to %s: %s", target.backend.uri, error)
        self.mark_problems[mark] = str(error)

    def finish_checkpoint(self) -> None:
        """Record that a checkpoint is finished, copied or not."""
        self._progress = replace(self._progress, checkpoints=self._progress.checkpoints + 1)
        self._report(self._progress)


class _WorkerCopier:
    """Copies checkpoints of one worker, from oldest to newest.

    To the target, a copy is like a save: it announces itself, uses only packs that a committed manifest lists
    or that it has verified, creates the manifest last, and makes sure that its announcement still exists (see
    `Pruner`). It replaces no data. At the source, an announcement stops prunes by other processes.
    Checkpoints and marks that the source's own run removes meanwhile are reported.
    """

    def __init__(
        self,
        source: Catalog,
        target: Catalog,
        worker: str,
        concurrency: int,
        tracker: _CopyProgressTracker,
    ) -> None:
        self._source = source
        self._target = target
        self._worker = worker
        self._concurrency = concurrency
        self._tracker = tracker
        stores = int.from_bytes(digest(f"{source.backend.uri} -> {target.backend.uri}".encode()), "big")
        self._at_target, self._at_source = (
            Announcement(catalog.backend, lambda unique: copy_announcement_key(worker, stores, unique))
            for catalog in (target, source)
        )
        self._verified = _VerifiedChunks()
        self._target_sizes: dict[str, int] = {}
        self.copied_bytes = 0

    def copy(self, refs: Sequence[CheckpointRef]) -> None:
        """Copy the checkpoints and record each outcome in the tracker."""
        records = _read_lineage_records(self._source.backend, self._worker)
        self._check_target_has_same_run(records)
        with self._announced():
            self._create_lineage_records(records)
            at_target = self._target.list_checkpoints(self._worker)
            present, marks_present = set(at_target.checkpoints), set(at_target.marks)
            marks = self._marks_by_base()
            notes = read_pins(self._source.backend, self._worker)
            pinned = read_pins(self._target.backend, self._worker)
            self._list_target_packs()
            self._trust_checkpoints(present)
            for ref in refs:
                self._renew_announcements()
                self._copy_checkpoint(ref, ref in present)
                if ref not in self._tracker.problems:
                    if ref in notes and ref not in pinned:
                        write_pin(self._target.backend, ref, notes[ref])
                    for mark in marks.get(ref, ()):
                        self._copy_mark(mark, mark in marks_present)
                self._tracker.finish_checkpoint()
            self._restore_missing_packs(refs)

    @contextlib.contextmanager
    def _announced(self) -> Iterator[None]:
        """Announce the copy in both stores. A source that cannot be written to is copied without it.

        Raises:
            BackendUnavailableError: one of the storages failed.
        """
        with contextlib.ExitStack() as announcements:
            announcements.enter_context(self._at_target.in_force())
            self._delete_earlier_announcements(self._target, self._at_target)
            try:
                announcements.enter_context(self._at_source.in_force())
                self._delete_earlier_announcements(self._source, self._at_source)
            except BackendUnavailableError:
                raise
            except BackendError as error:
                logger.info(
                    "%s cannot be written to, so a prune there may remove checkpoints during the copy. These "
                    "are not copied. (%s)",
                    self._source.backend.uri,
                    error,
                )
            yield

    def _delete_earlier_announcements(self, catalog: Catalog, announcement: Announcement) -> None:
        """Delete what a killed copy between the same stores announced, which would delay prunes for a day."""
        own = parse_announcement_key(announcement.key)
        found = catalog.list_runs(self._worker).announcements
        earlier = [
            key for key in found if parse_announcement_key(key) == own and key not in announcement.keys
        ]
        if earlier:
            catalog.backend.delete(earlier)

    def _renew_announcements(self) -> None:
        self._at_target.renew_if_due()
        # What is removed at the source meanwhile is noticed and reported.
        with contextlib.suppress(BackendError, SaveExpiredError):
            self._at_source.renew_if_due()

    def _create_lineage_records(self, records: Mapping[str, bytes]) -> None:
        for key in sorted(records):
            with contextlib.suppress(ObjectExistsError):
                self._target.backend.create(key, records[key])
        # Another process may have opened a lineage at the target since the first check.
        self._check_target_has_same_run(records)

    def _check_target_has_same_run(self, records: Mapping[str, bytes]) -> None:
        target_records = _read_lineage_records(self._target.backend, self._worker)
        common = records.keys() & target_records.keys()
        answers = {_is_same_lineage(records[key], target_records[key]) for key in common}
        if target_records and (True not in answers or False in answers):
            raise DifferentHistoryError(
                f"{self._target.backend.uri} already holds another run of worker {self._worker!r} than "
                f"{self._source.backend.uri}. Nothing was copied. Choose an empty target, or one that was "
                "copied from this source.",
                uri=self._target.backend.uri,
            )

    def _list_target_packs(self) -> None:
        packs = self._target.backend.list(packs_prefix(self._worker))
        self._target_sizes = {info.key: info.size for info in packs}

    def _trust_checkpoints(self, present: Collection[CheckpointRef]) -> None:
        for ref in present:
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                self._verified.add(self._target.manifest(ref))

    def _copy_checkpoint(self, ref: CheckpointRef, is_present: bool) -> None:
        try:
            stored = self._source.stored_manifest(ref)
            manifest = stored.manifest
            if is_present:
                self._check_same_checkpoint(manifest.header)
            else:
                self._copy_packs(manifest)
                self._commit(stored)
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            self._tracker.fail(ref, error, self._target)
            return
        (self._tracker.present if is_present else self._tracker.copied).append(ref)
        self._tracker.finish_packs(manifest.pack_keys)

    def _marks_by_base(self) -> Mapping[CheckpointRef, Sequence[MarkRef]]:
        marks: dict[CheckpointRef, list[MarkRef]] = {}
        for mark in self._source.list_checkpoints(self._worker).marks:
            marks.setdefault(mark.base, []).append(mark)
        return marks

    def _copy_mark(self, mark: MarkRef, is_present: bool) -> None:
        """Copy a mark whose base is at the target."""
        try:
            data = self._source.stored_mark(mark)
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            self._tracker.fail_mark(mark, error, self._target)
            return
        if not (is_present and self._has_mark(mark, data)):
            self._target.backend.put(mark_key(mark), data)
            self._tracker.copied_marks.append(mark)

    def _has_mark(self, mark: MarkRef, data: bytes) -> bool:
        """Whether the target has this mark, or one that its run has written later.

        Only one process writes a mark, so its clock says which is the later one.
        """
        try:
            return self._target.mark(mark).created >= decode_mark(data).created
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return False

    def _copy_packs(self, manifest: Manifest) -> None:
        unverified = self._verified.missing_rows(manifest)
        packs = manifest.header.packs
        missing = [number for number, pack in enumerate(packs) if pack.key not in self._target_sizes]
        for pack in packs:
            if self._target_sizes.get(pack.key, pack.size) != pack.size:
                raise self._other_data(pack.key, manifest.header.ref)
        self._verify_at_target(manifest, unverified[~np.isin(manifest.table.pack[unverified], missing)])

        distinct = manifest.table.distinct(manifest.table.elements)

        def copy_pack(number: int) -> int:
            rows = distinct[manifest.table.pack[distinct] == number]
            self._write_pack(manifest, number, self._read_pack(manifest, number, rows.tolist()))
            return number

        with _error_context(self._source.backend, manifest.header.ref):
            for number in map_ordered(copy_pack, missing, self._concurrency):
                self._target_sizes[packs[number].key] = packs[number].size
                self.copied_bytes += packs[number].size
                self._tracker.finish_packs([packs[number].key])
                self._renew_announcements()
        self._verified.add(manifest)

    def _write_pack(self, manifest: Manifest, number: int, data: bytes) -> None:
        """Create a pack at the target. What is there is never replaced: other checkpoints may need it."""
        key = manifest.header.packs[number].key
        try:
            self._target.backend.create(key, data)
        except ObjectExistsError as error:
            # It may be our own, if the response to a first attempt was lost, or that of another copy.
            if read_at_most(self._target.backend, key, len(data)) != data:
                raise self._other_data(key, manifest.header.ref) from error

    def _other_data(self, pack: str, ref: CheckpointRef) -> CorruptCheckpointError:
        uri = self._target.backend.uri
        return CorruptCheckpointError(
            f"{uri} already holds other data under the name of its pack {pack}. It was not replaced, because "
            "checkpoints there may need it. Verify both stores. If only the target's data is damaged, delete "
            "this object there and copy again.",
            uri=uri,
            key=pack,
            ref=ref,
        )

    def _verify_at_target(self, manifest: Manifest, rows: Column) -> None:
        """Verify chunks that an interrupted copy left behind before a manifest refers to them."""
        table = manifest.table.take(rows)
        with _error_context(self._target.backend, manifest.header.ref):
            for _ in read_chunks(self._target.backend, manifest, table, self._concurrency):
                continue

    def _read_pack(self, manifest: Manifest, number: int, rows: Sequence[int]) -> bytes:
        """Return the bytes of a pack at the source, after verifying its chunks."""
        key, size = manifest.header.packs[number].key, manifest.header.packs[number].size

        def read() -> bytes:
            try:
                data = read_at_most(self._source.backend, key, size)
            except ObjectNotFoundError as error:
                raise CorruptCheckpointError(f"its pack {key} is missing", key=key) from error
            if len(data) != size:
                there = f"{len(data)} bytes" if len(data) < size else "more bytes"
                raise CorruptCheckpointError(f"its pack {key} has {there} instead of {size}", key=key)
            # One at a time, because together the decompressed chunks can be far larger than the pack.
            for _ in decode_chunks(data, key, manifest.table, Extent(number, 0, size, tuple(rows))):
                continue
            return data

        return read_again_if_damaged(read, f"{self._source.backend.uri}/{key}")

    def _commit(self, stored: StoredManifest) -> None:
        header = stored.manifest.header
        key = manifest_key(header.ref)
        try:
            self._target.backend.create(key, b"".join((stored.head, stored.body)))
        except ObjectExistsError:
            self._check_same_checkpoint(header)
        # The process may have been suspended for a day just before the commit.
        if not self._at_target.is_in_force():
            self._target.backend.delete([key])
            raise self._at_target.expired_error(f"{header.ref} was withdrawn. Copy again.")

    def _check_same_checkpoint(self, header: Header) -> None:
        if self._target.read_header(header.ref).write_id != header.write_id:
            raise DifferentHistoryError(
                f"{self._target.backend.uri} already holds a different checkpoint {header.ref} than "
                f"{self._source.backend.uri}. Choose an empty target, or one that was copied from this "
                "source.",
                uri=self._target.backend.uri,
                key=manifest_key(header.ref),
                ref=header.ref,
            )

    def _restore_missing_packs(self, refs: Sequence[CheckpointRef]) -> None:
        """Copy again the packs that a prune has removed which started before this copy announced itself.

        Such a prune can only remove packs that were at the target without belonging to a checkpoint.
        """
        self._list_target_packs()
        for ref in refs:
            if ref in self._tracker.problems:
                continue
            manifest = self._target.manifest(ref)
            if all(key in self._target_sizes for key in manifest.pack_keys):
                continue
            try:
                self._copy_packs(manifest)
            except CorruptCheckpointError as error:
                self._tracker.fail(ref, error, self._target)


@dataclass
class _VerifiedChunks:
    """Chunks that are known to be intact at the target: part of a checkpoint there, or copied by us."""

    _chunks: set[tuple[str, int, bytes]] = field(default_factory=set)

    def add(self, manifest: Manifest) -> None:
        """Add all chunks of a checkpoint."""
        self._chunks.update(_stored_chunks(manifest))

    def missing_rows(self, manifest: Manifest) -> Column:
        """Return the rows of the chunk table whose chunks have not been added."""
        missing = [row for row, chunk in enumerate(_stored_chunks(manifest)) if chunk not in self._chunks]
        return np.array(missing, np.int64)


def _stored_chunks(manifest: Manifest) -> Iterator[tuple[str, int, bytes]]:
    """Yield the pack, the offset and the digest of each chunk."""
    for name, location in manifest.table.locations(manifest.pack_keys):
        yield location.pack, location.offset, name


def _read_lineage_records(backend: Backend, worker: str) -> dict[str, bytes]:
    """Return the worker's lineage records, undecoded, by key."""
    keys = [info.key for info in backend.list(lineages_prefix(worker))]
    records: dict[str, bytes] = {}
    for key in keys:
        if parse_lineage_key(key) is not None:
            with contextlib.suppress(ObjectNotFoundError):  # pruned after it was listed
                records[key] = read_at_most(backend, key, MAX_LINEAGE_BYTES)
    return records


def _is_same_lineage(one: bytes, other: bytes) -> Optional[bool]:
    """Whether two records describe the same lineage. None if one of them is damaged."""
    if one == other:
        return True
    try:
        return decode_lineage(one) == decode_lineage(other)
    except CorruptCheckpointError:
        return None


@contextlib.contextmanager
def _error_context(backend: Backend, ref: CheckpointRef) -> Iterator[None]:
    """Say which checkpoint of which store an error is about."""
    try:
        yield
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(
            f"{backend.uri}: checkpoint {ref} is damaged: {error}", uri=backend.uri, key=error.key, ref=ref
        ) from error
