"""Stores and states for the tests of the store."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np
import pytest

from input_checkpoint import (
    Backend,
    BackendUnavailableError,
    CheckpointRef,
    CheckpointStore,
    IteratorState,
    RetentionPolicy,
    Run,
)
from input_checkpoint.checkpoint import PackEntry
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.keys import manifest_key, parse_announcement_key
from input_checkpoint.format.manifest import decode_manifest, encode_manifest
from input_checkpoint.state import Element
from tests.support.wrappers import Failing

MIB = 1 << 20
STATE = [
    ("Iterator", [(b"slot 1", b"one"), (b"slot 2", b""), (b"slot 3", b"three" * 1000)]),
    ("scope/Iterator_1", [(b"", b"counter")]),
]


class KeepNothing(RetentionPolicy):
    """Keeps nothing. What stays is what the store itself protects."""

    def keep(self, checkpoints):
        return {}


def some_state(content: bytes = b"") -> list[IteratorState]:
    return [IteratorState("Iterator", state_of(content))]


def state_of(content: bytes) -> list[Element]:
    return [(b"slot 1", b"element"), (b"slot 2", content)]


def run_in(store: CheckpointStore, run: Run) -> Run:
    """The same run in another store object: as another process, or over another backend."""
    return Run(store._catalog, run.lineage, store._options, store._released)


def save(run: Run, *steps: int) -> list[CheckpointRef]:
    return [run.save(step, some_state(b"%d" % step)).ref for step in steps]


def loaded(store: CheckpointStore, checkpoint) -> list[tuple[str, list[Element]]]:
    return [(state.name, state.in_order()) for state in store.load(checkpoint)]


def steps(refs) -> list[tuple[int, int]]:
    return [(ref.lineage, ref.step) for ref in refs]


def announcements(backend: Backend) -> list[str]:
    """Return the keys of all announcements: of saves, copies and prunes."""
    return [info.key for info in backend.list("lineages/") if parse_announcement_key(info.key)]


def pack_keys(backend: Backend) -> list[str]:
    return [info.key for info in backend.list("packs/")]


def die_before_commit(backend: Backend, run: Run, step: int) -> list[str]:
    """Save as a process does that dies between its last pack and its manifest; return the packs it leaves."""
    before = set(pack_keys(backend))
    died = BackendUnavailableError("died")
    uncommitted = Failing(backend, "create", "checkpoints/", died)
    dying = CheckpointStore(Failing(uncommitted, "delete", "lineages/", died))
    with pytest.raises(BackendUnavailableError, match="died"):
        run_in(dying, run).save(step, some_state(b"lost"))
    return sorted(set(pack_keys(backend)) - before)


def tamper(backend: Backend, ref: CheckpointRef, pack: Optional[PackEntry] = None, **row: int) -> None:
    """Rewrite a manifest to contain one iterator with one chunk, with valid checksums."""
    content = decode_manifest(backend.get(manifest_key(ref)))
    changes = {name: np.array([value], np.uint64) for name, value in row.items()}
    table = replace(content.table.slice(0, 1), **changes)
    body = table.encode()
    entry = replace(content.header.iterators[0], key_chunks=0, chunks=1)
    if "elements" in row:
        entry = replace(entry, elements=row["elements"])
    header = replace(
        content.header,
        iterators=(entry,),
        packs=(pack or content.header.packs[0],),
        chunks=1,
        table_bytes=len(body),
        table_digest=digest(body).hex(),
    )
    backend.put(manifest_key(ref), encode_manifest(header, body))
