"""Draws random inputs: one to three mutations that fit the store."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Callable

from tests.fuzz.mutations import FOREIGN, Mutation, intact
from tests.fuzz.stored import COLUMNS, json_of

_NUMBERS = (0, 1, 2, 255, 2**16, 2**24, 2**25, 2**31, 2**32, 2**53, 2**62, 2**63)
_TEXTS = [
    *map(str, _NUMBERS),
    *[
        "-1",
        "-9223372036854775809",
        "1e400",
        "1.0",
        "20.0",
        "-0",
        "1E1",
        "0.1e1",
        "+1",
        "01",
        "0x10",
        "9e999999",
    ],
    *[
        "true",
        "false",
        "null",
        "NaN",
        "Infinity",
        "-Infinity",
        "[]",
        "{}",
        "[{}]",
        "[[]]",
        "{",
        "]",
        "//",
        "'a'",
    ],
    *[
        r'"\ud800"',
        r'"\udfff\ud800"',
        r'"\u0000"',
        r'"\n"',
        r'""',
        r'"main"',
        r'"1"',
        r'"/"',
        r'"../../x"',
        r'"24:00"',
        r'"\uff4dain"',
    ],
    *['"2026-03-04T12:00:00Z"', '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59-23:59"'],
    *("", '"a b"', "\ufeff1", '"\ud800"', '1, "pid": 2', '"x", "ref": {}'),
    '{"worker": "main", "lineage": 1, "step": 10}',
    '[{"lineage": 1, "last_step": 9223372036854775807}, {"lineage": 1, "last_step": 0}]',
    '{"Iterator": {"version": true, "transformations": [], "digests": {}, "tensorflow": "2", "omitted": 0}}',
]
_REPEATED = ("9", "[", '{"a":', "[],", '"a",', " ", '{"a":1,"a":', "\\u0000", "1e", "-", "[[],")
_RAW = ("", "[", "{", "\0", "\xff\xfe[\0", "\ufeff{}", "null", '"text"', "0", "ICMANIF\x01", "(\xb5/\xfd")
_NEW_KEYS = (
    "checkpoints/main/00000001/000000000011.manifest",
    "checkpoints/main/00000002/000000000035.manifest",
    "checkpoints/main/00000003/000000000035.manifest",
    "checkpoints/main/00000009/999999999999.manifest",
    "checkpoints/main/00000001/000000000011-00000001-000000000010.mark",
    "checkpoints/main/00000002/000000000026-00000002-000000000025.mark",
    "checkpoints/main/00000002/000000000026-00000001-000000000099.mark",
    "checkpoints/main/00000009/999999999999-00000009-000000000000.mark",
    "checkpoints/main/00000009/9223372036854775808-00000001-000000000010.mark",
    "checkpoints/worker-1/00000001/000000000010-00000001-000000000010.mark",
    "checkpoints/main/99999999/000000000010.manifest",
    "checkpoints/main/00000001/9223372036854775807.manifest",
    "checkpoints/main/00000001/9223372036854775808.manifest",
    f"checkpoints/main/00000001/{'9' * 200}.manifest",
    "checkpoints/worker-1/00000001/000000000010.manifest",
    "lineages/main/00000003.json",
    "lineages/main/99999998.json",
    f"lineages/main/{'9' * 30}.json",
    "lineages/worker-1/00000001.json",
    "packs/main/00000001/000000000010-0123abcd-00000.pack",
    "packs/main/00000003/000000000010-0123abcd-00000.pack",
    "packs/worker-1/00000001/000000000010-0123abcd-00000.pack",
    "pins/main/00000001/000000000020.json",
    "pins/main/00000002/000000000015.json",
    "pins/main/00000007/000000000099.json",
    "lineages/main/00000001/000000000010-0123abcd",
    "lineages/main/00000002/000000000035-0123abcd",
    "lineages/main/99999999/000000000000-0123abcd",
    "probe/0123456789abcdef0123456789abcdef",
)


def draw(chance: random.Random) -> list[Mutation]:
    """Return a random input."""
    return [chance.choice(_KINDS)(chance) for _ in range(chance.choice((1, 1, 1, 2, 2, 3)))]


def _bytes(chance: random.Random) -> Mutation:
    key = _key(chance)
    return chance.choice(
        (
            {"op": "flip", "key": key, "at": chance.randrange(1 << 16), "mask": 1 << chance.randrange(8)},
            {"op": "flip", "key": key, "at": chance.randrange(40), "mask": chance.randrange(1, 256)},
            {"op": "cut", "key": key, "size": chance.randrange(1 << chance.randrange(1, 18))},
            {"op": "append", "key": key, "text": chance.choice(("\0", "}", "\n", "(\xb5/\xfd")), "times": 1},
            {"op": "grow", "key": key, "zeros": 1 << chance.randrange(10, 34)},
            {"op": "become", "key": key, "text": chance.choice(_RAW), "times": _times(chance)},
        )
    )


def _objects(chance: random.Random) -> Mutation:
    key, other = _key(chance), _key(chance)
    return chance.choice(
        (
            {"op": "swap", "key": key, "other": other},
            {"op": "drop", "key": key},
            {"op": "copy", "key": key, "to": other},
            {"op": "copy", "key": key, "to": chance.choice(_NEW_KEYS)},
            {"op": "rename", "key": key, "to": chance.choice(_NEW_KEYS)},
        )
    )


def _json(chance: random.Random) -> Mutation:
    key = _key(chance, *(kind for kind in _kinds() if kind != "packs"))
    path = chance.choice(_paths(key))
    kind = chance.randrange(8)
    if kind == 0 and path:
        return {"op": "unset_json", "key": key, "path": path}
    if kind == 1:
        text = chance.choice(_REPEATED)
        return {"op": "set_json", "key": key, "path": path, "text": text, "times": _times(chance)}
    if kind == 2:
        number = chance.choice(_NUMBERS) + chance.randrange(-2, 3)
        return {"op": "set_json", "key": key, "path": path, "text": str(number)}
    return {"op": "set_json", "key": key, "path": path, "text": chance.choice(_TEXTS)}


def _table(chance: random.Random) -> Mutation:
    key = _key(chance, "checkpoints")
    row = chance.randrange(100)
    count = chance.choice((0, 1, 2, 3, 2**16, 2**17, 2**20))
    frame = count.to_bytes(4, "little")
    value = chance.choice(_NUMBERS) + chance.randrange(-2, 3)
    column = chance.choice([name for name in COLUMNS if name != "digest"])
    return chance.choice(
        (
            {"op": "set_cell", "key": key, "column": column, "row": row, "value": value},
            {"op": "set_cell", "key": key, "column": column, "row": row, "value": chance.randrange(4096)},
            {"op": "repeat_rows", "key": key, "rows": 1 << chance.randrange(1, 19)},
            {"op": "repeat_rows", "key": key, "rows": 1 << 19, "pad": 1 << chance.randrange(20, 24)},
            {
                "op": "replace_table",
                "key": key,
                "zeros": 1 << chance.randrange(1, 29),
                "sized": chance.random() < 0.5,
                "rows": chance.choice((0, 1, 2**18, 2**20, 2**24)),
            },
            {
                "op": "forge_chunk",
                "key": key,
                "row": row,
                "zeros": 1 << chance.randrange(1, 28),
                "raw": chance.choice((-1, 1 << chance.randrange(1, 32))),
                "sized": chance.random() < 0.5,
            },
            {
                "op": "forge_chunk",
                "key": key,
                "row": row,
                "text": (frame + chance.choice((b"", b"\0", b"\xff\xff\xff\xff"))).decode("latin-1"),
                "times": chance.choice((1, 2, 3, 4096)),
                "grown": chance.choice((0, 0, 1, 4096, 2**24)),
            },
        )
    )


_KINDS: Sequence[Callable[[random.Random], Mutation]] = (_bytes, _objects, _json, _json, _table, _table)


def _times(chance: random.Random) -> int:
    return int(2 ** chance.uniform(0, 21))


def _key(chance: random.Random, *kinds: str) -> str:
    """Return the key of a random object of a random kind."""
    return chance.choice(_kinds()[chance.choice(kinds or sorted(_kinds()))])


@cache
def _kinds() -> Mapping[str, Sequence[str]]:
    """Return the keys of all objects, by the folder that they are in, and of marks."""
    keys = sorted(set(intact()) - set(FOREIGN), key=lambda key: (_kind(key), key))
    return {kind: [*group] for kind, group in itertools.groupby(keys, _kind)}


def _kind(key: str) -> str:
    return "marks" if key.endswith(".mark") else key.partition("/")[0]


@cache
def _paths(key: str) -> Sequence[list[Any]]:
    """Return the path of every value in the JSON part of an object."""
    fields, _ = json_of(key, intact()[key].data)
    return list(_walk(fields, []))


def _walk(value: Any, path: list[Any]) -> Iterator[list[Any]]:
    yield path
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, item in items:
        yield from _walk(item, [*path, name])


def as_text(mutations: Sequence[Mutation], why: str) -> str:
    """Return an input as it is kept in a file."""
    return json.dumps({"why": why, "mutations": mutations}, indent=1) + "\n"
