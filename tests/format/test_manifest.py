"""A manifest is decoded as it was encoded, or refused."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import CheckpointRef, CorruptCheckpointError, InputCheckpointError
from input_checkpoint.checkpoint import PackEntry
from input_checkpoint.format.chunk_table import ChunkTable
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.compression import compress
from input_checkpoint.format.keys import manifest_key, pack_key
from input_checkpoint.format.manifest import (
    HEAD_BYTES,
    MAGIC,
    Header,
    IteratorEntry,
    Manifest,
    decode_header,
    decode_manifest,
    encode_manifest,
    header_end,
)
from tests.support import tables

MIB = 1 << 20
REF = CheckpointRef("worker-1", 3, 1200)
PACK = pack_key(REF, "0123abcd", 0)


def table_of(*rows: tuple[bytes, int, int, int, int]) -> ChunkTable:
    """A table of rows (digest, pack, offset, stored, elements)."""
    return tables.table_of(
        *((name, pack, offset, stored, stored + 5, elements) for name, pack, offset, stored, elements in rows)
    )


def columns(table: ChunkTable) -> list[list[Any]]:
    return [
        column.tolist()
        for column in (table.digest, table.pack, table.offset, table.stored, table.raw, table.elements)
    ]


def manifest(chunks: int = 6, packs: int = 2) -> Manifest:
    """A manifest of two iterators whose chunks are stored one after another in ``packs`` packs."""
    per_pack = -(-chunks // packs)
    table = table_of(
        *(
            (os.urandom(16), n // per_pack, n % per_pack * 90_000, 90_000 - n % 7, n % 5)
            for n in range(chunks)
        )
    )
    first = chunks // 2
    body = table.encode()
    return Manifest(
        Header(
            ref=REF,
            write_id="f" * 32,
            created=datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc),
            host="host.example",
            pid=4711,
            iterators=(
                IteratorEntry("Iterator", 1, first - 1, max(17, first), 500_000),
                IteratorEntry("scope/Iterator_1", 0, chunks - first, max(3, chunks - first), 40),
            ),
            packs=tuple(
                PackEntry(pack_key(REF, "0123abcd", number), per_pack * 90_000, number > 0)
                for number in range(packs)
            ),
            chunks=chunks,
            table_bytes=len(body),
            table_digest=digest(body).hex(),
        ),
        table,
    )


def encoded(content: Manifest) -> bytes:
    return encode_manifest(content.header, content.table.encode())


def same(one: Manifest, other: Manifest) -> bool:
    return one.header == other.header and columns(one.table) == columns(other.table)


def with_table(header: Header, table: bytes, **changes: Any) -> bytes:
    """A manifest with valid checksums, whatever else may be wrong."""
    sized = replace(header, table_bytes=len(table), table_digest=digest(table).hex(), **changes)
    return encode_manifest(sized, table)


def with_header_text(text: bytes, table: bytes = b"") -> bytes:
    return MAGIC + struct.pack("<I", len(text)) + digest(text) + text + table


def with_fields(changes: dict[str, Any]) -> bytes:
    content = manifest()
    fields = asdict(content.header)
    fields["created"] = content.header.created.isoformat()
    return with_header_text(json.dumps({**fields, **changes}).encode(), content.table.encode())


def peak_of_refusing(data: bytes) -> int:
    """Return the memory in bytes that is needed to refuse ``data``."""
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError):
            decode_manifest(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


texts = st.text(st.characters(codec="utf-8"), max_size=20)
u32 = st.integers(0, 2**32 - 1)
enough = st.integers(12, 2**32 - 1)
"""At least as many elements as the largest manifest here has rows."""


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    keys = [pack_key(REF, "0123abcd", number) for number in range(draw(st.integers(1, 4)))]
    packs = [PackEntry(key, draw(st.integers(0, 2**33)), draw(st.booleans())) for key in keys]
    rows = []
    for _ in range(draw(st.integers(0, 12))):
        pack = draw(st.integers(0, len(packs) - 1))
        stored = draw(st.integers(0, min(packs[pack].size, 2**32 - 6)))
        offset = draw(st.integers(0, packs[pack].size - stored))
        rows.append(
            (draw(st.binary(min_size=16, max_size=16)), pack, offset, stored, draw(st.integers(0, 2**16)))
        )
    cuts = sorted(draw(st.integers(0, len(rows))) for _ in range(3))
    table = table_of(*rows)
    body = table.encode()
    header = Header(
        ref=CheckpointRef(REF.worker, draw(u32), draw(u32)),
        write_id=draw(texts),
        created=draw(st.datetimes(timezones=st.just(timezone.utc))),
        host=draw(texts),
        pid=draw(u32),
        iterators=(
            IteratorEntry(draw(texts), cuts[0], cuts[1] - cuts[0], draw(enough), draw(u32)),
            IteratorEntry(draw(texts), cuts[2] - cuts[1], len(rows) - cuts[2], draw(enough), draw(u32)),
        ),
        packs=tuple(packs),
        chunks=len(rows),
        table_bytes=len(body),
        table_digest=digest(body).hex(),
    )
    return Manifest(header, table)


@given(manifests())
def test_a_manifest_is_decoded_as_it_was_encoded(content):
    assert same(decode_manifest(encoded(content)), content)


def test_each_iterator_has_its_rows_of_the_table():
    content = manifest(chunks=5)
    assert [
        (rows.entry.name, columns(rows.keys), columns(rows.elements)) for rows in content.iterators()
    ] == [
        ("Iterator", columns(content.table.slice(0, 1)), columns(content.table.slice(1, 2))),
        ("scope/Iterator_1", columns(content.table.slice(2, 2)), columns(content.table.slice(2, 5))),
    ]


def test_the_header_can_be_read_without_the_table():
    content = manifest(chunks=10_000, packs=60)
    data = encoded(content)
    assert len(data) > 10 * HEAD_BYTES
    assert decode_header(data[:HEAD_BYTES]) == content.header


def test_the_first_bytes_say_where_the_header_ends():
    content = manifest()
    data = encoded(content)
    assert decode_header(data[: header_end(data[:40])]) == content.header


def test_a_truncated_header_is_refused():
    data = encoded(manifest())
    with pytest.raises(CorruptCheckpointError):
        decode_header(data[: header_end(data) - 1])


def test_the_checkpoint_info_adds_up_iterators_and_new_packs():
    info = manifest(chunks=6, packs=2).header.info
    assert (info.ref, info.logical_bytes, info.stored_bytes, info.elements, info.iterators) == (
        REF,
        500_040,
        270_000,
        20,
        ("Iterator", "scope/Iterator_1"),
    )


def test_the_checkpoint_info_lists_every_pack_and_the_size_of_the_chunk_table():
    header = manifest(chunks=6, packs=2).header
    assert (header.info.packs, header.info.table_bytes) == (header.packs, header.table_bytes)


def test_the_checkpoint_info_has_a_short_representation_and_can_be_a_key():
    info = manifest(chunks=600, packs=200).header.info
    assert len(repr({info: "seen"})) < 500


def test_a_chunk_needs_at_most_forty_bytes():
    assert len(encoded(manifest(chunks=10_000, packs=60))) <= 40 * 10_000


def test_no_flipped_bit_goes_unnoticed():
    data = encoded(manifest())
    unnoticed = []
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                decode_manifest(bytes(damaged))
            except CorruptCheckpointError:
                continue
            unnoticed.append((position, bit))
    assert unnoticed == []


def test_no_truncation_goes_unnoticed():
    data = encoded(manifest())
    unnoticed = []
    for end in range(len(data)):
        try:
            decode_manifest(data[:end])
        except CorruptCheckpointError:
            continue
        unnoticed.append(end)
    assert unnoticed == []


@given(st.binary(min_size=1, max_size=50))
def test_bytes_after_a_manifest_are_refused(more):
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(encoded(manifest()) + more)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_corrupt(data):
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(data)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_with_the_right_checksum_are_refused_as_corrupt(text):
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(with_header_text(text))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(with_fields({})[28 : header_end(with_fields({}))]))), json_values)
def test_a_header_with_one_wrong_field_is_decoded_or_refused_as_corrupt(field, value):
    try:
        decode_manifest(with_fields({field: value}))
    except CorruptCheckpointError:
        return


@pytest.mark.parametrize(
    "created",
    ["2026-03-04T12:00:00", "2026-03-04T12:00:00Z", "2026-03-04T12:00:00+00:00", "2026-03-04T13:00:00+01:00"],
)
def test_a_time_is_decoded_in_utc_even_without_a_time_zone(created):
    found = decode_manifest(with_fields({"created": created})).header.created
    assert (found, found.utcoffset()) == (datetime(2026, 3, 4, 12, tzinfo=timezone.utc), timedelta(0))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"pid": float("inf")}, id="infinite pid"),
        pytest.param({"chunks": float("inf")}, id="infinite chunk count"),
        pytest.param({"chunks": -1}, id="negative chunk count"),
        pytest.param({"packs": [{"key": PACK, "size": float("inf"), "new": True}]}, id="infinite pack size"),
        pytest.param(
            {
                "iterators": [
                    {"name": "a", "key_chunks": 0, "chunks": 9, "elements": 1, "logical_bytes": 1},
                    {"name": "b", "key_chunks": 0, "chunks": -3, "elements": 1, "logical_bytes": 1},
                ]
            },
            id="negative share of the table",
        ),
    ],
)
def test_an_impossible_number_is_refused(changes):
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(with_fields(changes))


def test_a_header_nested_too_deeply_is_refused():
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(with_header_text(b"[" * 200_000))


@pytest.mark.parametrize("length", [2**24 + 1, 2**31, 2**32 - 1])
def test_a_huge_header_length_is_refused_without_allocating_memory(length):
    assert peak_of_refusing(MAGIC + struct.pack("<I", length) + bytes(16) + b"{}") < MIB


@pytest.mark.parametrize("length", [2**24 + 1, 2**32 - 1])
def test_a_huge_header_length_is_refused_before_the_header_is_requested(length):
    with pytest.raises(CorruptCheckpointError):
        header_end(MAGIC + struct.pack("<I", length) + bytes(16))


@pytest.mark.parametrize("chunks", [10**6, 10**12, 2**63, 2**200])
def test_a_huge_chunk_count_is_refused_without_allocating_memory(chunks):
    assert peak_of_refusing(with_fields({"chunks": chunks})) < MIB


@pytest.mark.parametrize("size", [10**9, 2**63])
def test_a_huge_table_size_is_refused_without_allocating_memory(size):
    content = manifest()
    header = replace(content.header, table_bytes=size)
    assert peak_of_refusing(encode_manifest(header, content.table.encode())) < MIB


def test_a_table_larger_than_its_rows_is_refused_without_decompressing_it():
    bomb = compress(bytes(64 * MIB))
    assert peak_of_refusing(with_table(manifest().header, bomb)) < MIB


@pytest.mark.parametrize("elements", [17, 10**7 - 1])
def test_a_small_table_that_claims_millions_of_rows_is_refused_without_decompressing_it(elements):
    rows = 10**7
    forged = with_table(
        manifest().header,
        compress(bytes(40 * rows)),
        chunks=rows,
        iterators=(IteratorEntry("a", 0, rows, elements, 1),),
    )
    assert len(forged) < 16_000
    assert peak_of_refusing(forged) < MIB


def test_a_table_of_a_few_kilobytes_for_a_million_rows_is_refused_unless_it_is_filled_up():
    rows = 10**6
    table = manifest(chunks=1).table.take([0] * rows)
    filled = table.encode()
    frame = filled[: filled.index(b"\x50\x2a\x4d\x18")]
    assert len(frame) < 100_000 < len(filled) < 10 * rows
    entry = IteratorEntry("a", 0, rows, rows, 1)
    whole = with_table(manifest(chunks=1).header, filled, chunks=rows, iterators=(entry,))
    assert len(decode_manifest(whole).table) == rows
    assert (
        peak_of_refusing(with_table(manifest(chunks=1).header, frame, chunks=rows, iterators=(entry,))) < MIB
    )


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"pid": True}, id="a boolean for a number"),
        pytest.param({"pid": 1.0}, id="a float for a number"),
        pytest.param({"pid": "1"}, id="a text for a number"),
        pytest.param({"host": 5}, id="a number for a text"),
        pytest.param({"ref": {"worker": "worker-1", "lineage": 3, "step": 1200.0}}, id="a float for a step"),
        pytest.param({"packs": [{"key": PACK, "size": 90_000, "new": 1}]}, id="a number for a boolean"),
        pytest.param({"packs": [{"key": PACK, "size": 2**33 + 1, "new": True}]}, id="too large a pack"),
        pytest.param({"packs": [{"key": PACK, "size": 9, "new": True}] * 2}, id="a pack twice"),
        pytest.param({"packs": [{"key": PACK.replace("-", "- "), "size": 9, "new": True}]}, id="no key"),
        pytest.param({"context": {"draws": -1}}, id="a negative number"),
        pytest.param({"context": {"pipeline": []}}, id="a list for an object"),
        pytest.param({"context": {"pipeline": {"a": "x" * (1 << 20)}}}, id="too large a context"),
        pytest.param({"table_bytes": 10**6}, id="a table larger than its rows"),
    ],
)
def test_a_header_with_a_value_of_another_type_or_size_is_refused(changes):
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(with_fields(changes))


def test_an_iterator_with_more_key_chunks_than_elements_is_refused():
    content = manifest(chunks=1)
    with pytest.raises(CorruptCheckpointError, match="more chunks than elements"):
        decode_manifest(
            with_table(content.header, content.table.encode(), iterators=(IteratorEntry("a", 1, 0, 0, 1),))
        )


def test_decoding_a_table_of_a_million_rows_needs_little_more_memory_than_the_rows():
    rows = 10**6
    content = manifest(chunks=1)
    repeated = content.table.take([0] * rows)
    data = with_table(
        content.header, repeated.encode(), chunks=rows, iterators=(IteratorEntry("a", 0, rows, rows, 1),)
    )
    tracemalloc.start()
    try:
        assert len(decode_manifest(data).table) == rows
        assert tracemalloc.get_traced_memory()[1] < 80 * rows
    finally:
        tracemalloc.stop()


def test_a_header_larger_than_readers_accept_is_refused_before_anything_is_committed():
    packs = tuple(PackEntry(pack_key(REF, "0123abcd", number), 1, True) for number in range(220_000))
    content = manifest()
    with pytest.raises(InputCheckpointError, match=r"220000 packs.*pack_bytes") as raised:
        encode_manifest(replace(content.header, packs=packs), content.table.encode())
    assert raised.value.ref == REF
    fitting = replace(content.header, packs=packs[:120_000])
    assert decode_header(encode_manifest(fitting, b"")).packs == fitting.packs


def test_a_table_that_is_not_compressed_data_is_refused():
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(with_table(manifest().header, os.urandom(200)))


@pytest.mark.parametrize(
    ("pack", "offset", "stored"),
    [
        pytest.param(2, 0, 1, id="in a pack that is not listed"),
        pytest.param(0, 0, 270_001, id="longer than its pack"),
        pytest.param(0, 270_000, 1, id="after the end of its pack"),
        pytest.param(0, 2**63 - 2**33, 2**32 - 6, id="at the largest possible offset"),
        pytest.param(0, -1, 1, id="before its pack"),
    ],
)
def test_a_chunk_outside_of_its_pack_is_refused(pack, offset, stored):
    content = manifest(chunks=1, packs=2)
    table = table_of((bytes(16), pack, offset, stored, 1))
    header = replace(
        content.header, packs=tuple(replace(entry, size=270_000) for entry in content.header.packs)
    )
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(with_table(header, table.encode(), iterators=(IteratorEntry("a", 0, 1, 1, 1),)))


@pytest.mark.parametrize(
    "key",
    [
        "../../elsewhere",
        "/absolute",
        "",
        "packs/worker-1\x00",
        manifest_key(REF),
        "packs/main/00000001/x.pack",
    ],
)
def test_a_pack_that_does_not_belong_to_this_worker_is_refused(key):
    with pytest.raises(CorruptCheckpointError, match="impossible pack"):
        decode_manifest(with_fields({"packs": [{"key": key, "size": 10**6, "new": True}] * 2}))


def test_iterators_that_do_not_add_up_to_the_table_are_refused():
    content = manifest()
    with pytest.raises(CorruptCheckpointError):
        decode_manifest(
            with_table(content.header, content.table.encode(), iterators=content.header.iterators[:1])
        )
