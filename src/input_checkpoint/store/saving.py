"""Saving: new chunks go into packs, then the manifest commits the checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Callable, Literal, Optional, Union

from input_checkpoint.checkpoint import CheckpointRef, PackEntry, SaveContext
from input_checkpoint.errors import CheckpointTooLargeError
from input_checkpoint.format.chunking import ChunkContent, digest, split_into_chunks
from input_checkpoint.format.compression import Compressor
from input_checkpoint.format.keys import announcement_key, manifest_key, pack_key
from input_checkpoint.format.limits import MAX_CHUNK_BYTES, MAX_PACK_BYTES
from input_checkpoint.format.lineage import Lineage
from input_checkpoint.format.manifest import Header, IteratorEntry, Manifest
from input_checkpoint.parallel import DaemonExecutor
from input_checkpoint.state import IteratorState
from input_checkpoint.store.announcing import Announcement
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.chunk_index import ChunkIndex, ChunkRows, PackUse, packs_to_repack
from input_checkpoint.store.commit import commit
from input_checkpoint.store.fencing import Fence
from input_checkpoint.store.pack_writer import CONCURRENCY, PACK_BYTES, PackWriter
from input_checkpoint.store.upload_speed import UploadSpeed
from input_checkpoint.whole_numbers import normalize, whole_number

logger = logging.getLogger(__name__)

MAX_KNOWN_CHECKPOINTS = 8
"""A save builds on at most this many checkpoints: the newest ones of its run."""

MAX_OLDER_PACKS = 64
"""A save builds on at most this many packs besides those of the newest checkpoint."""

_MAX_CLOSED_PACK_BYTES = MAX_PACK_BYTES - MAX_CHUNK_BYTES
"""A pack is closed by the chunk that makes it at least this large."""

_LOOKUPS_AT_ONCE = 32

_MAX_HELD_BYTES = 1 << 22
"""How much of a state is held in memory while a save looks up what it builds on."""

_PLACEHOLDER = b"\0"
"""The pack of a save that stores no chunk."""

_BATCH_BYTES = 1 << 18
_BATCH_CHUNKS = 1 << 8


@dataclass(frozen=True)
class SaveOptions:
    """How saves are made."""

    pack_bytes: int = PACK_BYTES
    """A pack is closed once it holds this many bytes."""
    concurrency: int = CONCURRENCY
    """How many packs are uploaded at once. Three times as many ranges, each a quarter as large, are read at
    once. With 1, a save sends its requests one after another."""
    compress: Union[bool, Literal["auto"]] = "auto"
    """Whether to compress new data with zstd.

    - ``"auto"``: what shrinks by a fifth or more is compressed. What shrinks by a tenth or more is compressed
      if that takes less processor time than the saved bytes would take to be uploaded and to be read back.
      The saves of a run measure how fast the storage is. On a fast disk, saves and restores take less
      processor time than with ``True``, and the store is up to a quarter larger.
    - ``True``: what shrinks by a tenth or more is compressed.
    - ``False``: nothing is compressed.
    """

    def __post_init__(self) -> None:
        normalize(
            self,
            pack_bytes=whole_number("pack_bytes", self.pack_bytes),
            concurrency=whole_number("concurrency", self.concurrency),
        )
        if not 0 < self.pack_bytes <= _MAX_CLOSED_PACK_BYTES:
            raise ValueError(
                f"pack_bytes must be between 1 and {_MAX_CLOSED_PACK_BYTES}, got {self.pack_bytes}"
            )
        if self.compress not in ("auto", True, False):
            raise ValueError(f'compress must be "auto", True or False, got {self.compress!r}')


@dataclass(frozen=True)
class PendingSave:
    """What must not be removed while a save is in progress."""

    ref: CheckpointRef
    """The checkpoint that it will commit."""
    announcements: frozenset[str]
    """Keys of its announcement: two while it is being renewed."""
    known_packs: frozenset[str]
    """Keys of the packs of earlier checkpoints that it may refer to."""


class CheckpointSaver:
    """Saves the checkpoints of one run, one at a time.

    Remembers which chunks the run has saved, or was resumed from, and uploads only new ones.

    Args:
        catalog: of the store.
        lineage: the run that the checkpoints belong to.
        fence: of that run.
        options: sizes and concurrency.
    """

    def __init__(self, catalog: Catalog, lineage: Lineage, fence: Fence, options: SaveOptions) -> None:
        self._catalog = catalog
        self._backend = catalog.backend
        self._lineage = lineage
        self._fence = fence
        self._options = options
        self._index = ChunkIndex()
        self._speed = UploadSpeed()
        # Replaced, never changed: a prune in another thread reads it.
        self._known: Mapping[CheckpointRef, Mapping[str, int]] = {}
        self._current: Optional[tuple[CheckpointRef, Announcement]] = None
        self._last_committed: Optional[CheckpointRef] = None

    @property
    def last_committed(self) -> Optional[CheckpointRef]:
        """The checkpoint that was committed last. May be read from any thread."""
        return self._last_committed

    def pending(self) -> Optional[PendingSave]:
        """Return the save that is in progress, or None. May be called from any thread."""
        current = self._current
        if current is None:
            return None
        ref, announcement = current
        return PendingSave(ref, announcement.keys, frozenset(self._known_packs()))

    def add_manifest(self, manifest: Manifest) -> None:
        """Let later saves build on a committed checkpoint that this run has not saved itself."""
        self._retain(manifest.header, self._index.add_manifest(manifest))

    def save(
        self,
        step: int,
        iterators: Iterable[IteratorState],
        context: Callable[[], SaveContext],
        prepare: Optional[Callable[[], None]] = None,
    ) -> Header:
        """Store and commit one checkpoint.

        Args:
            step: global step of the model.
            iterators: the state of each iterator.
            context: called just before the commit.
            prepare: called while the save is being announced, before it looks up what it builds on. The save
                stores nothing if this raises.

        Raises:
            CheckpointTooLargeError: the state is larger than the format allows. Nothing became visible.
            WriterSupersededError: a newer run has begun, or another process has committed this step.
            SaveExpiredError: a prune may have removed data of this save. The checkpoint does not exist.
            BackendError: the storage failed. Nothing became visible, unless it failed after the commit.
        """
        ref = CheckpointRef(self._lineage.worker, self._lineage.number, step)
        write_id = uuid.uuid4().hex
        with (
            self._naming_the_checkpoint(ref),
            _start_encoding(iterators) as states,
            self._announced(ref, prepare) as announcement,
            self._looking_up() as lookup,
        ):
            with self._index.rollback_on_error():
                stored = self._upload(ref, write_id, states, announcement, lookup)
                header = self._commit(ref, write_id, stored, context(), announcement)
            self._last_committed = ref
        self._retain(header, stored.chunks)
        return header

    @contextlib.contextmanager
    def _naming_the_checkpoint(self, ref: CheckpointRef) -> Iterator[None]:
        try:
            yield
        except CheckpointTooLargeError as error:
            raise CheckpointTooLargeError(
                f"{self._backend.uri}: checkpoint {ref} was not saved: {error}",
                uri=self._backend.uri,
                ref=ref,
            ) from error

    def _retain(self, header: Header, chunks: ChunkRows) -> None:
        """Remember what later saves can build on, now that a checkpoint is committed."""
        live = self._index.live_bytes(chunks)
        uses = {pack.key: PackUse(live.get(pack.key, 0), pack.size) for pack in header.packs}
        self._index.retain(chunks, packs_to_repack(uses, self._options.pack_bytes))
        committed = {**self._known, header.ref: {pack.key: pack.size for pack in header.packs}}
        self._known = checkpoints_to_build_on(committed, self._index.packs)
        self._index.forget_packs(self._index.packs - self._known_packs().keys())

    @contextlib.contextmanager
    def _announced(self, ref: CheckpointRef, prepare: Optional[Callable[[], None]]) -> Iterator[Announcement]:
        """Announce the save, so that no prune removes what it builds on.

        If its announcement is left behind, this run's own prune removes it.
        """
        announcement = Announcement(self._backend, lambda unique: announcement_key(ref, unique))
        if prepare is not None and not self._in_parallel:
            prepare()
            prepare = None
        self._current = (ref, announcement)
        try:
            with announcement.in_force(prepare):
                yield announcement
        finally:
            self._current = None

    @property
    def _in_parallel(self) -> bool:
        return self._options.concurrency > 1

    @contextlib.contextmanager
    def _looking_up(self) -> Iterator[_Lookup]:
        """Look up what this save may build on, now that it is announced (see `Pruner`)."""
        with DaemonExecutor(1, "input-checkpoint-look-up") as executor:
            lookup = _Lookup(executor.submit(self._look_up), self._index)
            if not self._in_parallel:
                lookup.finish()
            yield lookup

    def _look_up(self) -> set[str]:
        """Build only on what still exists, and return the keys of the packs that are left out.

        Runs in another thread, so that a prune beside this save learns of it at once. The index still has the
        chunks of these packs.
        """
        manifests = {manifest_key(ref): ref for ref in self._known}
        packs = self._known_packs()
        lookups = _LOOKUPS_AT_ONCE if self._in_parallel else 1
        present = self._catalog.existing({**dict.fromkeys(manifests, 1), **packs}, lookups)
        committed = {ref: self._known[ref] for key, ref in manifests.items() if key in present}
        self._warn_of_lost_packs(committed, present)
        self._known = {
            ref: {key: size for key, size in sizes.items() if key in present}
            for ref, sizes in committed.items()
        }
        return packs.keys() - self._known_packs().keys()

    def _warn_of_lost_packs(
        self, committed: Mapping[CheckpointRef, Mapping[str, int]], present: AbstractSet[str]
    ) -> None:
        """Log which packs are missing although a checkpoint needs them. No prune removes such a pack."""
        affected = [ref for ref, sizes in committed.items() if not sizes.keys() <= present]
        if not affected:
            return
        lost = sorted({key for ref in affected for key in committed[ref]} - present)
        logger.warning(
            "%s: packs that committed checkpoints need are missing or truncated: %d, the first is %s. "
            "Something other than this library has deleted or changed them, such as a lifecycle rule that "
            "expires objects by age. Exclude this URI from it. This save stores their data again, but older "
            "checkpoints that need them can no longer be restored, among them %s.",
            self._backend.uri,
            len(lost),
            lost[0],
            ", ".join(map(str, affected)),
        )

    def _known_packs(self) -> dict[str, int]:
        return {key: size for packs in self._known.values() for key, size in packs.items()}

    def _upload(
        self,
        ref: CheckpointRef,
        write_id: str,
        iterators: Iterable[IteratorState],
        announcement: Announcement,
        lookup: _Lookup,
    ) -> _Stored:
        streams: list[tuple[str, ChunkRows, ChunkRows]] = []
        with PackWriter(
            self._backend,
            lambda number: pack_key(ref, write_id[:8], number),
            self._options.pack_bytes,
            self._options.concurrency,
            self._speed,
        ) as writer:
            sink = _Sink(writer, self._index, self._new_compressor, lookup)
            for state in iterators:
                keys, elements = ChunkRows(), ChunkRows()
                streams.append((state.name, keys, elements))
                for batch in _batches(split_into_chunks(state.elements)):
                    sink.store(batch, keys if batch[0].is_keys else elements)
                    announcement.renew_if_due()
            packs = sink.finish()
        chunks = ChunkRows.joined([part for _, *parts in streams for part in parts])
        if len(chunks) and not packs:
            # The listing of packs then shows that this checkpoint exists: see `checked_listing`.
            self._backend.put(pack_key(ref, write_id[:8], 0), _PLACEHOLDER)
            packs = {pack_key(ref, write_id[:8], 0): len(_PLACEHOLDER)}
        return _Stored(tuple(self._entry(*stream) for stream in streams), chunks, packs)

    def _new_compressor(self) -> Optional[Compressor]:
        if self._options.compress == "auto":
            return Compressor(self._speed.seconds_per_byte)
        return Compressor() if self._options.compress else None

    def _entry(self, name: str, keys: ChunkRows, elements: ChunkRows) -> IteratorEntry:
        return IteratorEntry(
            name,
            key_chunks=len(keys),
            chunks=len(elements),
            elements=elements.total_elements,
            logical_bytes=self._index.raw_bytes(keys) + self._index.raw_bytes(elements),
        )

    def _commit(
        self,
        ref: CheckpointRef,
        write_id: str,
        stored: _Stored,
        context: SaveContext,
        announcement: Announcement,
    ) -> Header:
        body, used = self._index.encode_table(stored.chunks)
        sizes = {**self._known_packs(), **stored.packs}
        packs = dict.fromkeys([*used, *stored.packs])
        header = Header(
            ref=ref,
            write_id=write_id,
            created=datetime.now(timezone.utc),
            host=platform.node(),
            pid=os.getpid(),
            iterators=stored.entries,
            packs=tuple(PackEntry(key, sizes[key], key in stored.packs) for key in packs),
            chunks=len(stored.chunks),
            table_bytes=len(body),
            table_digest=digest(body).hex(),
            context=context,
        )
        commit(self._catalog, self._fence, header, body, announcement)
        return header


def checkpoints_to_build_on(
    committed: Mapping[CheckpointRef, Mapping[str, int]], useful: AbstractSet[str]
) -> dict[CheckpointRef, dict[str, int]]:
    """Choose the checkpoints that the next save may build on, and the packs of each.

    The save looks each of them up, so their number must not grow with the length of the run. An older
    checkpoint counts only if it adds packs to those of newer ones.

    Args:
        committed: the packs of each checkpoint with their sizes, from the oldest checkpoint to the newest.
        useful: keys of the packs that hold chunks that the save could share.

    Returns:
        The chosen part of ``committed``, in the same order.
    """
    chosen: dict[CheckpointRef, dict[str, int]] = {}
    covered: set[str] = set()
    max_packs = 0
    for ref in reversed(tuple(committed)):
        packs = {key: size for key, size in committed[ref].items() if key in useful}
        max_packs = max_packs or len(packs) + MAX_OLDER_PACKS
        if len(chosen) == MAX_KNOWN_CHECKPOINTS or len(covered | packs.keys()) > max_packs:
            break
        if not packs.keys() <= covered:
            chosen[ref] = packs
            covered |= packs.keys()
    return dict(reversed(tuple(chosen.items())))


@dataclass(frozen=True)
class _Stored:
    """What a save has stored but not committed yet."""

    entries: tuple[IteratorEntry, ...]
    chunks: ChunkRows
    packs: Mapping[str, int]
    """Size in bytes of each pack that was uploaded."""


class _Lookup:
    """Which known packs a save must not build on. The answer may still be on its way.

    Args:
        forgotten: keys of these packs.
        index: still has their chunks until `finish`.
    """

    def __init__(self, forgotten: Future[set[str]], index: ChunkIndex) -> None:
        self._forgotten = forgotten
        self._index = index
        self._is_applied = False

    @property
    def is_pending(self) -> bool:
        """Whether `finish` would have to wait."""
        return not self._forgotten.done()

    def finish(self) -> None:
        """Wait for the answer, and forget the chunks in these packs.

        Raises:
            BackendError: the storage failed.
        """
        if not self._is_applied:
            self._index.forget_packs(self._forgotten.result())
            self._is_applied = True


class _Sink:
    """Puts new chunks into packs.

    While it is not known which earlier packs still exist, new chunks are stored already. Batches are held, so
    that their other chunks can still be stored if they turn out to be missing.
    """

    def __init__(
        self,
        writer: PackWriter,
        index: ChunkIndex,
        new_compressor: Callable[[], Optional[Compressor]],
        lookup: _Lookup,
    ) -> None:
        self._writer = writer
        self._index = index
        self._lookup = lookup
        self._held: list[tuple[Sequence[ChunkContent], ChunkRows]] = []
        self._held_bytes = 0
        # One per kind: keys shrink even where payloads do not.
        self._compressors: defaultdict[tuple[bool, bool], Optional[Compressor]] = defaultdict(new_compressor)

    def store(self, batch: Sequence[ChunkContent], chunks: ChunkRows) -> None:
        """Add chunks of one kind to the checkpoint, and to a pack those that are not stored yet."""
        size = sum(len(chunk.data) for chunk in batch)
        if self._lookup.is_pending and self._held_bytes + size <= _MAX_HELD_BYTES:
            self._store_new(batch)
            self._held.append((batch, chunks))
            self._held_bytes += size
            return
        self._settle()
        self._add(batch, chunks)

    def finish(self) -> dict[str, int]:
        """Wait until everything is stored, and return the size of each pack by key."""
        if self._held:
            self._writer.flush()
        self._settle()
        return self._writer.finish()

    def _settle(self) -> None:
        """Forget what is missing. Then add the batches that were held."""
        self._lookup.finish()
        held, self._held, self._held_bytes = self._held, [], 0
        for batch, chunks in held:
            self._add(batch, chunks)

    def _add(self, batch: Sequence[ChunkContent], chunks: ChunkRows) -> None:
        for row, chunk in zip(self._store_new(batch), batch):
            chunks.add(row, chunk.elements)

    def _store_new(self, batch: Sequence[ChunkContent]) -> list[int]:
        """Put those chunks into a pack that are not in the index, and return the row of each chunk."""
        names = [digest(chunk.data) for chunk in batch]
        rows = list(map(self._index.find, names))
        # A view would keep in memory what it is a part of.
        new = {name: bytes(chunk.data) for name, row, chunk in zip(names, rows, batch) if row < 0}
        added = {
            name: self._index.add(name, self._writer.add(packed, len(data)))
            for (name, data), packed in zip(new.items(), self._packed(batch[0], list(new.values())))
        }
        return [added[name] if row < 0 else row for name, row in zip(names, rows)]

    def _packed(self, like: ChunkContent, contents: Sequence[bytes]) -> Sequence[bytes]:
        compressor = self._compressors[_kind(like)] if contents else None
        return compressor.compress(contents) if compressor else contents


@contextlib.contextmanager
def _start_encoding(states: Iterable[IteratorState]) -> Iterator[Iterator[IteratorState]]:
    """Yield the same states, whose encoding starts in another thread.

    So encoding does not wait for the requests that a save begins with.
    """
    with DaemonExecutor(1, "input-checkpoint-begin") as executor:
        yield _await_states(executor.submit(_with_first_drawn, iter(states)))


def _await_states(pending: Future[Iterator[IteratorState]]) -> Iterator[IteratorState]:
    yield from pending.result()


def _with_first_drawn(states: Iterator[IteratorState]) -> Iterator[IteratorState]:
    """Return the same states, after drawing the first element of the first one."""
    for state in states:
        elements = iter(state.elements)
        first = list(itertools.islice(elements, 1))
        return itertools.chain([replace(state, elements=itertools.chain(first, elements))], states)
    return states


def _batches(chunks: Iterable[ChunkContent]) -> Iterator[list[ChunkContent]]:
    """Group adjacent chunks of one kind, in bounded memory."""
    batch: list[ChunkContent] = []
    size = 0
    for chunk in chunks:
        if batch and (
            size + len(chunk.data) > _BATCH_BYTES
            or len(batch) == _BATCH_CHUNKS
            or _kind(chunk) != _kind(batch[0])
        ):
            yield batch
            batch, size = [], 0
        batch.append(chunk)
        size += len(chunk.data)
    if batch:
        yield batch


def _kind(chunk: ChunkContent) -> tuple[bool, bool]:
    return chunk.is_keys, chunk.elements > 0
