"""Lets training go first when all processors are busy."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 19
"""The lowest priority. A thread of it still gets all the time that the others do not use: when training waits
for a save, the save runs at full speed."""


def lower_priority() -> None:
    """Give the calling thread, and all threads that it starts, the lowest priority. It cannot be undone.

    Only Linux has priorities of single threads: https://man7.org/linux/man-pages/man2/setpriority.2.html, "C
    library/kernel differences". Elsewhere this does nothing.
    """
    if sys.platform == "linux":
        # A sandbox may forbid it.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
