"""The changes that an input makes to a store. Each is a JSON object: ``{"op": name, argument: value}``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Union

import numpy as np
import zstandard

from tests.fuzz.storage import Content
from tests.fuzz.stored import ManifestParts, digest, json_of, mark_of, with_json

Objects = dict[str, Content]
Mutation = dict[str, Any]

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format-1"
PINNED = "pins/main/00000001/000000000010.json"
MARKS = (mark_of(18, (2, 15)), mark_of(22, (1, 10)))
FOREIGN = {
    "notes.txt": b"somebody else's",
    "checkpoints/main/00000001/notes.txt": b"somebody else's",
    "checkpoints/main/00000001/000000000015-00000001-000000000020.mark": b"somebody else's",
    "lineages/main/notes.txt": b"somebody else's",
    "lineages/main/00000001/000000000010-0123abc~": b"somebody else's",
    "saves/main/best.ckpt": b"somebody else's",
    "packs/main/00000001/000000000010-0123abcd-00000.pack~": b"somebody else's",
    "packs/main/00000001/photo.png": b"somebody else's",
}
"""Objects that are not the library's."""
_PLACEHOLDER = "@here@"


def intact() -> Objects:
    """Return the objects of the intact store: four checkpoints of two lineages, two marks, and a pin."""
    files = {str(path.relative_to(FIXTURE)): path for path in sorted(FIXTURE.rglob("*")) if path.is_file()}
    stored = {key: path.read_bytes() for key, path in files.items()}
    stored[PINNED] = b'{"note": "the best so far"}'
    stored |= dict(MARKS)
    return {key: Content(data) for key, data in {**stored, **FOREIGN}.items()}


def flip(objects: Objects, key: str, at: int, mask: int) -> None:
    """Flip bits of one byte."""
    data = bytearray(objects[key].data)
    if data:
        data[at % len(data)] ^= mask
    objects[key] = Content(bytes(data))


def cut(objects: Objects, key: str, size: int) -> None:
    """Cut an object to a size."""
    objects[key] = Content(objects[key].data[:size])


def append(objects: Objects, key: str, text: str, times: int = 1) -> None:
    """Append some bytes."""
    objects[key] = Content(objects[key].data + text.encode("latin-1") * times)


def grow(objects: Objects, key: str, zeros: int) -> None:
    """Append zeros, as many as one likes."""
    objects[key] = Content(objects[key].data, zeros)


def become(objects: Objects, key: str, text: str, times: int = 1) -> None:
    """Replace an object by a repeated text."""
    objects[key] = Content(text.encode("utf-8", "surrogatepass") * times)


def swap(objects: Objects, key: str, other: str) -> None:
    """Swap two objects."""
    objects[key], objects[other] = objects[other], objects[key]


def drop(objects: Objects, key: str) -> None:
    """Delete an object."""
    del objects[key]


def copy(objects: Objects, key: str, to: str) -> None:
    """Store an object under a second key."""
    objects[to] = objects[key]


def rename(objects: Objects, key: str, to: str) -> None:
    """Store an object under another key."""
    objects[to] = objects.pop(key)


def set_json(objects: Objects, key: str, path: Sequence[Union[str, int]], text: str, times: int = 1) -> None:
    """Put a text in the place of a value in the JSON part of an object. It need not be JSON."""
    fields, rest = json_of(key, objects[key].data)
    if path:
        _at(fields, path[:-1])[path[-1]] = _PLACEHOLDER
        changed = json.dumps(fields).replace(json.dumps(_PLACEHOLDER), text * times)
    else:
        changed = text * times
    objects[key] = Content(with_json(key, changed, rest))


def unset_json(objects: Objects, key: str, path: Sequence[Union[str, int]]) -> None:
    """Remove a value from the JSON part of an object."""
    fields, rest = json_of(key, objects[key].data)
    del _at(fields, path[:-1])[path[-1]]
    objects[key] = Content(with_json(key, json.dumps(fields), rest))


def set_cell(objects: Objects, key: str, column: str, row: int, value: int) -> None:
    """Change a number in the chunk table of a manifest."""
    parts = ManifestParts.of(objects[key].data)
    cells = parts.columns[column]
    bits = cells.dtype.itemsize * 8
    cells[row % len(cells)] = np.array([value % (1 << bits)], f"<u{bits // 8}").astype(cells.dtype)[0]
    objects[key] = Content(parts.encode())


