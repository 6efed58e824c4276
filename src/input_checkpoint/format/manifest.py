"""The manifest: the object that lists the chunks of a checkpoint. Creating it commits the checkpoint.

Layout: 8 bytes of magic, the length of the header (uint32, little-endian), the checksum of the header (16
bytes), the header (JSON, UTF-8), then the chunk table. The header can be read without the table.

A manifest is untrusted input: `limits` bounds what is read of it, and every size in it is checked against the
bytes read before memory is allocated.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from input_checkpoint.backends.base import Data, check_key
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, PackEntry, SaveContext
from input_checkpoint.errors import UNREADABLE_JSON, CheckpointTooLargeError, CorruptCheckpointError
from input_checkpoint.format.chunk_table import ROW_BYTES, ChunkTable, decode_table
from input_checkpoint.format.chunking import DIGEST_BYTES, digest
from input_checkpoint.format.keys import parse_pack_key
from input_checkpoint.format.limits import (
    MAX_CHUNK_BYTES,
    MAX_CHUNK_ELEMENTS,
    MAX_CONTEXT_BYTES,
    MAX_HEADER_BYTES,
    MAX_ITERATORS,
    MAX_PACK_BYTES,
    MAX_ROWS,
)
from input_checkpoint.format.strict_json import (
    parse_object,
    read_flag,
    read_number,
    read_object,
    read_objects,
    read_optional_number,
    read_optional_text,
    read_text,
)
from input_checkpoint.format.timestamps import decode_timestamp, encode_timestamp

MAGIC = b"ICMANIF\x01"
_PREFIX = struct.Struct(f"<8sI{DIGEST_BYTES}s")
HEAD_BYTES = 16 << 10
"""Reading this many bytes gets the whole header, except in unusually large manifests."""


@dataclass(frozen=True)
class IteratorEntry:
    """One iterator's share of the chunk table: rows of keys, then rows of elements."""

    name: str
    key_chunks: int
    """Number of rows with keys of large payloads."""
    chunks: int
    """Number of rows with elements."""
    elements: int
    logical_bytes: int


@dataclass(frozen=True)
class Header:
    """Everything in a manifest except the chunk table."""

    ref: CheckpointRef
    write_id: str
    """Random, one per save. If a create got no response, it tells our own manifest from another writer's."""
    created: datetime
    host: str
    pid: int
    iterators: tuple[IteratorEntry, ...]
    packs: tuple[PackEntry, ...]
    chunks: int
    table_bytes: int
    table_digest: str
    context: SaveContext = field(default_factory=SaveContext)

    @cached_property
    def info(self) -> CheckpointInfo:
        """The part that users see. Built once: a prune asks every header that it knows."""
        return CheckpointInfo(
            step=self.ref.step,
            worker=self.ref.worker,
            lineage=self.ref.lineage,
            created=self.created,
            logical_bytes=sum(entry.logical_bytes for entry in self.iterators),
            stored_bytes=sum(pack.size for pack in self.packs if pack.new),
            elements=sum(entry.elements for entry in self.iterators),
            iterators=tuple(entry.name for entry in self.iterators),
            host=self.host,
            pid=self.pid,
            packs=self.packs,
            table_bytes=self.table_bytes,
            context=self.context,
        )


@dataclass(frozen=True)
class IteratorRows:
    """One iterator's part of the chunk table."""

    entry: IteratorEntry
    keys: ChunkTable
    elements: ChunkTable


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's header and chunk table."""

    header: Header
    table: ChunkTable

    @property
    def pack_keys(self) -> list[str]:
        """Keys of the packs, in the order in which the chunk table numbers them."""
        return [pack.key for pack in self.header.packs]

    def iterators(self) -> Iterator[IteratorRows]:
        """Yield each iterator with its rows of the chunk table."""
        start = 0
        for entry in self.header.iterators:
            middle = start + entry.key_chunks
            end = middle + entry.chunks
            yield IteratorRows(entry, self.table.slice(start, middle), self.table.slice(middle, end))
            start = end


