"""Whether a session trains the model of a model directory, or another one."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Optional

import tensorflow as tf

_SECOND = 10**9


@dataclass(frozen=True)
class StateStamp:
    """What changes whenever the ``checkpoint`` file of a model directory is written."""

    mtime_nsec: int
    length: int
    inode: int = 0
    """Of a local file. TensorFlow replaces the file, so each one has another number; 0 if it has none."""

    @property
    def is_exact(self) -> bool:
        """Whether the stamps of two writes in quick succession differ."""
        return self.inode != 0 or self.mtime_nsec % _SECOND != 0


def read_stamp(model_dir: str) -> Optional[StateStamp]:
    """Return the stamp of the ``checkpoint`` file, or None if there is none."""
    path = f"{model_dir.rstrip('/')}/checkpoint"
    try:
        if "://" not in path:
            local = os.stat(path)  # TensorFlow returns whole seconds
            return StateStamp(local.st_mtime_ns, local.st_size, local.st_ino)
        remote = tf.io.gfile.stat(path)
        return StateStamp(int(remote.mtime_nsec), int(remote.length))
    except (FileNotFoundError, NotADirectoryError, tf.errors.NotFoundError):
        return None


def is_session_model(
    before: Optional[StateStamp],
    after: Optional[StateStamp],
    latest: Optional[int],
    steps: Collection[int],
    saves_first: bool,
) -> bool:
    """Whether the model in a model directory can be the one that a session has restored.

    Args:
        before: the stamp of its ``checkpoint`` file before the session was created.
        after: the stamp now that the session is about to be run for the first time.
        latest: step of the model checkpoint that is current there now, or None if there is none.
        steps: the global steps of the session up to now.
        saves_first: whether the session saves its model as soon as it is created.

    >>> is_session_model(None, None, None, {0}, saves_first=False)
    True
    >>> is_session_model(None, None, None, {0}, saves_first=True)
    False
    >>> then = StateStamp(1_700_000_000_123_456_789, length=80)
    >>> is_session_model(then, then, 20, {0}, saves_first=False)
    False
    """
    if before != after:
        return True  # the session has saved its model there
    if saves_first and (after is None or after.is_exact):
        return False
    return latest is None or latest in steps
