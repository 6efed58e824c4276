"""How the short-lived objects are named that test whether a storage works."""

from __future__ import annotations

import re
import uuid

PROBE_PREFIX = "probe/"
"""Prefix of all of them. They hold no checkpoint data."""

_PROBE_KEY = re.compile(r"probe/[0-9a-f]{32}")


def new_probe_key() -> str:
    """Return a key that no other object has."""
    return f"{PROBE_PREFIX}{uuid.uuid4().hex}"


def is_probe_key(key: str) -> bool:
    """Return whether `new_probe_key` could have returned a key.

    Example:
        >>> is_probe_key(new_probe_key()), is_probe_key("probe/weights.npy")
        (True, False)
    """
    return _PROBE_KEY.fullmatch(key) is not None