def encode_manifest(header: Header, table: bytes) -> bytes:
    """Return the stored form of a manifest.

    Args:
        header: everything except the chunk table.
        table: the encoded chunk table.

    Raises:
        CheckpointTooLargeError: it would be larger than a reader accepts.
    """
    fields = asdict(header)
    fields["created"] = encode_timestamp(header.created)
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    problem = _excess(header, len(text), fields["context"])
    if problem:
        raise CheckpointTooLargeError(problem, ref=header.ref)
    return _PREFIX.pack(MAGIC, len(text), digest(text)) + text + table


def _excess(header: Header, header_bytes: int, context: object) -> str:
    """Return what about a manifest is larger than a reader accepts, and what to do; empty if nothing is."""
    if _context_bytes(context) > MAX_CONTEXT_BYTES:
        return f"what the training adds to it (SaveContext) has more than {MAX_CONTEXT_BYTES} bytes as JSON"
    if header_bytes > MAX_HEADER_BYTES:
        return (
            f"it has {len(header.packs)} packs, more than a manifest can list (a header of {header_bytes} "
            f"bytes, at most {MAX_HEADER_BYTES}). Use larger packs: SaveOptions(pack_bytes=...)."
        )
    if header.chunks > MAX_ROWS:
        return (
            f"it has {header.chunks} chunks, and a manifest can list at most {MAX_ROWS}. Make the buffers of "
            "the pipeline smaller, or batch before them."
        )
    if len(header.iterators) > MAX_ITERATORS:
        return f"it has {len(header.iterators)} iterators, and a manifest can list at most {MAX_ITERATORS}"
    return ""


def _context_bytes(context: object) -> int:
    return len(json.dumps(context, separators=(",", ":")))


def header_end(head: bytes) -> int:
    """Return the offset at which the header of a manifest ends, given the first bytes of the manifest.

    Raises:
        CorruptCheckpointError: these are not the first bytes of a manifest.
    """
    if len(head) < _PREFIX.size:
        raise CorruptCheckpointError(f"only {len(head)} bytes long")
    magic, length, _ = _PREFIX.unpack_from(head)
    if magic != MAGIC:
        raise CorruptCheckpointError("does not start like a manifest")
    if length > MAX_HEADER_BYTES:
        raise CorruptCheckpointError(f"claims a header of {length} bytes")
    return _PREFIX.size + int(length)


