"""What is committed under a backend: listings, headers, manifests and lineage records, each one checked."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Optional, Union

from input_checkpoint.backends.base import Backend, ObjectInfo
from input_checkpoint.checkpoint import CheckpointRef, MarkRef, PackEntry
from input_checkpoint.errors import (
    BackendError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectNotFoundError,
)
from input_checkpoint.format.keys import (
    checkpoints_prefix,
    lineage_key,
    lineages_prefix,
    manifest_key,
    mark_key,
    packs_prefix,
    parse_announcement_key,
    parse_checkpoint_key,
    parse_lineage_key,
    parse_mark_key,
    worker_of,
)
from input_checkpoint.format.limits import MAX_LINEAGE_BYTES, MAX_MARK_BYTES
from input_checkpoint.format.lineage import Lineage, decode_lineage, infer_lineage
from input_checkpoint.format.manifest import (
    Header,
    IteratorRows,
    Manifest,
)
from input_checkpoint.format.mark import Mark, decode_mark
from input_checkpoint.parallel import map_ordered, run_both
from input_checkpoint.state import ElementBatch
from input_checkpoint.store.bounded_reads import (
    StoredManifest,
    exists,
    read_at_most,
    read_header,
    read_manifest,
    read_small_manifest,
)
from input_checkpoint.store.contradictions import inconsistent_listing
from input_checkpoint.store.reading import read_batches
from input_checkpoint.store.rereading import read_again_if_damaged

logger = logging.getLogger(__name__)

_HEADERS_AT_ONCE = 16
_LISTING_ATTEMPTS = 10


@dataclass(frozen=True)
class CheckpointListing:
    """The checkpoints and marks that exist, as of one listing."""

    checkpoints: tuple[CheckpointRef, ...]
    """All of them, from old to new."""
    marks: tuple[MarkRef, ...]
    """All of them, from old to new."""


@dataclass(frozen=True)
class WorkerListing:
    """What a worker has stored, as of one listing."""

    checkpoints: tuple[CheckpointRef, ...]
    """All of them, from old to new."""
    lineage: Optional[Lineage]
    """The one that was opened last; None if there is none."""
    marks: tuple[MarkRef, ...] = ()
    """All of them, from old to new."""

    @property
    def history(self) -> list[CheckpointRef]:
        """The checkpoints that the worker can resume from, from old to new.

        Those that an older lineage wrote past the step from which its successor restarted are not included.
        """
        return self.lineage.history(self.checkpoints) if self.lineage else []

    @property
    def usable_marks(self) -> list[MarkRef]:
        """The marks that the worker can resume from, from old to new.

        They are part of the history, and their base exists.
        """
        lineage, bases = self.lineage, set(self.checkpoints)
        return [mark for mark in self.marks if lineage and lineage.holds(mark.ref) and mark.base in bases]


def saved_refs(listing: Union[CheckpointListing, WorkerListing]) -> list[CheckpointRef]:
    """Return what a run may continue from: each checkpoint, and the step of each mark."""
    return [*listing.checkpoints, *(mark.ref for mark in listing.marks)]


@dataclass(frozen=True)
class RunListing:
    """The lineage records of a worker, and what is announced beside them, as of one listing."""

    records: Mapping[int, str]
    """Key of each record by the number of its lineage, readable or not."""
    announcements: Mapping[str, ObjectInfo]
    """What saves, copies and prunes have announced, by key."""

    @property
    def newest(self) -> int:
        """Number of the lineage that was opened last; 0 if there is none."""
        return max(self.records, default=0)


class Catalog:
    """Reads what a store holds. Changes nothing.

    Everything here raises `CheckpointNotFoundError` for what does not exist (any more) and
    `CorruptCheckpointError` for what is damaged, with the URI and the object's name.

    Args:
        backend: where.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._headers: dict[CheckpointRef, Header] = {}
        self._last_packs: Mapping[str, PackEntry] = {}
        self._read_ahead: Optional[Manifest] = None

    def refs(self, worker: Optional[str] = None) -> list[CheckpointRef]:
        """Return every checkpoint that is there now, from old to new, of one worker or of all."""
        return list(self.list_checkpoints(worker).checkpoints)

    def list_checkpoints(self, worker: Optional[str] = None) -> CheckpointListing:
        """Return every checkpoint and every mark that is there now, of one worker or of all."""
        checkpoints: list[CheckpointRef] = []
        marks: list[MarkRef] = []
        for info in self.backend.list(checkpoints_prefix(worker)):
            ref = parse_checkpoint_key(info.key)
            mark = None if ref else parse_mark_key(info.key)
            if ref:
                checkpoints.append(ref)
            elif mark:
                marks.append(mark)
        self._forget_all_but(checkpoints, worker)
        return CheckpointListing(tuple(sorted(checkpoints)), tuple(sorted(marks)))

    def holds(self, ref: CheckpointRef) -> bool:
        """Whether a checkpoint is there now, damaged or not."""
        return any(info.key == manifest_key(ref) for info in self.backend.list(manifest_key(ref)))

    def existing(self, sizes: Mapping[str, int], concurrency: int) -> set[str]:
        """Return which objects are there now and not shorter than expected. Reads the last byte of each.

        Args:
            sizes: key of each object, with the size in bytes that it must have at least.
            concurrency: how many are read at once.
        """

        def is_whole(key: str) -> bool:
            last = max(sizes[key], 1) - 1
            try:
                return len(self.backend.get(key, last, last + 1)) == 1
            except ObjectNotFoundError:
                return False

        return {key for key, found in zip(sizes, map_ordered(is_whole, sizes, concurrency)) if found}

    def committed(self, refs: Collection[CheckpointRef]) -> set[CheckpointRef]:
        """Return which checkpoints are there now, damaged or not. Requests each manifest, and no listing."""
        keys = {manifest_key(ref): ref for ref in sorted(refs)}
        found = map_ordered(self.exists, keys, _HEADERS_AT_ONCE)
        return {ref for ref, is_there in zip(keys.values(), found) if is_there}

    def exists(self, key: str) -> bool:
        """Whether an object is there now. Reads its first byte."""
        return exists(self.backend, key)

    def header(self, ref: CheckpointRef) -> Header:
        """Return the header of a manifest. Reads it once: a manifest never changes."""
        return self._headers.get(ref) or self.remember(self.read_header(ref))

    def fetch_headers(self, wanted: Iterable[CheckpointRef]) -> None:
        """Read the headers that are not known yet, several at once.

        A damaged one raises its error when it is requested.
        """
        unknown = [ref for ref in wanted if ref not in self._headers]

        def fetch(ref: CheckpointRef) -> None:
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                self.header(ref)

        for _ in map_ordered(fetch, unknown, _HEADERS_AT_ONCE):
            continue

    def remember(self, header: Header) -> Header:
        """Take note of a header that need not be read any more, and return it."""
        # Neighboring checkpoints share most packs. One object for each keeps a long history small in memory.
        last = self._last_packs
        packs = tuple(last[pack.key] if last.get(pack.key) == pack else pack for pack in header.packs)
        self._last_packs = {pack.key: pack for pack in packs}
        remembered = replace(header, packs=packs)
        self._headers[header.ref] = remembered
        return remembered

    def read_header(self, ref: CheckpointRef) -> Header:
        """Read the header of a manifest, also if it is known already."""
        key = manifest_key(ref)

        def read() -> Header:
            return _same(read_header(self.backend, key), ref)

        with self._error_context(key, ref):
            return read_again_if_damaged(read, f"{self.backend.uri}/{key}")

    def manifest(self, ref: CheckpointRef) -> Manifest:
        """Read a manifest."""
        return self.stored_manifest(ref).manifest

    def take_manifest(self, ref: CheckpointRef) -> Manifest:
        """Return a manifest. It is not read again if `list_worker` has read it ahead; that counts once."""
        manifest, self._read_ahead = self._read_ahead, None
        if manifest is not None and manifest.header.ref == ref:
            return manifest
        return self.manifest(ref)

    def forget_read_ahead(self) -> None:
        """Release the manifest that was read ahead and not needed."""
        self._read_ahead = None

    def stored_manifest(self, ref: CheckpointRef) -> StoredManifest:
        """Read a manifest; return it as it is stored, and decoded."""
        key = manifest_key(ref)

        def read() -> StoredManifest:
            stored = read_manifest(self.backend, key)
            _same(stored.manifest.header, ref)
            return stored

        with self._error_context(key, ref):
            return read_again_if_damaged(read, f"{self.backend.uri}/{key}")

    def mark(self, mark: MarkRef) -> Mark:
        """Read a mark."""
        return decode_mark(self.stored_mark(mark))

    def stored_mark(self, mark: MarkRef) -> bytes:
        """Read a mark; return it as it is stored, after checking it."""
        key = mark_key(mark)

        def read() -> bytes:
            data = read_at_most(self.backend, key, MAX_MARK_BYTES)
            found = decode_mark(data).ref
            if found != mark:
                raise CorruptCheckpointError(f"it holds another one, the {found}")
            return data

        with self._error_context(key, mark.ref, f"the {mark}"):
            return read_again_if_damaged(read, f"{self.backend.uri}/{key}")

    def batches(self, manifest: Manifest, rows: IteratorRows, concurrency: int) -> Iterator[ElementBatch]:
        """Yield the elements of one iterator, in pieces as they lie in the packs."""
        ref = manifest.header.ref
        with self._error_context(manifest_key(ref), ref):
            yield from read_batches(self.backend, manifest, rows, concurrency)

    def workers(self) -> list[str]:
        """Return every worker that has left anything, also one that has committed nothing."""
        prefixes = (
            checkpoints_prefix(),
            lineages_prefix(),
            packs_prefix(),
        )
        keys = (info.key for prefix in prefixes for info in self.backend.list(prefix))
        return sorted({worker for worker in map(worker_of, keys) if worker})

    def list_runs(self, worker: str) -> RunListing:
        """Return the lineage records of a worker, and what is announced beside them."""
        records: dict[int, str] = {}
        announcements: dict[str, ObjectInfo] = {}
        for info in self.backend.list(lineages_prefix(worker)):
            number = parse_lineage_key(info.key)
            if number:
                records[number] = info.key
            elif parse_announcement_key(info.key):
                announcements[info.key] = info
        return RunListing(records, announcements)

    def list_worker(self, worker: str, *, read_ahead: bool = False) -> WorkerListing:
        """Return a worker's checkpoints and marks, and its newest lineage.

        Args:
            worker: name of the worker.
            read_ahead: also read the manifest of the newest checkpoint, for `take_manifest`, at the same time
                as the lineage record. It is kept only if it is small and intact.

        If the record of that lineage cannot be read, or is missing although its checkpoints exist, a warning
        is logged and an `InferredLineage` takes its place. Its ancestors are guessed from the newest record
        that can be read.
        """
        for _ in range(_LISTING_ATTEMPTS):
            listing = self._try_list_worker(worker, read_ahead)
            if listing is not None:
                return listing
        prefix = lineages_prefix(worker)
        raise inconsistent_listing(
            f"{self.backend.uri}: the listings of {prefix} contradict each other",
            uri=self.backend.uri,
            key=prefix,
        )

    def _try_list_worker(self, worker: str, read_ahead: bool) -> Optional[WorkerListing]:
        """Return None if a newer run has begun meanwhile."""
        present, listed = run_both(
            lambda: self.list_checkpoints(worker), lambda: self.list_runs(worker).records
        )
        # A run that began between the two listings may be known by its checkpoints and marks alone.
        numbers = {*listed, *(ref.lineage for ref in saved_refs(present))}
        find = functools.partial(self._newest_readable, worker, numbers)
        if read_ahead and present.checkpoints:
            (newest, lost), self._read_ahead = run_both(
                find, lambda: self._small_manifest(present.checkpoints[-1])
            )
        else:
            newest, lost = find()
        if lost and self.list_runs(worker).newest > lost[0]:
            # The record was not damaged, but removed since it was listed.
            return None
        for number in reversed(lost):
            newest = infer_lineage(worker, number, newest, present.checkpoints)
        return WorkerListing(present.checkpoints, newest, present.marks)

    def _newest_readable(
        self, worker: str, numbers: Collection[int]
    ) -> tuple[Optional[Lineage], Sequence[int]]:
        """Return the newest record that can be read, and the numbers of those after it, from new to old."""
        lost: list[int] = []
        for number in sorted(numbers, reverse=True):
            found = self._readable_lineage(worker, number)
            if found is not None:
                return found, lost
            lost.append(number)
        return None, lost

    def _small_manifest(self, ref: CheckpointRef) -> Optional[Manifest]:
        """Return a manifest, or None if it is large or cannot be read. Whoever needs it reads it then."""
        try:
            manifest = read_small_manifest(self.backend, manifest_key(ref))
            if manifest is not None:
                _same(manifest.header, ref)
            return manifest
        except (BackendError, CorruptCheckpointError):
            return None

    def lineage(self, worker: str, number: int) -> Lineage:
        """Read one lineage record."""
        key = lineage_key(worker, number)

        def read() -> Lineage:
            found = decode_lineage(read_at_most(self.backend, key, MAX_LINEAGE_BYTES))
            if found.key != key:
                raise CorruptCheckpointError(f"it holds the record of another lineage, {found.key}")
            return found

        with self._error_context(key):
            return read_again_if_damaged(read, f"{self.backend.uri}/{key}")

    def lineage_holding(self, ref: CheckpointRef, present: Collection[CheckpointRef]) -> Lineage:
        """Read the record of the lineage that wrote ``ref``.

        If it cannot be read although something of that lineage is ``present``, a warning is logged and an
        `InferredLineage` without ancestors takes its place.

        Raises:
            CheckpointNotFoundError: nothing is left of that lineage.
        """
        if not any(other.lineage == ref.lineage for other in present):
            return self.lineage(ref.worker, ref.lineage)
        found = self._readable_lineage(ref.worker, ref.lineage)
        return found or infer_lineage(ref.worker, ref.lineage, None, ())

    def _forget_all_but(self, present: Collection[CheckpointRef], worker: Optional[str]) -> None:
        # A copy is gone through: another thread may be adding. What is forgotten too early is read again.
        known = {ref for ref in tuple(self._headers) if worker in (None, ref.worker)}
        for ref in known.difference(present):
            self._headers.pop(ref, None)

    def _readable_lineage(self, worker: str, number: int) -> Optional[Lineage]:
        try:
            return self.lineage(worker, number)
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            logger.warning(
                "%s. So it is not known which older checkpoints run %d of worker %r continues; what it has "
                "saved itself is not affected.",
                error,
                number,
                worker,
            )
            return None

    def _may_exist(self, key: str) -> bool:
        """Return False only if an object certainly does not exist."""
        try:
            return self.exists(key)
        except BackendError:
            return True

    @contextlib.contextmanager
    def _error_context(
        self, key: str, ref: Optional[CheckpointRef] = None, what: Optional[str] = None
    ) -> Iterator[None]:
        """Say which object and checkpoint an error is about."""
        what = what or (f"checkpoint {ref}" if ref else key)
        try:
            yield
        except ObjectNotFoundError as error:
            raise CheckpointNotFoundError(
                f"{self.backend.uri}: {what} does not exist", uri=self.backend.uri, key=key, ref=ref
            ) from error
        except CorruptCheckpointError as error:
            if ref and not self._may_exist(key):
                raise CheckpointNotFoundError(
                    f"{self.backend.uri}: {what} was removed while it was being read",
                    uri=self.backend.uri,
                    key=key,
                    ref=ref,
                ) from error
            where = f" ({key})" if ref else ""
            raise CorruptCheckpointError(
                f"{self.backend.uri}: {what} is damaged{where}: {error}",
                uri=self.backend.uri,
                key=error.key or key,
                ref=ref,
            ) from error


def _same(header: Header, ref: CheckpointRef) -> Header:
    if header.ref != ref:
        raise CorruptCheckpointError(f"it holds the manifest of another checkpoint, {header.ref}")
    return header
