"""Checkpoints from one store to another, each verified on the way and committed like a save.

All objects are copied as they are, under the same keys: what checkpoints share they share at the target too,
and a run that was saved at the source resumes from the target.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Callable, Optional

import numpy as np

from input_checkpoint.backends.base import Backend
from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import (
    BackendError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    DifferentHistoryError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from input_checkpoint.format.chunk_table import Column
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.keys import (
    hold_key,
    lineages_prefix,
    manifest_key,
    packs_prefix,
    parse_lineage_key,
)
from input_checkpoint.format.lineage import decode_lineage
from input_checkpoint.format.manifest import Header, Manifest
from input_checkpoint.parallel import map_ordered
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.pins import read_pins, write_pin
from input_checkpoint.store.reading import Extent, chunks_in, read_chunks

logger = logging.getLogger(__name__)

_RENEW_SECONDS = 3600


@dataclass(frozen=True)
class CopyProgress:
    """How far a copy has got."""

    checkpoints: int
    """Checkpoints done with: copied, found there already, or given up."""
    checkpoints_total: int
    bytes: int
    """Bytes of data copied or found there already."""
    bytes_total: int


@dataclass(frozen=True)
class CopyReport:
    """What a copy has done."""

    copied: tuple[CheckpointRef, ...]
    """From old to new, worker by worker."""
    present: tuple[CheckpointRef, ...]
    """Checkpoints that the target had already."""
    problems: Mapping[CheckpointRef, str]
    """Why the others could not be copied: damaged, or removed meanwhile."""
    copied_bytes: int
    """Bytes of data written."""

    @property
    def ok(self) -> bool:
        """Whether the target now has everything that was asked for."""
        return not self.problems


def copy(
    source: Catalog,
    target: Catalog,
    chosen: Sequence[CheckpointRef],
    concurrency: int,
    progress: Callable[[CopyProgress], None],
) -> CopyReport:
    """See `CheckpointStore.copy_to`."""
    tally = _CopyProgressTracker(source, chosen, progress)
    copied_bytes = 0
    for worker, wanted in groupby(sorted(chosen), key=lambda ref: ref.worker):
        copier = _WorkerCopier(source, target, worker, concurrency, tally)
        copier.copy(list(wanted))
        copied_bytes += copier.copied_bytes
    return CopyReport(tuple(tally.copied), tuple(tally.present), dict(tally.problems), copied_bytes)


class _CopyProgressTracker:
    """Counts what is done, and tells."""

    def __init__(
        self, source: Catalog, chosen: Sequence[CheckpointRef], progress: Callable[[CopyProgress], None]
    ) -> None:
        sizes: dict[str, int] = {}
        for ref in chosen:
            # What cannot be read is reported when its turn comes.
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                sizes.update((pack.key, pack.size) for pack in source.read_header(ref).packs)
        self._sizes = sizes
        self._done: set[str] = set()
        self._tell = progress
        self._progress = CopyProgress(0, len(chosen), 0, sum(sizes.values()))
        self.copied: list[CheckpointRef] = []
        self.present: list[CheckpointRef] = []
        self.problems: dict[CheckpointRef, str] = {}

    def packs(self, keys: Iterable[str]) -> None:
        """Some packs are at the target."""
        self._done.update(keys)
        done = sum(self._sizes.get(key, 0) for key in self._done)
        self._progress = replace(self._progress, bytes=done)
        self._tell(self._progress)

    def checkpoint(self) -> None:
        """A checkpoint is done with."""
        self._progress = replace(self._progress, checkpoints=self._progress.checkpoints + 1)
        self._tell(self._progress)


class _WorkerCopier:
    """Copies checkpoints of one worker, from old to new.

    At the target this is like a save: it announces itself, builds only on packs that a committed manifest
    names or that it has checked itself, and creates the manifest last (see `Pruner`). At the source the same
    announcement keeps clean-up by others away; what the source's own run removes meanwhile is reported.
    """

    def __init__(
        self, source: Catalog, target: Catalog, worker: str, concurrency: int, tally: _CopyProgressTracker
    ) -> None:
        self._source = source
        self._target = target
        self._worker = worker
        self._concurrency = concurrency
        self._tally = tally
        self._trusted = _Trusted()
        self._sizes: dict[str, int] = {}
        self.copied_bytes = 0

    def copy(self, wanted: Sequence[CheckpointRef]) -> None:
        """Copy, and put what happened into the tally."""
        records = _records(self._source.backend, self._worker)
        _check_same_run(records, self._target.backend, self._worker, self._source.backend.uri)
        name = digest(f"{self._source.backend.uri} -> {self._target.backend.uri}".encode()).hex()
        with (
            _held(self._target.backend, self._worker, name) as at_target,
            _held(self._source.backend, self._worker, name, required=False) as at_source,
        ):
            self._create_records(records)
            present = set(self._target.refs(self._worker))
            notes = read_pins(self._source.backend, self._worker)
            self._look_at_target(present)
            for ref in wanted:
                at_target.renew()
                at_source.renew()
                self._copy_or_tell(ref, ref in present)
                if ref in notes and ref not in self._tally.problems:
                    write_pin(self._target.backend, ref, notes[ref])
                self._tally.checkpoint()
            self._restore_missing_packs(wanted)

    def _create_records(self, records: Mapping[str, bytes]) -> None:
        for key in sorted(records):
            with contextlib.suppress(ObjectExistsError):
                self._target.backend.create(key, records[key])
        # Somebody may have begun a run there since we looked.
        _check_same_run(records, self._target.backend, self._worker, self._source.backend.uri)

    def _look_at_target(self, present: Collection[CheckpointRef]) -> None:
        prefix = packs_prefix(self._worker)
        self._sizes = {info.key: info.size for info in self._target.backend.list(prefix)}
        for ref in present:
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                self._trusted.add(self._target.stored_manifest(ref)[1])

    def _copy_or_tell(self, ref: CheckpointRef, present: bool) -> None:
        try:
            stored, manifest = self._source.stored_manifest(ref)
            if present:
                self._check_same(manifest.header)
            else:
                self._copy_packs(manifest)
                self._commit(stored, manifest)
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            logger.warning("Not copied to %s: %s", self._target.backend.uri, error)
            self._tally.problems[ref] = str(error)
            return
        (self._tally.present if present else self._tally.copied).append(ref)
        self._tally.packs(pack.key for pack in manifest.header.packs)

    def _copy_packs(self, manifest: Manifest) -> None:
        unknown = self._trusted.unknown_rows(manifest)
        packs = manifest.header.packs
        missing = [number for number, pack in enumerate(packs) if self._sizes.get(pack.key) != pack.size]
        self._check_at_target(manifest, unknown[~np.isin(manifest.table.pack[unknown], missing)])

        def copy_pack(number: int) -> int:
            rows = np.flatnonzero(manifest.table.pack == number)
            self._target.backend.put(packs[number].key, self._read_pack(manifest, number, rows.tolist()))
            return number

        with _error_context(self._source.backend, manifest.header.ref):
            for number in map_ordered(copy_pack, missing, self._concurrency):
                self._sizes[packs[number].key] = packs[number].size
                self.copied_bytes += packs[number].size
                self._tally.packs([packs[number].key])
        self._trusted.add(manifest)

    def _check_at_target(self, manifest: Manifest, rows: Column) -> None:
        """Check what an interrupted copy has left before anything refers to it."""
        table = manifest.table.take(rows)
        with _error_context(self._target.backend, manifest.header.ref):
            for _ in read_chunks(self._target.backend, manifest, table, self._concurrency):
                continue

    def _read_pack(self, manifest: Manifest, number: int, rows: Sequence[int]) -> bytes:
        pack = manifest.header.packs[number]
        try:
            data = self._source.backend.get(pack.key)
        except ObjectNotFoundError as error:
            raise CorruptCheckpointError(f"its pack {pack.key} is missing") from error
        if len(data) != pack.size:
            raise CorruptCheckpointError(f"its pack {pack.key} has {len(data)} bytes instead of {pack.size}")
        # One after another: together they can be far larger than the pack.
        for _ in chunks_in(data, pack.key, manifest.table, Extent(number, 0, pack.size, tuple(rows))):
            continue
        return data

    def _commit(self, stored: bytes, manifest: Manifest) -> None:
        try:
            self._target.backend.create(manifest_key(manifest.header.ref), stored)
        except ObjectExistsError:
            self._check_same(manifest.header)

    def _check_same(self, header: Header) -> None:
        if self._target.read_header(header.ref).write_id != header.write_id:
            raise DifferentHistoryError(
                f"{self._target.backend.uri} has another checkpoint {header.ref} than "
                f"{self._source.backend.uri}. Choose an empty place, or one that was copied from there."
            )

    def _restore_missing_packs(self, wanted: Sequence[CheckpointRef]) -> None:
        """Bring back what a clean-up has removed that had begun before this copy announced itself.

        Only packs that were at the target without belonging to a checkpoint can be meant.
        """
        prefix = packs_prefix(self._worker)
        self._sizes = {info.key: info.size for info in self._target.backend.list(prefix)}
        for ref in wanted:
            if ref in self._tally.problems:
                continue
            manifest = self._target.stored_manifest(ref)[1]
            if any(pack.key not in self._sizes for pack in manifest.header.packs):
                self._copy_packs(manifest)


@dataclass
class _Trusted:
    """Chunks that are at the target for certain: a checkpoint there has them, or we have copied them."""

    _places: set[tuple[str, int, bytes]] = field(default_factory=set)

    def add(self, manifest: Manifest) -> None:
        self._places.update(_places(manifest))

    def unknown_rows(self, manifest: Manifest) -> Column:
        found = [row for row, place in enumerate(_places(manifest)) if place not in self._places]
        return np.array(found, np.int64)


def _places(manifest: Manifest) -> Iterator[tuple[str, int, bytes]]:
    for name, place in manifest.table.locations(manifest.pack_keys):
        yield place.pack, place.offset, name


class _Held:
    """An announcement that is kept fresh."""

    def __init__(self, backend: Backend, key: str) -> None:
        self._backend = backend
        self._key = key
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Let it not look like that of a process that was killed."""
        if time.monotonic() - self._renewed < _RENEW_SECONDS:
            return
        with contextlib.suppress(BackendError):
            self._backend.put(self._key, b"")
        self._renewed = time.monotonic()


