"""Takes stored objects apart and puts them together again, as docs/format.md describes them.

Written without the code of the library, whose mistakes it might share. All digests are right afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3

COLUMNS = {"digest": "V16", "pack": "<u4", "jump": "<i8", "stored": "<u4", "shrunk": "<u4", "elements": "<u4"}
_MAGIC = b"ICMANIF\x01"


def digest(data: bytes) -> bytes:
    return blake3(data).digest(length=16)


@dataclass
class ManifestParts:
    """A manifest, to be changed and encoded again."""

    header: dict[str, Any]
    columns: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(data: bytes) -> ManifestParts:
        end = 28 + int.from_bytes(data[8:12], "little")
        header = json.loads(data[28:end])
        raw, start = zstandard.ZstdDecompressor().decompressobj().decompress(data[end:]), 0
        columns = {}
        for name, dtype in COLUMNS.items():
            columns[name] = np.frombuffer(raw, dtype, header["chunks"], start).copy()
            start += columns[name].nbytes
        return ManifestParts(header, columns)

    def offsets(self) -> list[int]:
        ends = np.cumsum(self.columns["jump"] + self.columns["stored"])
        return [int(end) for end in ends - self.columns["stored"]]

    def set_offsets(self, offsets: list[int]) -> None:
        end = 0
        for row, offset in enumerate(offsets):
            self.columns["jump"][row] = offset - end
            end = offset + int(self.columns["stored"][row])

    def table(self) -> bytes:
        raw = b"".join(self.columns[name].tobytes() for name in COLUMNS)
        return zstandard.ZstdCompressor(level=3).compress(raw)

    def encode(self) -> bytes:
        return self.with_table(self.table())

    def with_table(self, table: bytes) -> bytes:
        self.header |= {"table_bytes": len(table), "table_digest": digest(table).hex()}
        return manifest_of(json.dumps(self.header).encode(), table)


def manifest_of(header: bytes, table: bytes) -> bytes:
    """Return a manifest with this text for a header."""
    return _MAGIC + len(header).to_bytes(4, "little") + digest(header) + header + table


def mark_of(step: int, base: tuple[int, int]) -> tuple[str, bytes]:
    """Return the key and the object of a mark that the second run has written."""
    lineage, base_step = base
    fields = {
        "ref": {"worker": "main", "lineage": 2, "step": step},
        "base": {"worker": "main", "lineage": lineage, "step": base_step},
        "draws": {"Iterator": step - base_step, "scope/Counter": 0},
        "digests": {"Iterator": "9f3c"},
        "model_digest": "0f",
        "created": "2026-03-04T12:00:00+00:00",
        "host": "host.example",
        "pid": 4711,
    }
    name = f"{step:012d}-{lineage:08d}-{base_step:012d}.mark"
    return f"checkpoints/main/00000002/{name}", _checked("mark", json.dumps(fields).encode())


def _checked(name: str, data: bytes) -> bytes:
    """Return an object that consists of JSON and its digest."""
    try:
        canonical = json.dumps(json.loads(data), sort_keys=True).encode()
    except (ValueError, RecursionError):
        canonical = data
    return b'{"%s": %s, "digest": "%s"}' % (name.encode(), data, digest(canonical).hex().encode())


def json_of(key: str, data: bytes) -> tuple[Any, bytes]:
    """Return the JSON part that a key's object has, and what follows it."""
    if key.endswith(".manifest"):
        end = 28 + int.from_bytes(data[8:12], "little")
        return json.loads(data[28:end]), data[end:]
    record = json.loads(data)
    name = _wrapper(key)
    return (record[name] if name else record), b""


def with_json(key: str, text: str, rest: bytes) -> bytes:
    """Return the object that has this text for its JSON part."""
    data = text.encode("utf-8", "surrogatepass")
    if key.endswith(".manifest"):
        return manifest_of(data, rest)
    name = _wrapper(key)
    return _checked(name, data) if name else data


def _wrapper(key: str) -> str:
    """Return the name beside the digest in an object that consists of JSON and its digest."""
    return "mark" if key.endswith(".mark") else "lineage" if key.startswith("lineages/") else ""
