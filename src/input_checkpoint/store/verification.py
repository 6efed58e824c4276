"""Verification: is every checkpoint complete and undamaged?"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from input_checkpoint.checkpoint import CheckpointRef, MarkRef, mark_problems_to_list, problems_to_list
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.format.chunk_table import ChunkTable, Column
from input_checkpoint.format.keys import packs_prefix
from input_checkpoint.format.manifest import Manifest
from input_checkpoint.parallel import map_ordered
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.reading import check_counts, check_part_count, part_counts, read_chunks


@dataclass(frozen=True)
class VerifyReport:
    """The result of `CheckpointStore.verify`."""

    checked: tuple[CheckpointRef, ...]
    """All checkpoints that were checked, from oldest to newest."""
    problems: Mapping[CheckpointRef, str]
    """The checkpoints that cannot be restored, each with what is wrong."""
    read_bytes: int
    """Bytes of data that were read and verified."""
    mark_problems: Mapping[MarkRef, str] = field(default_factory=dict)
    """The marks that no run can use, each with what is wrong: it is damaged, or its base is gone."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems and not self.mark_problems

    def to_dict(self) -> dict[str, Any]:
        """Return `ok` and all fields in a form that `json.dumps` accepts.

        Example:
            >>> ref = CheckpointRef("main", lineage=1, step=500)
            >>> report = VerifyReport(checked=(ref,), problems={ref: "its pack is missing"}, read_bytes=0)
            >>> report.to_dict()["problems"]
            [{'checkpoint': {'worker': 'main', 'lineage': 1, 'step': 500}, 'problem': 'its pack is missing'}]
        """
        return {
            "ok": self.ok,
            "checked": [ref.to_dict() for ref in self.checked],
            "problems": problems_to_list(self.problems),
            "read_bytes": self.read_bytes,
            "mark_problems": mark_problems_to_list(self.mark_problems),
        }