@contextlib.contextmanager
def _held(backend: Backend, worker: str, name: str, required: bool = True) -> Iterator[_Held]:
    """Keep clean-up away. A source that may only be read is copied without."""
    key = hold_key(worker, name)
    try:
        backend.put(key, b"")
    except BackendError:
        if required:
            raise
        logger.info("%s may only be read: what is removed there meanwhile cannot be copied.", backend.uri)
    try:
        yield _Held(backend, key)
    finally:
        # If it stays, the worst is that clean-up waits for a day.
        with contextlib.suppress(BackendError):
            backend.delete([key])


def _records(backend: Backend, worker: str) -> dict[str, bytes]:
    """Return the worker's lineage records as they are stored, by key."""
    keys = [info.key for info in backend.list(lineages_prefix(worker))]
    found: dict[str, bytes] = {}
    for key in keys:
        if parse_lineage_key(key) is not None:
            with contextlib.suppress(ObjectNotFoundError):  # outlived, and removed in the meantime
                found[key] = backend.get(key)
    return found


def _check_same_run(source: Mapping[str, bytes], target: Backend, worker: str, source_uri: str) -> None:
    there = _records(target, worker)
    found = {_same_run(source[key], there[key]) for key in source.keys() & there.keys()}
    if there and (True not in found or False in found):
        raise DifferentHistoryError(
            f"{target.uri} already holds another run of worker {worker!r} than {source_uri}. Nothing was "
            "copied: choose an empty place, or one that was copied from there."
        )


def _same_run(one: bytes, other: bytes) -> Optional[bool]:
    """Whether two lineage records are of one run; None if a damaged one keeps it from being told."""
    if one == other:
        return True
    try:
        return decode_lineage(one) == decode_lineage(other)
    except CorruptCheckpointError:
        return None


@contextlib.contextmanager
def _error_context(backend: Backend, ref: CheckpointRef) -> Iterator[None]:
    try:
        yield
    except CorruptCheckpointError as error:
        raise CorruptCheckpointError(f"{backend.uri}: checkpoint {ref} is damaged: {error}") from error
