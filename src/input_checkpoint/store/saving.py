"""One lineage's saves: what is new goes into packs, then the manifest commits."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Callable, Optional

from input_checkpoint.backends.base import Backend
from input_checkpoint.checkpoint import CheckpointRef, PackEntry
from input_checkpoint.errors import (
    BackendError,
    BackendUnavailableError,
    ObjectExistsError,
    WriterSupersededError,
)
from input_checkpoint.format.chunking import ChunkContent, digest, split_into_chunks
from input_checkpoint.format.compression import Compressor
from input_checkpoint.format.keys import announcement_key, manifest_key, pack_key
from input_checkpoint.format.lineage import Lineage
from input_checkpoint.format.manifest import Header, IteratorEntry, Manifest, decode_header, encode_manifest
from input_checkpoint.state import IteratorState
from input_checkpoint.store.chunk_index import ChunkIndex, ChunkRows, PackUse, packs_to_repack
from input_checkpoint.store.pack_writer import CONCURRENCY, PACK_BYTES, PackWriter

_BATCH_BYTES = 1 << 18
_BATCH_CHUNKS = 1 << 8


@dataclass(frozen=True)
class SaveOptions:
    """How saves are made."""

    pack_bytes: int = PACK_BYTES
    """A pack is closed once it holds this many bytes."""
    concurrency: int = CONCURRENCY
    """How many packs are uploaded at once. Of ranges, a quarter as large, three times as many are read."""
    compress: bool = True
    """Whether to try zstd. It leaves off by itself where it does not pay."""


@dataclass(frozen=True)
class SaveInFlight:
    """What nobody may remove while a save goes on."""

    ref: CheckpointRef
    """The checkpoint that it will commit."""
    announcement: str
    """Key of its announcement."""
    built_on: frozenset[str]
    """Keys of the packs of earlier checkpoints that it may refer to."""


class LineageSaver:
    """Saves the checkpoints of one lineage, one at a time.

    Remembers what it has saved, and what it was resumed from, to upload only what is new.

    Args:
        backend: where to.
        lineage: the run that the checkpoints belong to.
        list_present: lists the worker's checkpoints.
        check_not_superseded: raises `WriterSupersededError` if a newer lineage has been opened.
        options: sizes and concurrency.
    """

    def __init__(
        self,
        backend: Backend,
        lineage: Lineage,
        list_present: Callable[[], Collection[CheckpointRef]],
        check_not_superseded: Callable[[], None],
        options: SaveOptions,
    ) -> None:
        self._backend = backend
        self._lineage = lineage
        self._list_present = list_present
        self._check_not_superseded = check_not_superseded
        self._options = options
        self._index = ChunkIndex()
        # Replaced and never changed: a clean-up in another thread reads it.
        self._known: dict[CheckpointRef, dict[str, int]] = {}
        self._current: Optional[tuple[CheckpointRef, str]] = None

    def in_flight(self) -> Optional[SaveInFlight]:
        """Return the save that is going on, or None. May be called from any thread."""
        current = self._current
        if current is None:
            return None
        return SaveInFlight(*current, frozenset(self._known_packs()))

    def add_manifest(self, manifest: Manifest) -> None:
        """Let later saves build on a committed checkpoint."""
        self._settle(manifest.header, self._index.add_manifest(manifest))

    def save(self, step: int, iterators: Iterable[IteratorState]) -> Header:
        """Store and commit one checkpoint.

        Raises:
            WriterSupersededError: a newer lineage has been opened, or another writer has committed this step.
            BackendError: the storage failed. Nothing became visible.
        """
        ref = CheckpointRef(self._lineage.worker, self._lineage.number, step)
        write_id = uuid.uuid4().hex
        with _start_encoding(iterators) as states, self._announced(ref, write_id):
            self._forget_removed()
            with self._index.rollback_on_error():
                stored = self._upload(ref, write_id, states)
                header = self._commit(ref, write_id, stored)
        self._settle(header, stored.chunks)
        return header

    def _settle(self, header: Header, chunks: ChunkRows) -> None:
        """Take a committed checkpoint for what later saves build on."""
        live = self._index.live_bytes(chunks)
        uses = {pack.key: PackUse(live.get(pack.key, 0), pack.size) for pack in header.packs}
        self._index.retain(chunks, packs_to_repack(uses, self._options.pack_bytes))
        known = {**self._known, header.ref: {pack.key: pack.size for pack in header.packs}}
        useful = self._index.packs
        self._known = {ref: packs for ref, packs in known.items() if not useful.isdisjoint(packs)}

    @contextlib.contextmanager
    def _announced(self, ref: CheckpointRef, write_id: str) -> Iterator[None]:
        """Let everybody know that a save is in flight, so that no clean-up removes what it builds on."""
        key = announcement_key(ref, write_id)
        self._current = (ref, key)
        away = False
        try:
            self._backend.put(key, b"")
            yield
        except BackendUnavailableError:
            away = True
            raise
        finally:
            self._current = None
            # If it stays, the worst is that clean-up by others waits until it is old; this run's own removes
            # it. So a storage that has been waited for in vain is not waited for once more.
            if not away:
                with contextlib.suppress(BackendError):
                    self._backend.delete([key])

    def _forget_removed(self) -> None:
        """Build only on checkpoints that are still there now that the save is announced (see `Pruner`)."""
        removed = set(self._known) - set(self._list_present())
        if not removed:
            return
        before = set(self._known_packs())
        self._known = {ref: packs for ref, packs in self._known.items() if ref not in removed}
        self._index.forget_packs(before - set(self._known_packs()))

    def _known_packs(self) -> dict[str, int]:
        return {key: size for packs in self._known.values() for key, size in packs.items()}

    def _upload(self, ref: CheckpointRef, write_id: str, iterators: Iterable[IteratorState]) -> _Stored:
        entries: list[IteratorEntry] = []
        parts: list[ChunkRows] = []
        with PackWriter(
            self._backend,
            lambda number: pack_key(ref, write_id[:8], number),
            self._options.pack_bytes,
            self._options.concurrency,
        ) as writer:
            sink = _Sink(writer, self._index, self._options.compress)
            for state in iterators:
                keys, elements = ChunkRows(), ChunkRows()
                for batch in _batches(split_into_chunks(state.elements)):
                    sink.store(batch, keys if batch[0].is_keys else elements)
                entries.append(self._entry(state.name, keys, elements))
                parts += [keys, elements]
            return _Stored(tuple(entries), ChunkRows.joined(parts), writer.finish())

    def _entry(self, name: str, keys: ChunkRows, elements: ChunkRows) -> IteratorEntry:
        return IteratorEntry(
            name,
            key_chunks=len(keys),
            chunks=len(elements),
            elements=elements.total_elements,
            logical_bytes=self._index.raw_bytes(keys) + self._index.raw_bytes(elements),
        )

    def _commit(self, ref: CheckpointRef, write_id: str, stored: _Stored) -> Header:
        body, packs = self._index.encode_table(stored.chunks)
        sizes = {**self._known_packs(), **stored.packs}
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
        )
        data = encode_manifest(header, body)
        self._check_not_superseded()
        self._create(header, data)
        return header

    def _create(self, header: Header, data: bytes) -> None:
        try:
            self._backend.create(manifest_key(header.ref), data)
        except ObjectExistsError:
            other = decode_header(self._backend.get(manifest_key(header.ref)))
            if other.write_id != header.write_id:
                raise WriterSupersededError(
                    f"{self._backend.uri}: {header.ref} was committed by another writer "
                    f"({describe_process(other.host, other.pid, other.created)}). "
                    "Two runs must not share one URI and worker name: stop this one."
                ) from None


@dataclass(frozen=True)
class _Stored:
    """What a save has stored and not yet committed."""

    entries: tuple[IteratorEntry, ...]
    chunks: ChunkRows
    packs: Mapping[str, int]
    """Packs that were uploaded, with their sizes."""


class _Sink:
    """Stores what is new."""

    def __init__(self, writer: PackWriter, index: ChunkIndex, compress: bool) -> None:
        self._writer = writer
        self._index = index
        self._compress = compress
        # One a kind: keys shrink also where payloads do not.
        self._compressors: defaultdict[tuple[bool, bool], Compressor] = defaultdict(Compressor)

    def store(self, batch: Sequence[ChunkContent], chunks: ChunkRows) -> None:
        """Add chunks of one kind to those of the checkpoint, and to packs unless they are stored already."""
        names = [digest(piece.data) for piece in batch]
        rows = list(map(self._index.find, names))
        new = {name: piece.data for name, row, piece in zip(names, rows, batch) if row < 0}
        added = {
            name: self._index.add(name, self._writer.add(packed, len(data)))
            for (name, data), packed in zip(new.items(), self._packed(batch[0], list(new.values())))
        }
        for name, row, piece in zip(names, rows, batch):
            chunks.add(added[name] if row < 0 else row, piece.elements)

    def _packed(self, like: ChunkContent, contents: Sequence[bytes]) -> Sequence[bytes]:
        if not self._compress or not contents:
            return contents
        return self._compressors[_kind(like)].compress(contents)


@contextlib.contextmanager
def _start_encoding(states: Iterable[IteratorState]) -> Iterator[Iterator[IteratorState]]:
    """Yield the same states, whose encoding another thread sets going meanwhile.

    So it does not wait for what a save has to ask the storage first.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="input-checkpoint-begin") as executor:
        yield _await_states(executor.submit(_with_first_drawn, iter(states)))


def _await_states(coming: Future[Iterator[IteratorState]]) -> Iterator[IteratorState]:
    yield from coming.result()


def _with_first_drawn(states: Iterator[IteratorState]) -> Iterator[IteratorState]:
    """Return the same states, with the first element of the first one drawn."""
    for state in states:
        elements = iter(state.elements)
        first = list(itertools.islice(elements, 1))
        return itertools.chain([replace(state, elements=itertools.chain(first, elements))], states)
    return states


def _batches(cuts: Iterable[ChunkContent]) -> Iterator[list[ChunkContent]]:
    """Yield neighbouring chunks of one kind together, in bounded memory."""
    batch: list[ChunkContent] = []
    size = 0
    for piece in cuts:
        if batch and (
            size + len(piece.data) > _BATCH_BYTES
            or len(batch) == _BATCH_CHUNKS
            or _kind(piece) != _kind(batch[0])
        ):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece.data)
    if batch:
        yield batch


def _kind(piece: ChunkContent) -> tuple[bool, bool]:
    return piece.is_keys, piece.elements > 0


def describe_process(host: str, pid: int, created: datetime) -> str:
    """Return who and when, for messages."""
    return f"host {host}, pid {pid}, {created:%Y-%m-%d %H:%M:%S %Z}"