def verify(
    catalog: Catalog,
    checkpoints: Collection[CheckpointRef],
    share: float,
    concurrency: int,
    marks: Collection[MarkRef] = (),
) -> VerifyReport:
    """Verify checkpoints, see `CheckpointStore.verify`.

    Args:
        catalog: the store.
        checkpoints: which checkpoints to verify.
        share: the share of packs to read, chosen at random; 1 reads all of them.
        concurrency: as in `SaveOptions`.
        marks: which marks to verify.

    Raises:
        ValueError: ``share`` is not between 0 and 1.
        BackendError: the storage cannot be read.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"read_data must be True, False or between 0 and 1, got {share}")
    verifier = _Verifier(catalog, share, concurrency)
    checked = []
    problems: dict[CheckpointRef, str] = {}
    for ref in checkpoints:
        try:
            verifier.check(ref, catalog.manifest(ref))
        except CheckpointNotFoundError:
            continue  # pruned after it was listed
        except CorruptCheckpointError as error:
            if not catalog.committed([ref]):
                continue  # pruned while it was read: manifests go before data
            problems[ref] = str(error)
        checked.append(ref)
    mark_problems = _verify_marks(catalog, marks, checkpoints, concurrency)
    return VerifyReport(tuple(checked), problems, verifier.read_bytes, mark_problems)


def _verify_marks(
    catalog: Catalog, marks: Collection[MarkRef], checkpoints: Collection[CheckpointRef], concurrency: int
) -> dict[MarkRef, str]:
    unlisted = {mark.base for mark in marks}.difference(checkpoints)
    gone = unlisted - catalog.committed(unlisted)

    def problem_of(mark: MarkRef) -> Optional[str]:
        try:
            catalog.mark(mark)
        except CheckpointNotFoundError:
            return None  # pruned after it was listed
        except CorruptCheckpointError as error:
            return str(error)
        if mark.base in gone:
            return (
                f"{catalog.backend.uri}: the {mark} is of no use: its base does not exist. A prune removes it"
            )
        return None

    problems = zip(marks, map_ordered(problem_of, marks, concurrency))
    return {mark: problem for mark, problem in problems if problem}


class _Verifier:
    """Checks everything that a restore checks. Reads chunks that checkpoints share only once."""

    def __init__(self, catalog: Catalog, share: float, concurrency: int) -> None:
        self._catalog = catalog
        self._backend = catalog.backend
        self._share = share
        self._concurrency = concurrency
        self._sizes_by_worker: dict[str, dict[str, int]] = {}
        self._is_sampled: dict[str, bool] = {}
        self._pack_numbers: dict[str, int] = {}
        self._verified: set[bytes] = set()
        self.read_bytes = 0

    def check(self, ref: CheckpointRef, manifest: Manifest) -> None:
        """Check one checkpoint.

        Raises:
            CorruptCheckpointError: it cannot be restored.
        """
        with self._error_context(ref):
            self._check_packs(ref.worker, manifest)
            for rows in manifest.iterators():
                check_counts(rows)
            self._check_chunks(manifest)

    def _check_packs(self, worker: str, manifest: Manifest) -> None:
        sizes = self._pack_sizes(worker)
        for pack in manifest.header.packs:
            if pack.key not in sizes:
                # A pack may be newer than the listing.
                if self._catalog.existing({pack.key: pack.size}, 1):
                    continue
                raise CorruptCheckpointError(f"its pack {pack.key} is missing", key=pack.key)
            if sizes[pack.key] != pack.size:
                raise CorruptCheckpointError(
                    f"its pack {pack.key} has {sizes[pack.key]} bytes instead of {pack.size}", key=pack.key
                )

    def _pack_sizes(self, worker: str) -> dict[str, int]:
        if worker not in self._sizes_by_worker:
            packs = self._backend.list(packs_prefix(worker))
            self._sizes_by_worker[worker] = {info.key: info.size for info in packs}
        return self._sizes_by_worker[worker]

    def _check_chunks(self, manifest: Manifest) -> None:
        counts = np.concatenate([np.zeros(0, np.int64), *map(part_counts, manifest.iterators())])
        sampled = np.array([self._sample(key) for key in manifest.pack_keys], bool)
        distinct = manifest.table.distinct(counts)
        rows = distinct[sampled[manifest.table.pack[distinct]]]
        claims = self._claims(manifest, manifest.table.take(rows), counts[rows])
        unverified = [number for number, claim in enumerate(claims) if claim not in self._verified]
        table, counts = manifest.table.take(rows[unverified]), counts[rows[unverified]]
        for chunks in read_chunks(self._backend, manifest, table, self._concurrency):
            for row, data in chunks:
                check_part_count(data, int(counts[row]))
                self._verified.add(claims[unverified[row]])
                self.read_bytes += int(table.stored[row])

    def _claims(self, manifest: Manifest, table: ChunkTable, counts: Column) -> list[bytes]:
        """Return what a manifest claims about some of its chunks. A claim needs to be verified only once."""
        numbers = self._pack_numbers
        packs = np.array([numbers.setdefault(key, len(numbers)) for key in manifest.pack_keys])
        columns = (
            table.offset,
            table.stored,
            table.raw,
            counts,
            packs[table.pack] if len(table) else table.pack,
        )
        claims = np.stack(columns, axis=1).astype(np.int64)
        return [name.tobytes() + claim.tobytes() for name, claim in zip(table.digest, claims)]

    def _sample(self, pack: str) -> bool:
        """Whether to read a pack. The answer is random, and the same for all checkpoints."""
        if pack not in self._is_sampled:
            self._is_sampled[pack] = random.random() < self._share
        return self._is_sampled[pack]

    @contextlib.contextmanager
    def _error_context(self, ref: CheckpointRef) -> Iterator[None]:
        """Say which checkpoint of which store an error is about."""
        uri = self._backend.uri
        try:
            yield
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(
                f"{uri}: checkpoint {ref}: {error}", uri=uri, key=error.key, ref=ref
            ) from error
