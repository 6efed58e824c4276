"""The most memory that this process has used, as Linux counts it. Elsewhere it is not known."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Callable

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_of(work: Callable[[], object]) -> int:
    """Return how many bytes of memory ``work`` needs at once; 0 where that is not known."""
    if not _RESET.exists():
        work()
        return 0
    _RESET.write_text("5")
    before = _read("VmRSS")
    work()
    return max(0, _read("VmHWM") - before)


def limit_memory(more: int) -> None:
    """Let this process fail to allocate more than this many bytes beyond what it uses now."""
    if sys.platform == "linux":
        limit = _read("VmSize") + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _read(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0
