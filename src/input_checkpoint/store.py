"""The store: the collection of checkpoints under one backend URI. Knows nothing of TensorFlow.

Packs first, then the manifest by an atomic create-if-absent: a checkpoint exists if and only if its manifest
does.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Optional, Union

from input_checkpoint import lineage as lineages
from input_checkpoint import manifest as manifests
from input_checkpoint import refs
from input_checkpoint.backend import Backend, open_backend
from input_checkpoint.chunks import digest, frame, runs, unframe
from input_checkpoint.errors import (
    BackendNotFound,
    CheckpointNotFound,
    CorruptCheckpoint,
    InputCheckpointError,
    ObjectExists,
    ObjectNotFound,
    UnsupportedFormat,
    WriterSuperseded,
)
from input_checkpoint.lineage import Lineage
from input_checkpoint.manifest import CheckpointInfo, Chunk, Header, IteratorEntry, Manifest
from input_checkpoint.packs import CONCURRENCY, PACK_BYTES, PackWriter, read_chunks
from input_checkpoint.refs import CheckpointRef
from input_checkpoint.retention import RetentionPolicy
from input_checkpoint.state import IteratorState

FORMAT_VERSION = 1
_DELETE_BATCH = 500


@dataclass(frozen=True)
class PruneReport:
    """What a prune kept and removed."""

    kept: Mapping[CheckpointRef, str]
    """Every checkpoint that stays, with the reason."""
    removed: tuple[CheckpointRef, ...]
    """Checkpoints that went, from old to new."""
    removed_packs: int
    """Stored data objects that went with them, or that a crash had left."""


class CheckpointStore:
    """Checkpoints under one URI.

    Safe to use from several threads. Open it with `CheckpointStore.open`.

    Example:
        >>> store = CheckpointStore.open("memory://tour", create=True)
        >>> lineage = store.open_lineage("main", parent=None)
        >>> info = store.save(lineage, 100, [IteratorState("Iterator", [b"a", b"b"])])
        >>> [checkpoint.step for checkpoint in store.checkpoints()]
        [100]
        >>> [list(state.elements) for state in store.load(info)]
        [[b'a', b'b']]
    """

    def __init__(
        self, backend: Backend, *, pack_bytes: int = PACK_BYTES, concurrency: int = CONCURRENCY
    ) -> None:
        self._backend = backend
        self._pack_bytes = pack_bytes
        self._concurrency = concurrency
        self._infos: dict[CheckpointRef, CheckpointInfo] = {}

    @classmethod
    def open(
        cls,
        uri: Union[str, Backend],
        storage_options: Optional[Mapping[str, Any]] = None,
        *,
        create: bool = False,
    ) -> CheckpointStore:
        """Open the store at ``uri``.

        Args:
            uri: backend URI, or an open `Backend`.
            storage_options: handed to the fsspec filesystem.
            create: make a new store if there is none.

        Raises:
            BackendNotFound: there is no store at ``uri`` and ``create`` is False.
            UnsupportedFormat: the store was written by an unknown format version.
            BackendError: the storage cannot be used.
        """
        store = cls(open_backend(uri, storage_options))
        store._check_format(create)
        return store

    @property
    def uri(self) -> str:
        """URI of the store, without secrets."""
        return self._backend.uri

    def checkpoints(self, worker: Optional[str] = None) -> list[CheckpointInfo]:
        """Return every committed checkpoint, from old to new, of one worker or of all.

        A checkpoint whose manifest is damaged is left out here; loading it raises `CorruptCheckpoint`.
        """
        infos = []
        for ref in self._list_refs(worker):
            with contextlib.suppress(CorruptCheckpoint, CheckpointNotFound):
                infos.append(self.info(ref))
        return infos

    def history(self, worker: str) -> list[CheckpointRef]:
        """Return the checkpoints that this worker can resume from, from old to new.

        Those that an older lineage wrote past the step from which its successor restarted are not among them.
        """
        newest = self.newest_lineage(worker)
        return newest.history(self._list_refs(worker)) if newest else []

    def newest(self, worker: str) -> CheckpointInfo:
        """Return the newest checkpoint of the worker's history.

        Raises:
            CheckpointNotFound: there is none.
        """
        history = self.history(worker)
        if not history:
            raise CheckpointNotFound(f"{self.uri} holds no checkpoint of worker {worker!r}")
        return self.info(history[-1])

    def info(self, ref: CheckpointRef) -> CheckpointInfo:
        """Return what is known of one checkpoint. Reads the head of its manifest once.

        Raises:
            CheckpointNotFound: it does not exist (any more).
            CorruptCheckpoint: its manifest is damaged.
        """
        if ref not in self._infos:
            self._infos[ref] = self._header(ref).info
        return self._infos[ref]

    def newest_lineage(self, worker: str) -> Optional[Lineage]:
        """Return the lineage that was opened last, or None if there is none."""
        keys = [info.key for info in self._backend.list(refs.lineages_prefix(worker))]
        numbers = [number for number in map(refs.parse_lineage_key, keys) if number]
        if not numbers:
            return None
        key = refs.lineage_key(worker, max(numbers))
        with self._naming(key):
            return lineages.decode(self._backend.get(key))

    def open_lineage(self, worker: str, parent: Optional[CheckpointRef]) -> Lineage:
        """Begin a new run of ``worker`` that continues ``parent`` (None: from the beginning of the input)."""
        refs.check_worker(worker)
        while True:
            lineage = lineages.successor(worker, self.newest_lineage(worker), parent, self._list_refs(worker))
            try:
                self._backend.create(lineage.key, lineages.encode(lineage))
            except ObjectExists:
                if lineages.decode(self._backend.get(lineage.key)) == lineage:
                    return lineage
                continue
            return lineage

    def save(self, lineage: Lineage, step: int, iterators: Iterable[IteratorState]) -> CheckpointInfo:
        """Store and commit one checkpoint. It is visible completely or not at all.

        Memory stays bounded however large the state is: elements are taken from the streams as uploads make
        room.

        Raises:
            WriterSuperseded: another writer has committed this step of this lineage.
            BackendError: the storage failed. Nothing became visible.
        """
        ref = CheckpointRef(lineage.worker, lineage.number, step)
        write_id = uuid.uuid4().hex
        entries: list[IteratorEntry] = []
        table: list[Chunk] = []
        with PackWriter(
            self._backend,
            lambda number: ref.pack_key(number, write_id[:8]),
            self._pack_bytes,
            self._concurrency,
        ) as packs:
            for state in iterators:
                chunks = [packs.add(frame(run), len(run)) for run in runs(state.elements)]
                entries.append(_entry(state.name, chunks))
                table.extend(chunks)
            stored = packs.finish()
        body = manifests.encode_table(tuple(table))
        header = Header(
            ref=ref,
            write_id=write_id,
            created=datetime.now(timezone.utc),
            host=platform.node(),
            pid=os.getpid(),
            iterators=tuple(entries),
            packs=stored,
            chunks=len(table),
            table_bytes=len(body),
            table_digest=digest(body).hex(),
        )
        self._commit(header, manifests.encode(header, body))
        return self.info(ref)

    def load(self, checkpoint: Union[CheckpointInfo, CheckpointRef]) -> Iterator[IteratorState]:
        """Yield the iterators of a checkpoint. Each one's elements must be read before the next is asked for.

        Raises:
            CheckpointNotFound: it does not exist (any more).
            CorruptCheckpoint: something of it is missing or damaged. May come at any element, so use nothing
                before the last.
        """
        ref = checkpoint if isinstance(checkpoint, CheckpointRef) else checkpoint.ref
        manifest = self._manifest(ref)
        for entry, chunks in manifest.rows():
            yield IteratorState(entry.name, self._elements(manifest, chunks))

    def prune(
        self,
        policy: RetentionPolicy,
        worker: Optional[str] = None,
        *,
        dry_run: bool = False,
    ) -> PruneReport:
        """Remove the checkpoints that ``policy`` does not keep, and what crashes have left behind.

        The newest checkpoint of each worker's history stays in any case: that is the one that a run resumed
        from, until it has committed a newer one. Manifests go before the data they name.

        Args:
            policy: what to keep.
            worker: only this one; None means every worker of the store.
            dry_run: only report.
        """
        workers = [worker] if worker is not None else self.workers()
        reports = [self._prune_worker(policy, name, dry_run) for name in workers]
        return PruneReport(
            kept={ref: reason for report in reports for ref, reason in report.kept.items()},
            removed=tuple(ref for report in reports for ref in report.removed),
            removed_packs=sum(report.removed_packs for report in reports),
        )

    def workers(self) -> list[str]:
        """Return the names of all workers that have committed something."""
        return sorted({ref.worker for ref in self._list_refs(None)})

    def close(self) -> None:
        """Release the backend."""
        self._backend.close()

    def _check_format(self, create: bool) -> None:
        try:
            found = self._backend.get(refs.FORMAT_KEY)
        except ObjectNotFound:
            if not create:
                raise BackendNotFound(
                    f"there is no checkpoint store at {self.uri} (it has no {refs.FORMAT_KEY})"
                ) from None
            found = self._create_format()
        version = _format_version(found)
        if version != FORMAT_VERSION:
            raise UnsupportedFormat(
                f"{self.uri} is of format version {version!r}; this release of input-checkpoint knows "
                f"version {FORMAT_VERSION}. "
                "Upgrade input-checkpoint, or choose another URI."
            )

    def _create_format(self) -> bytes:
        text = json.dumps({"format": "input-checkpoint", "version": FORMAT_VERSION}).encode()
        try:
            self._backend.create(refs.FORMAT_KEY, text)
        except ObjectExists:
            return self._backend.get(refs.FORMAT_KEY)
        return text

    def _commit(self, header: Header, data: bytes) -> None:
        key = header.ref.key
        try:
            self._backend.create(key, data)
        except ObjectExists:
            other = self._header(header.ref)
            if other.write_id != header.write_id:
                raise WriterSuperseded(
                    f"{self.uri}: {header.ref} was committed by another writer "
                    f"(host {other.host}, pid {other.pid}, {other.created:%Y-%m-%d %H:%M:%S %Z}). "
                    "Two runs must not share one URI and worker name: stop this one."
                ) from None

    def _list_refs(self, worker: Optional[str]) -> list[CheckpointRef]:
        keys = (info.key for info in self._backend.list(refs.checkpoints_prefix(worker)))
        return sorted(ref for ref in map(refs.parse_checkpoint_key, keys) if ref)

    def _header(self, ref: CheckpointRef) -> Header:
        with self._naming(ref.key, ref):
            head = self._backend.get(ref.key, 0, manifests.HEAD_BYTES)
            end = manifests.header_end(head)
            if end > len(head):
                head = self._backend.get(ref.key, 0, end)
            return _same(manifests.decode_header(head), ref)

    def _manifest(self, ref: CheckpointRef) -> Manifest:
        with self._naming(ref.key, ref):
            manifest = manifests.decode(self._backend.get(ref.key))
            _same(manifest.header, ref)
            return manifest

    def _elements(self, manifest: Manifest, chunks: tuple[Chunk, ...]) -> Iterator[bytes]:
        ref = manifest.header.ref
        with self._naming(ref.key, ref):
            for chunk, data in read_chunks(self._backend, manifest.header.packs, chunks, self._concurrency):
                elements = unframe(data)
                if len(elements) != chunk.elements:
                    raise CorruptCheckpoint("a chunk holds another number of elements than listed")
                yield from elements

    @contextlib.contextmanager
    def _naming(self, key: str, ref: Optional[CheckpointRef] = None) -> Iterator[None]:
        """Say which object and checkpoint an error is about."""
        what = f"checkpoint {ref}" if ref else key
        try:
            yield
        except ObjectNotFound as error:
            raise CheckpointNotFound(f"{self.uri}: {what} does not exist") from error
        except CorruptCheckpoint as error:
            raise CorruptCheckpoint(f"{self.uri}: {what} is damaged ({key}): {error}") from error

    def _prune_worker(self, policy: RetentionPolicy, worker: str, dry_run: bool) -> PruneReport:
        newest = self.newest_lineage(worker)
        present = self._list_refs(worker)
        if newest is None or not present:
            return PruneReport({}, (), 0)
        kept = self._kept(policy, newest, present)
        removed = tuple(ref for ref in present if ref not in kept)
        packs = self._unreferenced_packs(worker, newest, kept, set(removed))
        if not dry_run:
            self._delete([ref.key for ref in removed])
            self._delete(packs)
        return PruneReport(kept, removed, len(packs))

    def _kept(
        self, policy: RetentionPolicy, newest: Lineage, present: list[CheckpointRef]
    ) -> dict[CheckpointRef, str]:
        given_up = set(lineages.abandoned(newest, present))
        history = newest.history(present)
        kept = {ref: "not yet given up" for ref in present if ref not in {*given_up, *history}}
        readable = []
        for ref in history:
            try:
                readable.append(self.info(ref))
            except InputCheckpointError:
                kept[ref] = "its manifest cannot be read"
        kept.update(policy.keep(readable))
        if history:
            kept[history[-1]] = "the newest"
        return kept

    def _unreferenced_packs(
        self,
        worker: str,
        newest: Lineage,
        kept: Collection[CheckpointRef],
        removed: Collection[CheckpointRef],
    ) -> list[str]:
        """Return packs that no kept manifest names and no save in flight may.

        Only the newest lineage can have a save in flight, so there only packs of removed checkpoints count.
        """
        named: set[str] = set()
        for ref in kept:
            # What a damaged manifest names is unknown; the packs of its own save are spared by their name
            # below.
            with contextlib.suppress(CorruptCheckpoint, CheckpointNotFound):
                named.update(pack.key for pack in self._header(ref).packs)
        unreferenced = []
        for info in self._backend.list(refs.packs_prefix(worker)):
            maker = refs.parse_pack_key(info.key)
            if maker is None or maker in kept or info.key in named:
                continue
            if maker in removed or maker.lineage < newest.number:
                unreferenced.append(info.key)
        return unreferenced

    def _delete(self, keys: list[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            self._backend.delete(keys[start : start + _DELETE_BATCH])


def _entry(name: str, chunks: list[Chunk]) -> IteratorEntry:
    return IteratorEntry(
        name,
        chunks=len(chunks),
        elements=sum(chunk.elements for chunk in chunks),
        logical_bytes=sum(chunk.length for chunk in chunks),
    )


def _same(header: Header, ref: CheckpointRef) -> Header:
    if header.ref != ref:
        raise CorruptCheckpoint(f"it holds the manifest of another checkpoint, {header.ref}")
    return header


def _format_version(text: bytes) -> object:
    try:
        found = json.loads(text)
        return found["version"] if found["format"] == "input-checkpoint" else text[:80]
    except (ValueError, KeyError, TypeError):
        return text[:80]
