"""Lets training go first when all processors are busy."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

_NICE = 10
"""A thread of this priority gets all the time that nobody else uses. When training waits for a save, the save
runs at full speed. If other processes use all processors too, it gets a tenth of the time of one of theirs,
and with the lowest priority, which is 19, it would get a seventieth: kernel/sched/core.c,
``sched_prio_to_weight``."""


def lower_priority() -> None:
    """Give the calling thread, and all threads that it starts, a low priority. It cannot be undone.

    Only Linux has priorities of single threads: https://man7.org/linux/man-pages/man2/setpriority.2.html, "C
    library/kernel differences". Elsewhere this does nothing.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    # A sandbox may forbid it.
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, thread) < _NICE:
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)