def repeat_rows(objects: Objects, key: str, rows: int, pad: int = 0) -> None:
    """Let a manifest list its last chunk again and again, and claim as many elements."""
    parts = ManifestParts.of(objects[key].data)
    last = {name: column[-1:] for name, column in parts.columns.items()}
    stored = int(last["stored"][0])
    for name, column in parts.columns.items():
        parts.columns[name] = np.concatenate((column, np.repeat(last[name], rows)))
    parts.columns["jump"][-rows:] = -stored
    entry = parts.header["iterators"][-1]
    entry["chunks"] += rows
    entry["elements"] += rows * max(1, int(last["elements"][0]))
    if not int(last["elements"][0]):
        entry["chunks"] -= rows
        entry["key_chunks"] += rows
    parts.header["chunks"] += rows
    table = parts.table()
    objects[key] = Content(parts.with_table(table + _skippable(pad)))


def replace_table(objects: Objects, key: str, zeros: int, sized: bool = True, rows: int = 0) -> None:
    """Let the chunk table be a frame that unpacks to zeros."""
    parts = ManifestParts.of(objects[key].data)
    if rows:
        parts.header["chunks"] = rows
        entry = {
            **parts.header["iterators"][0],
            "name": "Iterator",
            "key_chunks": 0,
            "chunks": rows,
            "elements": rows,
        }
        parts.header["iterators"] = [entry]
    objects[key] = Content(parts.with_table(_compressed_zeros(zeros, sized)))


def forge_chunk(
    objects: Objects,
    key: str,
    row: int,
    text: str = "",
    times: int = 1,
    zeros: int = 0,
    raw: int = -1,
    sized: bool = True,
    grown: int = 0,
) -> None:
    """Let a row of a manifest refer to new data at the end of the first pack, with the right digest.

    The data is ``text``, ``times`` times, or a frame that unpacks to ``zeros``. The row claims a content of
    ``raw`` bytes, and another ``grown`` bytes of the pack, which are zeros.
    """
    parts = ManifestParts.of(objects[key].data)
    row %= parts.header["chunks"]
    pack = parts.header["packs"][0]
    content = text.encode("latin-1") * times
    stored = _compressed_zeros(zeros, sized) if zeros else content
    offsets = parts.offsets()
    offsets[row] = pack["size"]
    size = len(stored) + grown
    parts.columns["pack"][row] = 0
    parts.columns["stored"][row] = size % (1 << 32)
    parts.columns["shrunk"][row] = max(0, raw - size) % (1 << 32)
    # The digest of many zeros takes long, and is compared only after they have been unpacked.
    parts.columns["digest"][row] = np.frombuffer(digest(bytes(zeros) if zeros < 1 << 26 else content), "V16")[
        0
    ]
    parts.set_offsets(offsets)
    objects[pack["key"]] = Content(objects[pack["key"]].data + stored, grown)
    pack["size"] += size
    objects[key] = Content(parts.encode())


OPERATIONS: dict[str, Callable[..., None]] = {
    operation.__name__: operation
    for operation in (
        flip,
        cut,
        append,
        grow,
        become,
        swap,
        drop,
        copy,
        rename,
        set_json,
        unset_json,
        set_cell,
        repeat_rows,
        replace_table,
        forge_chunk,
    )
}
FORGERIES = {"set_json", "unset_json", "set_cell", "repeat_rows", "replace_table", "forge_chunk", "become"}
"""Operations after which all digests are right, so that a changed state may look like a saved one."""


def apply(mutations: Sequence[Mutation], strict: bool = False) -> Objects:
    """Return the objects of the store after all mutations.

    A mutation that no longer fits the store, because of those before it, does nothing; ``strict``: it raises.
    """
    objects = intact()
    for mutation in mutations:
        arguments = dict(mutation)
        operation = OPERATIONS[arguments.pop("op")]
        before = dict(objects)
        try:
            operation(objects, **arguments)
        except (KeyError, IndexError, ValueError, TypeError, RecursionError, zstandard.ZstdError):
            if strict:
                raise
            objects = before
    return objects


def _at(fields: Any, path: Sequence[Union[str, int]]) -> Any:
    for name in path:
        fields = fields[name]
    return fields


def _compressed_zeros(size: int, sized: bool) -> bytes:
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=size if sized else -1)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(size >> 20)]
    return b"".join([*parts, packer.compress(bytes(size % (1 << 20))), packer.flush()])


def _skippable(size: int) -> bytes:
    return b"" if not size else (0x184D2A50).to_bytes(4, "little") + size.to_bytes(4, "little") + bytes(size)
