"""Small records: JSON with the checksum of its content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.strict_json import parse_object, read_object


def encode_record(name: str, fields: Mapping[str, Any]) -> bytes:
    """Return the stored form of a record.

    Args:
        name: what the fields are called in it.
        fields: what it holds, as `json.dumps` accepts it.

    Example:
        >>> decode_record(encode_record("mark", {"step": 20}), "mark", what="a mark")
        {'step': 20}
    """
    return json.dumps({name: fields, "digest": _digest(fields)}, indent=1).encode()


def decode_record(data: bytes, name: str, what: str) -> Mapping[str, Any]:
    """Return the fields of a record.

    Args:
        data: from `encode_record`.
        name: what the fields are called in it.
        what: names the record in an error.

    Raises:
        CorruptCheckpointError: it fails its checksum.
        KeyError, TypeError, ValueError: it is no such record. All of `errors.UNREADABLE_JSON` are possible.
    """
    record = parse_object(data)
    fields = read_object(record, name)
    if _digest(fields) != record["digest"]:
        raise CorruptCheckpointError(f"{what} fails its checksum")
    return fields


def _digest(fields: Mapping[str, Any]) -> str:
    return digest(json.dumps(fields, sort_keys=True).encode()).hex()
