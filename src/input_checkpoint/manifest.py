"""The manifest: the object that lists a checkpoint's chunks, and whose creation is the commit.

Layout: 8 bytes of magic, header length (uint32 little-endian), 16 bytes checksum of the header, the header
(JSON, UTF-8), then the chunk table: five columns one after another, zlib-compressed. The header can be read
without the table.

A manifest is untrusted input: every size is bounded by the bytes at hand before memory is taken for it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from input_checkpoint.chunks import DIGEST_BYTES, digest
from input_checkpoint.errors import CorruptCheckpoint
from input_checkpoint.refs import CheckpointRef

MAGIC = b"ICMANIF\x01"
_PREFIX = struct.Struct(f"<8sI{DIGEST_BYTES}s")
_LARGEST_HEADER = 16 << 20
HEAD_BYTES = 16 << 10
"""A read of this many bytes holds the whole header of all but extraordinary manifests."""

_COLUMNS = (
    ("digest", np.dtype(f"V{DIGEST_BYTES}")),
    ("pack", np.dtype("<u4")),
    ("offset", np.dtype("<u8")),
    ("length", np.dtype("<u4")),
    ("elements", np.dtype("<u4")),
)
_ROW_BYTES = sum(dtype.itemsize for _, dtype in _COLUMNS)


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of one committed checkpoint without reading its data."""

    step: int
    """Global step of the model that this input state belongs to."""
    worker: str
    lineage: int
    created: datetime
    """When it was committed, by the writer's clock, in UTC."""
    logical_bytes: int
    """Size of the encoded state."""
    stored_bytes: int
    """Bytes that this save uploaded, its manifest excluded."""
    elements: int
    """How many buffered elements and counters the state holds, over all iterators."""
    iterators: tuple[str, ...]
    """Names of the iterators, as in the TensorFlow graph."""
    host: str
    pid: int

    @property
    def ref(self) -> CheckpointRef:
        """Worker, lineage and step as one value."""
        return CheckpointRef(self.worker, self.lineage, self.step)


@dataclass(frozen=True)
class IteratorEntry:
    """One iterator's share of the chunk table: the next ``chunks`` rows."""

    name: str
    chunks: int
    elements: int
    logical_bytes: int


@dataclass(frozen=True)
class PackEntry:
    """One pack that the chunk table refers to by position."""

    key: str
    size: int


@dataclass(frozen=True)
class Chunk:
    """One row of the chunk table."""

    digest: bytes
    pack: int
    offset: int
    length: int
    elements: int


@dataclass(frozen=True)
class Header:
    """Everything in a manifest but the chunk table."""

    ref: CheckpointRef
    write_id: str
    """Random, one a save: tells a lost answer to our own create from somebody else's object."""
    created: datetime
    host: str
    pid: int
    iterators: tuple[IteratorEntry, ...]
    packs: tuple[PackEntry, ...]
    chunks: int
    table_bytes: int
    table_digest: str

    @property
    def info(self) -> CheckpointInfo:
        """The public part."""
        return CheckpointInfo(
            step=self.ref.step,
            worker=self.ref.worker,
            lineage=self.ref.lineage,
            created=self.created,
            logical_bytes=sum(entry.logical_bytes for entry in self.iterators),
            stored_bytes=sum(pack.size for pack in self.packs),
            elements=sum(entry.elements for entry in self.iterators),
            iterators=tuple(entry.name for entry in self.iterators),
            host=self.host,
            pid=self.pid,
        )


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's header and chunk table."""

    header: Header
    table: tuple[Chunk, ...]

    def rows(self) -> Iterator[tuple[IteratorEntry, tuple[Chunk, ...]]]:
        """Yield each iterator with its rows of the chunk table."""
        start = 0
        for entry in self.header.iterators:
            yield entry, self.table[start : start + entry.chunks]
            start += entry.chunks


def encode_table(chunks: tuple[Chunk, ...]) -> bytes:
    """Return the chunk table as stored."""
    columns = []
    for name, dtype in _COLUMNS:
        values = [getattr(chunk, name) for chunk in chunks]
        columns.append(np.array(values, dtype=dtype).tobytes())
    return zlib.compress(b"".join(columns), 6)


