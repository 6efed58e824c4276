"""Format version 1: a store written by an earlier release can be read, by us and by following docs/format.md.

``python -m tests.format.test_stored_format DIRECTORY`` wrote the fixture at the commit that added it. It must
never be written again.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from blake3 import blake3

from input_checkpoint import CheckpointRef, CheckpointStore, IteratorState, SaveOptions

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-1"
SAVED = {(1, 10): 0, (1, 20): 7, (2, 15): 20, (2, 25): 33}
HISTORY = [(1, 10), (2, 15), (2, 25)]

Elements = list[tuple[bytes, bytes]]


def payload(number: int, size: int) -> bytes:
    return blake3(b"%d" % number).digest(length=size)


def buffer(replaced: int) -> Elements:
    """A shuffle buffer of 30 large and 40 small elements. The first ``replaced`` of each have changed."""
    large = [payload(n + 1000 * (n < replaced), 2100 + n) for n in range(30)]
    small = [payload(n + 5000 * (n < replaced), n) for n in range(40)]
    return [(b"Iterator::Shuffle:buffer::%d" % slot, content) for slot, content in enumerate(large + small)]


def state(replaced: int) -> dict[str, Elements]:
    return {
        "Iterator": buffer(replaced),
        "scope/Counter": [(b"", b"%d" % replaced), (b"zeros", bytes(9000))],
    }


def write(directory: str) -> None:
    store = CheckpointStore.open(directory, create=True, options=SaveOptions(pack_bytes=40_000))
    run = store.begin_run("main")
    for number, step in SAVED:
        if number == 2 and run.lineage.number == 1:
            run = store.begin_run("main", parent=CheckpointRef("main", 1, 10))
        states = [IteratorState(name, elements) for name, elements in state(SAVED[number, step]).items()]
        run.save(step, states)


@pytest.mark.parametrize("saved", SAVED)
def test_a_checkpoint_of_version_1_can_be_loaded(saved: tuple[int, int]) -> None:
    store = CheckpointStore.open(str(FIXTURE))
    loaded = {found.name: found.in_order() for found in store.load(CheckpointRef("main", *saved))}
    assert loaded == state(SAVED[saved])


def test_the_history_of_a_store_of_version_1_can_be_read() -> None:
    history = CheckpointStore.open(str(FIXTURE)).history("main")
    assert [(ref.lineage, ref.step) for ref in history] == HISTORY


def test_a_store_of_version_1_passes_verification() -> None:
    assert CheckpointStore.open(str(FIXTURE)).verify().ok


def digest(data: bytes) -> bytes:
    return blake3(data).digest(length=16)


def unframe(data: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<I", data)
    lengths = struct.unpack_from(f"<{count}I", data, 4)
    start, parts = 4 + 4 * count, []
    for length in lengths:
        parts.append(data[start : start + length])
        start += length
    assert start == len(data)
    return parts


def unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def rows_of(header: dict[str, Any], table: bytes) -> list[tuple[bytes, int]]:
    """Return the content and the number of elements of every chunk."""
    raw, count, start, columns = unzstd(table), header["chunks"], 0, []
    for dtype in ("V16", "<u4", "<i8", "<u4", "<u4", "<u4"):
        columns.append(np.frombuffer(raw, dtype, count, start).tolist())
        start += np.dtype(dtype).itemsize * count
    rows, end = [], 0
    for name, pack, jump, stored, shrunk, elements in zip(*columns):
        start, end = end + jump, end + jump + stored
        content = (FIXTURE / header["packs"][pack]["key"]).read_bytes()[start:end]
        content = unzstd(content) if shrunk else content
        assert len(content) == stored + shrunk
        assert digest(content) == name
        rows.append((content, elements))
    return rows


def read_as_documented(manifest: bytes) -> dict[str, Elements]:
    """Read a checkpoint as somebody would who has only docs/format.md."""
    assert manifest[:8] == b"ICMANIF\x01"
    (length,) = struct.unpack_from("<I", manifest, 8)
    text, table = manifest[28 : 28 + length], manifest[28 + length :]
    header = json.loads(text)
    assert digest(text) == manifest[12:28]
    assert (len(table), digest(table).hex()) == (header["table_bytes"], header["table_digest"])
    rows = iter(rows_of(header, table))
    found: dict[str, Elements] = {}
    for entry in header["iterators"]:
        keys = [key for _ in range(entry["key_chunks"]) for key in unframe(next(rows)[0])]
        elements = found.setdefault(entry["name"], [])
        for _ in range(entry["chunks"]):
            content, count = next(rows)
            parts = unframe(content) if count else [keys.pop(0), content]
            elements += zip(parts[::2], parts[1::2])
        assert (keys, len(elements)) == ([], entry["elements"])
    return found


@pytest.mark.parametrize("saved", SAVED)
def test_the_documentation_of_the_format_suffices_to_read_a_checkpoint(saved: tuple[int, int]) -> None:
    manifest = FIXTURE / "checkpoints" / "main" / f"{saved[0]:08d}" / f"{saved[1]:012d}.manifest"
    assert read_as_documented(manifest.read_bytes()) == state(SAVED[saved])


def test_the_fixture_has_compressed_and_shared_chunks() -> None:
    manifest = (FIXTURE / "checkpoints/main/00000001/000000000020.manifest").read_bytes()
    (length,) = struct.unpack_from("<I", manifest, 8)
    packs = json.loads(manifest[28 : 28 + length])["packs"]
    assert {pack["new"] for pack in packs} == {True, False}


if __name__ == "__main__":
    write(sys.argv[1])
