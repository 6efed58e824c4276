"""What is committed under a backend: listings, headers, manifests and lineage records, each one checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Optional

from input_checkpoint import lineage as lineages
from input_checkpoint import manifest as manifests
from input_checkpoint import refs
from input_checkpoint.backend import Backend
from input_checkpoint.errors import CheckpointNotFound, CorruptCheckpoint, ObjectNotFound
from input_checkpoint.lineage import Lineage
from input_checkpoint.manifest import Header, IteratorRows, Manifest
from input_checkpoint.reading import read_pieces
from input_checkpoint.refs import CheckpointRef
from input_checkpoint.state import Piece


class Catalog:
    """Reads what a store holds. Changes nothing.

    Everything here raises `CheckpointNotFound` for what is not there (any more) and `CorruptCheckpoint` for
    what is damaged, with the URI and the object's name.

    Args:
        backend: where.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._headers: dict[CheckpointRef, Header] = {}

    def refs(self, worker: Optional[str] = None) -> list[CheckpointRef]:
        """Return every checkpoint that is there now, from old to new, of one worker or of all."""
        keys = (info.key for info in self.backend.list(refs.checkpoints_prefix(worker)))
        return sorted(ref for ref in map(refs.parse_checkpoint_key, keys) if ref)

    def holds(self, ref: CheckpointRef) -> bool:
        """Whether a checkpoint is there now, damaged or not."""
        return any(info.key == ref.key for info in self.backend.list(ref.key))

    def header(self, ref: CheckpointRef) -> Header:
        """Return the header of a manifest. Reads it once: a manifest never changes."""
        if ref not in self._headers:
            self._headers[ref] = self.read_header(ref)
        return self._headers[ref]

    def remember(self, header: Header) -> None:
        """Take note of a header that need not be read any more."""
        self._headers[header.ref] = header

    def read_header(self, ref: CheckpointRef) -> Header:
        """Read the header of a manifest, also if it is known already."""
        with self._naming(ref.key, ref):
            head = self.backend.get(ref.key, 0, manifests.HEAD_BYTES)
            end = manifests.header_end(head)
            if end > len(head):
                head = self.backend.get(ref.key, 0, end)
            return _same(manifests.decode_header(head), ref)

    def manifest(self, ref: CheckpointRef) -> Manifest:
        """Read a manifest."""
        return self.stored_manifest(ref)[1]

    def stored_manifest(self, ref: CheckpointRef) -> tuple[bytes, Manifest]:
        """Read a manifest; return it as it is stored, and decoded."""
        with self._naming(ref.key, ref):
            stored = self.backend.get(ref.key)
            manifest = manifests.decode(stored)
            _same(manifest.header, ref)
            return stored, manifest

    def pieces(self, manifest: Manifest, rows: IteratorRows, concurrency: int) -> Iterator[Piece]:
        """Yield the elements of one iterator, in pieces as they lie in the packs."""
        ref = manifest.header.ref
        with self._naming(ref.key, ref):
            yield from read_pieces(self.backend, manifest, rows, concurrency)

    def newest_lineage(self, worker: str) -> Optional[Lineage]:
        """Return the lineage that was opened last, or None if there is none."""
        keys = [info.key for info in self.backend.list(refs.lineages_prefix(worker))]
        numbers = [number for number in map(refs.parse_lineage_key, keys) if number]
        return self.lineage(worker, max(numbers)) if numbers else None

    def lineage(self, worker: str, number: int) -> Lineage:
        """Read one lineage record."""
        key = refs.lineage_key(worker, number)
        with self._naming(key):
            found = lineages.decode(self.backend.get(key))
            if found.key != key:
                raise CorruptCheckpoint(f"it holds the record of another lineage, {found.key}")
            return found

    @contextlib.contextmanager
    def _naming(self, key: str, ref: Optional[CheckpointRef] = None) -> Iterator[None]:
        """Say which object and checkpoint an error is about."""
        what = f"checkpoint {ref}" if ref else key
        try:
            yield
        except ObjectNotFound as error:
            raise CheckpointNotFound(f"{self.backend.uri}: {what} does not exist") from error
        except CorruptCheckpoint as error:
            raise CorruptCheckpoint(f"{self.backend.uri}: {what} is damaged ({key}): {error}") from error


def _same(header: Header, ref: CheckpointRef) -> Header:
    if header.ref != ref:
        raise CorruptCheckpoint(f"it holds the manifest of another checkpoint, {header.ref}")
    return header
