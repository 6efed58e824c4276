"""The manifest: the object that lists the chunks of a checkpoint. Creating it commits the checkpoint.

Layout: 8 bytes of magic, the length of the header (uint32, little-endian), the checksum of the header (16
bytes), the header (JSON, UTF-8), then the chunk table. The header can be read without the table.

A manifest is untrusted input: every size in it is checked against the bytes read before memory is allocated.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Callable, Optional, TypeVar

import numpy as np

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, PackEntry, SaveContext
from input_checkpoint.errors import UNREADABLE_JSON, CorruptCheckpointError, InputCheckpointError
from input_checkpoint.format.chunk_table import ChunkTable, decode_table
from input_checkpoint.format.chunking import DIGEST_BYTES, digest
from input_checkpoint.format.keys import parse_pack_key
from input_checkpoint.format.timestamps import decode_timestamp, encode_timestamp

MAGIC = b"ICMANIF\x01"
_PREFIX = struct.Struct(f"<8sI{DIGEST_BYTES}s")
_MAX_HEADER_BYTES = 16 << 20
HEAD_BYTES = 16 << 10
"""Reading this many bytes gets the whole header, except in unusually large manifests."""


_Value = TypeVar("_Value")


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
        InputCheckpointError: the header would be larger than a reader accepts.
    """
    fields = asdict(header)
    fields["created"] = encode_timestamp(header.created)
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    if len(text) > _MAX_HEADER_BYTES:
        raise InputCheckpointError(
            f"Checkpoint {header.ref} was not saved: it has {len(header.packs)} packs, more than a manifest "
            f"can list (a header of {len(text)} bytes, at most {_MAX_HEADER_BYTES}). Use larger packs: "
            "SaveOptions(pack_bytes=...).",
            ref=header.ref,
        )
    return _PREFIX.pack(MAGIC, len(text), digest(text)) + text + table


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
    if length > _MAX_HEADER_BYTES:
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
        return _parse_header(json.loads(text))
    except UNREADABLE_JSON as error:
        raise CorruptCheckpointError(f"its header cannot be read: {error!r}") from error


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest that `encode_manifest` encoded.

    Raises:
        CorruptCheckpointError: a checksum or the content is wrong.
    """
    header = decode_header(data)
    if not 0 <= header.chunks < 1 << 32:
        raise CorruptCheckpointError(f"its chunk table cannot have {header.chunks} rows")
    body = data[header_end(data) :]
    if len(body) != header.table_bytes or digest(body).hex() != header.table_digest:
        raise CorruptCheckpointError("its chunk table fails its checksum")
    # Checked before memory is allocated: a few bytes can claim to decompress to millions of rows.
    _check_header(header)
    table = decode_table(body, header.chunks)
    _check_table(header, table)
    return Manifest(header, table)


def _parse_header(fields: Mapping[str, Any]) -> Header:
    ref = fields["ref"]
    return Header(
        ref=CheckpointRef(str(ref["worker"]), int(ref["lineage"]), int(ref["step"])),
        write_id=str(fields["write_id"]),
        created=decode_timestamp(fields["created"]),
        host=str(fields["host"]),
        pid=int(fields["pid"]),
        iterators=tuple(
            IteratorEntry(
                str(entry["name"]),
                int(entry["key_chunks"]),
                int(entry["chunks"]),
                int(entry["elements"]),
                int(entry["logical_bytes"]),
            )
            for entry in fields["iterators"]
        ),
        packs=tuple(
            PackEntry(str(pack["key"]), int(pack["size"]), bool(pack["new"])) for pack in fields["packs"]
        ),
        chunks=int(fields["chunks"]),
        table_bytes=int(fields["table_bytes"]),
        table_digest=str(fields["table_digest"]),
        context=_parse_context(fields.get("context", {})),
    )


def _parse_context(fields: Mapping[str, Any]) -> SaveContext:
    """Return the context of a save. Manifests of other writers may lack any of its fields."""

    def optional(name: str, kind: Callable[[Any], _Value]) -> Optional[_Value]:
        value = fields.get(name)
        return None if value is None else kind(value)

    return SaveContext(
        model_digest=optional("model_digest", str),
        pipeline=dict(fields.get("pipeline", {})),
        save_steps=optional("save_steps", int),
        draws=optional("draws", int),
    )


def _check_header(header: Header) -> None:
    for pack in header.packs:
        save = parse_pack_key(pack.key)
        if save is None or save.worker != header.ref.worker or not 0 <= pack.size < 1 << 62:
            raise CorruptCheckpointError(f"it lists an impossible pack: {pack.key!r}")
    counts = [count for entry in header.iterators for count in (entry.key_chunks, entry.chunks)]
    if min(counts, default=0) < 0 or sum(counts) != header.chunks:
        raise CorruptCheckpointError("its iterators do not add up to its chunk table")
    if any(entry.elements < max(entry.key_chunks, entry.chunks) for entry in header.iterators):
        raise CorruptCheckpointError("an iterator has more chunks than elements")


def _check_table(header: Header, table: ChunkTable) -> None:
    if not len(table):
        return
    if int(table.pack.max()) >= len(header.packs):
        raise CorruptCheckpointError("a chunk refers to a pack that is not listed")
    max_offset = np.array([pack.size for pack in header.packs], np.int64)[table.pack]
    max_offset -= table.stored
    if bool((table.offset > max_offset).any()):
        raise CorruptCheckpointError("a chunk extends past the end of its pack")
