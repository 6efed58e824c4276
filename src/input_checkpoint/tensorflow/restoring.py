"""Tells the runs with which this library restores the input from those of others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_thread = threading.local()


@contextlib.contextmanager
def restoring() -> Iterator[None]:
    """Within this context, the runs of this thread restore the input: no `DrawWatch` notes them.

    They are known to all watches, because several hooks may watch one session.
    """
    before = is_restoring()
    _thread.is_restoring = True
    try:
        yield
    finally:
        _thread.is_restoring = before


def is_restoring() -> bool:
    """Whether this thread is within `restoring`."""
    return bool(getattr(_thread, "is_restoring", False))