def encode(header: Header, table: bytes) -> bytes:
    """Return the bytes of a manifest; ``table`` comes from `encode_table`."""
    fields = asdict(header)
    fields["created"] = header.created.isoformat()
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    return _PREFIX.pack(MAGIC, len(text), digest(text)) + text + table


def header_end(head: bytes) -> int:
    """Return how many bytes of a manifest hold its header, given its first bytes.

    Raises:
        CorruptCheckpoint: these are not the first bytes of a manifest.
    """
    if len(head) < _PREFIX.size:
        raise CorruptCheckpoint(f"only {len(head)} bytes long")
    magic, length, _ = _PREFIX.unpack_from(head)
    if magic != MAGIC:
        raise CorruptCheckpoint("does not start as a manifest does")
    if length > _LARGEST_HEADER:
        raise CorruptCheckpoint(f"claims a header of {length} bytes")
    return _PREFIX.size + int(length)


def decode_header(data: bytes) -> Header:
    """Return the header of a manifest, of which ``data`` holds at least the header.

    Raises:
        CorruptCheckpoint: the checksum or the content is wrong.
    """
    end = header_end(data)
    text = data[_PREFIX.size : end]
    if len(data) < end or digest(text) != _PREFIX.unpack_from(data)[2]:
        raise CorruptCheckpoint("its header fails its checksum")
    try:
        return _header(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"its header cannot be read: {error!r}") from error


def decode(data: bytes) -> Manifest:
    """Return a whole manifest.

    Raises:
        CorruptCheckpoint: a checksum or the content is wrong.
    """
    header = decode_header(data)
    body = data[header_end(data) :]
    if len(body) != header.table_bytes or digest(body).hex() != header.table_digest:
        raise CorruptCheckpoint("its chunk table fails its checksum")
    table = tuple(_rows(_inflate(body, header.chunks * _ROW_BYTES), header.chunks))
    _check_consistent(header, table)
    return Manifest(header, table)


def _header(fields: Mapping[str, Any]) -> Header:
    ref = fields["ref"]
    return Header(
        ref=CheckpointRef(str(ref["worker"]), int(ref["lineage"]), int(ref["step"])),
        write_id=str(fields["write_id"]),
        created=datetime.fromisoformat(fields["created"]),
        host=str(fields["host"]),
        pid=int(fields["pid"]),
        iterators=tuple(
            IteratorEntry(
                str(entry["name"]),
                int(entry["chunks"]),
                int(entry["elements"]),
                int(entry["logical_bytes"]),
            )
            for entry in fields["iterators"]
        ),
        packs=tuple(PackEntry(str(pack["key"]), int(pack["size"])) for pack in fields["packs"]),
        chunks=int(fields["chunks"]),
        table_bytes=int(fields["table_bytes"]),
        table_digest=str(fields["table_digest"]),
    )


def _inflate(body: bytes, size: int) -> bytes:
    # deflate cannot shrink anything by more than 1032 : 1 (zlib's technical notes).
    if size > 1032 * len(body) + 1032:
        raise CorruptCheckpoint(f"its chunk table cannot hold {size} bytes")
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(body, size + 1)
    except zlib.error as error:
        raise CorruptCheckpoint(f"its chunk table cannot be read: {error}") from error
    if len(raw) != size:
        raise CorruptCheckpoint("its chunk table has the wrong size")
    return raw


def _rows(raw: bytes, count: int) -> Iterator[Chunk]:
    columns: list[npt.NDArray[Any]] = []
    start = 0
    for _, dtype in _COLUMNS:
        columns.append(np.frombuffer(raw, dtype, count, start))
        start += dtype.itemsize * count
    digests = columns[0]
    numbers = [column.tolist() for column in columns[1:]]
    for name, pack, offset, length, elements in zip(digests, *numbers):
        yield Chunk(name.tobytes(), pack, offset, length, elements)


def _check_consistent(header: Header, table: tuple[Chunk, ...]) -> None:
    if sum(entry.chunks for entry in header.iterators) != len(table):
        raise CorruptCheckpoint("its iterators do not add up to its chunk table")
    for chunk in table:
        if chunk.pack >= len(header.packs):
            raise CorruptCheckpoint("a chunk refers to a pack that is not listed")
        if chunk.offset + chunk.length > header.packs[chunk.pack].size:
            raise CorruptCheckpoint("a chunk reaches past the end of its pack")
