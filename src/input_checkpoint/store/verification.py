"""Is everything there, and is it what it was?"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from input_checkpoint.backends.base import Backend
from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.format.chunk_table import Column
from input_checkpoint.format.keys import packs_prefix
from input_checkpoint.format.manifest import Manifest
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.reading import check_counts, check_frame, parts_of, read_chunks


@dataclass(frozen=True)
class VerifyReport:
    """What `CheckpointStore.verify` found."""

    checked: tuple[CheckpointRef, ...]
    """All checkpoints looked at, from old to new."""
    problems: Mapping[CheckpointRef, str]
    """What is wrong with those that cannot be restored."""
    read_bytes: int
    """Bytes of data read and checked."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    catalog: Catalog, checkpoints: Iterable[CheckpointRef], share: float, concurrency: int
) -> VerifyReport:
    """See `CheckpointStore.verify`. ``share`` of the packs are read."""
    if not 0 <= share <= 1:
        raise ValueError(f"read_data must be True, False or between 0 and 1, got {share}")
    check = _Verification(catalog.backend, share, concurrency)
    checked = []
    problems: dict[CheckpointRef, str] = {}
    for ref in checkpoints:
        try:
            check.checkpoint(ref, catalog.manifest(ref))
        except CheckpointNotFoundError:
            continue  # pruned since it was listed
        except CorruptCheckpointError as error:
            problems[ref] = str(error)
        checked.append(ref)
    return VerifyReport(tuple(checked), problems, check.read_bytes)


class _Verification:
    """Checks all that a restore checks. Remembers which chunks are good: shared ones are read once."""

    def __init__(self, backend: Backend, share: float, concurrency: int) -> None:
        self._backend = backend
        self._share = share
        self._concurrency = concurrency
        self._sizes: dict[str, dict[str, int]] = {}
        self._chosen: dict[str, bool] = {}
        self._numbers: dict[str, int] = {}
        self._good: set[bytes] = set()
        self.read_bytes = 0

    def checkpoint(self, ref: CheckpointRef, manifest: Manifest) -> None:
        """Check one checkpoint. Raises `CorruptCheckpointError`."""
        sizes = self._pack_sizes(ref.worker)
        for pack in manifest.header.packs:
            if pack.key not in sizes:
                raise CorruptCheckpointError(
                    f"{self._backend.uri}: checkpoint {ref}: its pack {pack.key} is missing"
                )
            if sizes[pack.key] != pack.size:
                raise CorruptCheckpointError(
                    f"{self._backend.uri}: checkpoint {ref}: its pack {pack.key} has {sizes[pack.key]} bytes "
                    f"instead of {pack.size}"
                )
        try:
            for rows in manifest.iterators():
                check_counts(rows)
            self._read(manifest)
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(f"{self._backend.uri}: checkpoint {ref}: {error}") from error

    def _pack_sizes(self, worker: str) -> dict[str, int]:
        if worker not in self._sizes:
            self._sizes[worker] = {info.key: info.size for info in self._backend.list(packs_prefix(worker))}
        return self._sizes[worker]

    def _read(self, manifest: Manifest) -> None:
        parts = np.concatenate([np.zeros(0, np.int64), *map(parts_of, manifest.iterators())])
        claims = self._claims(manifest, parts)
        chosen = [self._is_chosen(key) for key in manifest.pack_keys]
        wanted = {
            claim: row
            for row, claim in enumerate(claims)
            if chosen[manifest.table.pack[row]] and claim not in self._good
        }
        rows = np.array(list(wanted.values()), np.int64)
        table = manifest.table.take(rows)
        for chunks in read_chunks(self._backend, manifest, table, self._concurrency):
            for row, data in chunks:
                check_frame(data, int(parts[rows[row]]))
                self._good.add(claims[rows[row]])
                self.read_bytes += int(table.stored[row])

    def _claims(self, manifest: Manifest, parts: Column) -> list[bytes]:
        """Return all that a manifest says of each of its chunks. One that is true need not be read again."""
        table = manifest.table
        packs = np.array([self._numbers.setdefault(key, len(self._numbers)) for key in manifest.pack_keys])
        columns = (
            table.offset,
            table.stored,
            table.raw,
            parts,
            packs[table.pack] if len(table) else table.pack,
        )
        numbers = np.stack(columns, axis=1).astype(np.int64)
        return [name.tobytes() + row.tobytes() for name, row in zip(table.digest, numbers)]

    def _is_chosen(self, pack: str) -> bool:
        if pack not in self._chosen:
            self._chosen[pack] = random.random() < self._share
        return self._chosen[pack]
