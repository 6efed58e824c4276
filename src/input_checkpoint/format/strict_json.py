"""Reads the JSON parts of the format strictly, in bounded time and memory. Anybody may have written them.

Refused are, among others: what is not UTF-8, numbers beyond 64 bits, ``NaN`` and ``Infinity``, repeated names
in an object, lone surrogates, and deep nesting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Optional

from input_checkpoint.format.limits import MAX_DEPTH, MAX_NUMBER

_MAX_NUMBER_CHARACTERS = 32


def parse_object(data: bytes) -> Mapping[str, Any]:
    """Return the JSON object in ``data``.

    Example:
        >>> parse_object(b'{"step": 5}')
        {'step': 5}

    Raises:
        ValueError, RecursionError: ``data`` is not a JSON object as the format allows it.
    """
    # json.loads would guess the encoding of bytes.
    text = data.decode("utf-8")
    found = json.loads(
        text,
        parse_int=_parse_int,
        parse_float=_parse_float,
        parse_constant=_refuse_constant,
        object_pairs_hook=_unique,
    )
    if not isinstance(found, dict):
        raise ValueError("it is not an object")
    _check_depth(found, MAX_DEPTH)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # raises if a surrogate stands alone
    return found


def read_text(fields: Mapping[str, Any], name: str) -> str:
    """Return a field that must be a string."""
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a string")
    return value


def read_number(fields: Mapping[str, Any], name: str) -> int:
    """Return a field that must be an integer from 0 to 2**63 - 1.

    Example:
        >>> read_number({"version": True}, "version")
        Traceback (most recent call last):
        ...
        TypeError: version is not an integer
    """
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is not an integer")
    if not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"{name} is out of range")
    return value


def read_flag(fields: Mapping[str, Any], name: str) -> bool:
    """Return a field that must be true or false."""
    value = fields[name]
    if not isinstance(value, bool):
        raise TypeError(f"{name} is neither true nor false")
    return value


def read_object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a field that must be an object."""
    value = fields[name]
    if not isinstance(value, dict):
        raise TypeError(f"{name} is not an object")
    return value


def read_objects(fields: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """Return a field that must be a list of objects."""
    value = fields[name]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError(f"{name} is not a list of objects")
    return value


def read_optional_number(fields: Mapping[str, Any], name: str) -> Optional[int]:
    """Return a field that may be missing or null, and otherwise must be an integer from 0 to 2**63 - 1."""
    return None if fields.get(name) is None else read_number(fields, name)


def read_optional_text(fields: Mapping[str, Any], name: str) -> Optional[str]:
    """Return a field that may be missing or null, and otherwise must be a string."""
    return None if fields.get(name) is None else read_text(fields, name)


def _parse_int(text: str) -> int:
    # Python before 3.11 takes minutes to convert a million digits.
    if len(text) > _MAX_NUMBER_CHARACTERS or not -MAX_NUMBER - 1 <= int(text) <= MAX_NUMBER:
        raise ValueError(f"{text[:_MAX_NUMBER_CHARACTERS]} does not fit into 64 bits")
    return int(text)


def _parse_float(text: str) -> float:
    number = float(text) if len(text) <= _MAX_NUMBER_CHARACTERS else float("inf")
    if abs(number) == float("inf"):
        raise ValueError(f"{text[:_MAX_NUMBER_CHARACTERS]} is too long or too large")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _check_depth(value: Any, levels: int) -> None:
    if not levels:
        raise ValueError("it is nested too deeply")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)):
            _check_depth(item, levels - 1)