def decode_header(data: bytes) -> Header:
    """Return the header of a manifest.

    Args:
        data: the manifest, at least up to the end of its header.

    Raises:
        CorruptCheckpointError: the checksum or the content is wrong.
    """
    end = header_end(data)
    text = data[_PREFIX.size : end]
    if len(data) < end or digest(text) != _PREFIX.unpack_from(data)[2]:
        raise CorruptCheckpointError("its header fails its checksum")
    try:
        fields = parse_object(text)
        if len(text) > MAX_CONTEXT_BYTES and _context_bytes(fields.get("context")) > MAX_CONTEXT_BYTES:
            raise CorruptCheckpointError(f"its context has more than {MAX_CONTEXT_BYTES} bytes")
        return _parse_header(fields)
    except UNREADABLE_JSON as error:
        raise CorruptCheckpointError(f"its header cannot be read: {error!r:.200}") from error


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest that `encode_manifest` encoded.

    Raises:
        CorruptCheckpointError: a checksum or the content is wrong.
    """
    header = decode_header(data)
    return decode_body(header, memoryview(data)[header_end(data) :])


def decode_body(header: Header, body: Data) -> Manifest:
    """Return the manifest that consists of a header and an encoded chunk table.

    Raises:
        CorruptCheckpointError: a checksum or the content is wrong.
    """
    check_header(header)
    if len(body) != header.table_bytes or digest(body).hex() != header.table_digest:
        raise CorruptCheckpointError("its chunk table fails its checksum")
    table = decode_table(body, header.chunks)
    _check_table(header, table)
    return Manifest(header, table)


def _parse_header(fields: Mapping[str, Any]) -> Header:
    ref = read_object(fields, "ref")
    return Header(
        ref=CheckpointRef(read_text(ref, "worker"), read_number(ref, "lineage"), read_number(ref, "step")),
        write_id=read_text(fields, "write_id"),
        created=decode_timestamp(read_text(fields, "created")),
        host=read_text(fields, "host"),
        pid=read_number(fields, "pid"),
        iterators=tuple(
            IteratorEntry(
                name=read_text(entry, "name"),
                key_chunks=read_number(entry, "key_chunks"),
                chunks=read_number(entry, "chunks"),
                elements=read_number(entry, "elements"),
                logical_bytes=read_number(entry, "logical_bytes"),
            )
            for entry in read_objects(fields, "iterators")
        ),
        packs=tuple(
            PackEntry(read_text(pack, "key"), read_number(pack, "size"), read_flag(pack, "new"))
            for pack in read_objects(fields, "packs")
        ),
        chunks=read_number(fields, "chunks"),
        table_bytes=read_number(fields, "table_bytes"),
        table_digest=read_text(fields, "table_digest"),
        context=_parse_context(read_object(fields, "context") if "context" in fields else {}),
    )


def _parse_context(fields: Mapping[str, Any]) -> SaveContext:
    """Return the context of a save. Manifests of other writers may lack any of its fields."""
    return SaveContext(
        model_digest=read_optional_text(fields, "model_digest"),
        pipeline=read_object(fields, "pipeline") if "pipeline" in fields else {},
        save_steps=read_optional_number(fields, "save_steps"),
        draws=read_optional_number(fields, "draws"),
    )


def check_header(header: Header) -> None:
    """Check that what a header claims can be true, before anything is read or allocated because of it.

    Raises:
        CorruptCheckpointError: it cannot.
    """
    if header.chunks > MAX_ROWS or len(header.iterators) > MAX_ITERATORS:
        raise CorruptCheckpointError(
            f"it claims {header.chunks} chunks of {len(header.iterators)} iterators, more than is allowed"
        )
    # Data that zstd cannot compress grows by less than a hundredth.
    if header.table_bytes > header.chunks * ROW_BYTES * 1.01 + HEAD_BYTES:
        raise CorruptCheckpointError(
            f"it claims a chunk table of {header.table_bytes} bytes for {header.chunks} chunks"
        )
    for pack in header.packs:
        save = parse_pack_key(pack.key)
        if save is None or save.worker != header.ref.worker or not _is_key(pack.key):
            raise CorruptCheckpointError(f"it lists an impossible pack: {pack.key!r:.200}")
        if pack.size > MAX_PACK_BYTES:
            raise CorruptCheckpointError(f"it lists a pack of {pack.size} bytes, more than the format allows")
    if len({pack.key for pack in header.packs}) != len(header.packs):
        raise CorruptCheckpointError("it lists a pack twice")
    counts = [count for entry in header.iterators for count in (entry.key_chunks, entry.chunks)]
    if sum(counts) != header.chunks:
        raise CorruptCheckpointError("its iterators do not add up to its chunk table")
    if any(entry.elements < max(entry.key_chunks, entry.chunks) for entry in header.iterators):
        raise CorruptCheckpointError("an iterator has more chunks than elements")


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except ValueError:
        return False
    return True


def _check_table(header: Header, table: ChunkTable) -> None:
    if not len(table):
        return
    if int(table.raw.max()) > MAX_CHUNK_BYTES or int(table.elements.max()) > MAX_CHUNK_ELEMENTS:
        raise CorruptCheckpointError("a chunk is larger than the format allows")
    if int(table.pack.max()) >= len(header.packs):
        raise CorruptCheckpointError("a chunk refers to a pack that is not listed")
    max_offset = np.array([pack.size for pack in header.packs], np.int64)[table.pack]
    max_offset -= table.stored
    if bool((table.offset > max_offset).any()):
        raise CorruptCheckpointError("a chunk extends past the end of its pack")
