"""Temporary files: their names, and which ones a crashed writer has left behind."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence

STALE_AFTER_SECONDS = 24 * 3600
"""No write takes as long as this."""

_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.aside")


def new_temporary_name() -> str:
    """Return a file name that no other file has. It starts with a dot, so it is not part of a key.

    The name of the object is not part of it, because it may be as long as the file system allows.
    """
    return f".{uuid.uuid4().hex}.aside"


def is_temporary(name: str) -> bool:
    """Return whether `new_temporary_name` could have returned a file name.

    Example:
        >>> is_temporary(new_temporary_name()), is_temporary(".aside")
        (True, False)
    """
    return _TEMPORARY_NAME.fullmatch(name) is not None


def stale_files(times: Mapping[str, float], newest: float, now: float) -> list[str]:
    """Return the temporary files that are too old to be still in use.

    Args:
        times: path of each temporary file, with the time of its last write by the clock of the storage.
        newest: the latest such time of any file. If our clock is ahead, ages are measured from this time: a
            file that is being written is never a day older than the newest one.
        now: the time by our clock.

    Example:
        >>> stale_files({"a": 1000.0, "b": 90000.0}, newest=90000.0, now=1e9)
        ['a']
    """
    reference = min(newest, now)
    return [path for path, then in times.items() if reference - then > STALE_AFTER_SECONDS]


class FolderPatterns:
    """Which folders to search for temporary files, see `Backend.remove_leftovers`.

    Example:
        >>> folders = FolderPatterns(["packs/main/[0-9]+"])
        >>> folders.lead_to("packs/main"), folders.include("packs/main"), folders.include("packs/main/7")
        (True, False, True)
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._paths = [[re.compile(part) for part in folder.split("/") if part] for folder in folders]

    def include(self, folder: str) -> bool:
        """Return whether a folder is one of them."""
        names = _names(folder)
        return any(len(path) == len(names) and _match(path, names) for path in self._paths)

    def lead_to(self, folder: str) -> bool:
        """Return whether a folder is one of them or above one of them."""
        names = _names(folder)
        return any(len(path) >= len(names) and _match(path, names) for path in self._paths)


def _names(folder: str) -> list[str]:
    return [name for name in folder.split("/") if name]


def _match(path: Sequence[re.Pattern[str]], names: Sequence[str]) -> bool:
    return all(pattern.fullmatch(name) for pattern, name in zip(path, names))
