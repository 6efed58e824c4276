"""Warns about local folders that every user of a machine may write to."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import stat
import threading

_log = logging.getLogger(__name__)

_lock = threading.Lock()
_warned_of: set[str] = set()


def warn_if_anybody_may_write(folder: str) -> None:
    """Warn, once per process and folder, if every user of the machine may write to a folder.

    A sticky bit does not help: it keeps others from removing files, but not from adding some. There is no
    warning about a folder that only its group may write to, because this is how people share a folder.

    Args:
        folder: an absolute path. It need not exist.
    """
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        if mode & stat.S_IWOTH and _is_first_time(folder):
            _log.warning(
                "Every user of this machine may write to %s (mode %o), and could remove or replace "
                "checkpoints. To prevent this: chmod o-w %s",
                folder,
                mode,
                shlex.quote(folder),
            )


def _is_first_time(folder: str) -> bool:
    with _lock:
        if folder in _warned_of:
            return False
        _warned_of.add(folder)
        return True
