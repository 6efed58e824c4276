"""One lineage's saves: what is new goes into packs, then the manifest commits."""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Callable, Optional

from input_checkpoint import manifest as manifests
from input_checkpoint import refs
from input_checkpoint.backend import Backend
from input_checkpoint.chunks import Cut, cut, digest
from input_checkpoint.compression import Compressor
from input_checkpoint.errors import BackendError, ObjectExists, WriterSuperseded
from input_checkpoint.index import ChunkIndex, pack_uses, packs_to_give_up
from input_checkpoint.lineage import Lineage
from input_checkpoint.manifest import Header, IteratorEntry, Manifest, PackEntry
from input_checkpoint.packs import CONCURRENCY, PACK_BYTES, PackWriter
from input_checkpoint.refs import CheckpointRef
from input_checkpoint.state import IteratorState
from input_checkpoint.table import Location, TableBuilder


@dataclass(frozen=True)
class SaveOptions:
    """How saves are made."""

    pack_bytes: int = PACK_BYTES
    """A pack is closed once it holds this many bytes."""
    concurrency: int = CONCURRENCY
    """How many packs are uploaded, or ranges read, at once."""
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
        check_not_superseded: raises `WriterSuperseded` if a newer lineage has been opened.
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

    def learn(self, manifest: Manifest) -> None:
        """Let later saves build on a committed checkpoint."""
        self._index.add(manifest)
        packs = {pack.key: pack.size for pack in manifest.header.packs}
        self._known = {**self._known, manifest.header.ref: packs}
        self._index.forget_packs(packs_to_give_up(pack_uses(manifest), self._options.pack_bytes))

    def save(self, step: int, iterators: Iterable[IteratorState]) -> Header:
        """Store and commit one checkpoint.

        Raises:
            WriterSuperseded: a newer lineage has been opened, or another writer has committed this step.
            BackendError: the storage failed. Nothing became visible.
        """
        ref = CheckpointRef(self._lineage.worker, self._lineage.number, step)
        write_id = uuid.uuid4().hex
        with self._announced(ref, write_id):
            self._forget_removed()
            manifest = self._upload(ref, write_id, iterators)
            body = manifest.table.encode()
            header = _sealed(manifest.header, body)
            self._check_not_superseded()
            self._commit(header, manifests.encode(header, body))
        self.learn(Manifest(header, manifest.table))
        return header

    @contextlib.contextmanager
    def _announced(self, ref: CheckpointRef, write_id: str) -> Iterator[None]:
        """Let everybody know that a save is in flight, so that no clean-up removes what it builds on."""
        key = refs.announcement_key(ref, write_id)
        self._current = (ref, key)
        try:
            self._backend.put(key, b"")
            yield
        finally:
            self._current = None
            # If it stays, the worst is that clean-up by others waits until it is old.
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

    def _upload(self, ref: CheckpointRef, write_id: str, iterators: Iterable[IteratorState]) -> Manifest:
        entries: list[IteratorEntry] = []
        builders: list[TableBuilder] = []
        packs: dict[str, int] = {}
        with PackWriter(
            self._backend,
            lambda number: ref.pack_key(number, write_id[:8]),
            self._options.pack_bytes,
            self._options.concurrency,
        ) as writer:
            sink = _Sink(writer, self._index, packs, Compressor() if self._options.compress else None)
            for state in iterators:
                keys, elements = TableBuilder(), TableBuilder()
                for piece in cut(state.elements):
                    sink.store(piece, keys if piece.is_keys else elements)
                entries.append(_entry(state.name, keys, elements))
                builders += [keys, elements]
            new = writer.finish()
        sizes = {**self._known_packs(), **new}
        table = TableBuilder().build(*builders)
        header = Header(
            ref=ref,
            write_id=write_id,
            created=datetime.now(timezone.utc),
            host=platform.node(),
            pid=os.getpid(),
            iterators=tuple(entries),
            packs=tuple(PackEntry(key, sizes[key], key in new) for key in packs),
            chunks=len(table),
            table_bytes=0,
            table_digest="",
        )
        return Manifest(header, table)

    def _commit(self, header: Header, data: bytes) -> None:
        try:
            self._backend.create(header.ref.key, data)
        except ObjectExists:
            other = manifests.decode_header(self._backend.get(header.ref.key))
            if other.write_id != header.write_id:
                raise WriterSuperseded(
                    f"{self._backend.uri}: {header.ref} was committed by another writer "
                    f"({described(other.host, other.pid, other.created)}). "
                    "Two runs must not share one URI and worker name: stop this one."
                ) from None


class _Sink:
    """Stores what is new, and keeps the list of packs that a checkpoint refers to."""

    def __init__(
        self,
        writer: PackWriter,
        index: ChunkIndex,
        packs: dict[str, int],
        compressor: Optional[Compressor],
    ) -> None:
        self._writer = writer
        self._index = index
        self._packs = packs
        self._compressor = compressor
        self._stored: dict[bytes, Location] = {}

    def store(self, piece: Cut, table: TableBuilder) -> None:
        """Add a chunk to the table, and to a pack unless it is stored already."""
        name = digest(piece.data)
        place = self._index.find(name) or self._stored.get(name)
        if place is None:
            data = self._compressor.compress(piece.data) if self._compressor else piece.data
            place = self._stored[name] = self._writer.add(data, len(piece.data))
        number = self._packs.setdefault(place.pack, len(self._packs))
        table.add(name, number, place, piece.elements)


def described(host: str, pid: int, created: datetime) -> str:
    """Return who and when, for messages."""
    return f"host {host}, pid {pid}, {created:%Y-%m-%d %H:%M:%S %Z}"


def _entry(name: str, keys: TableBuilder, elements: TableBuilder) -> IteratorEntry:
    return IteratorEntry(
        name,
        key_chunks=len(keys),
        chunks=len(elements),
        elements=elements.elements,
        logical_bytes=keys.raw_bytes + elements.raw_bytes,
    )


def _sealed(header: Header, body: bytes) -> Header:
    return replace(header, table_bytes=len(body), table_digest=digest(body).hex())
