"""Clean-up behind the saves: never in their way, and never two at once."""

from __future__ import annotations

import threading
from typing import Callable, Optional


class BackgroundPrune:
    """Runs ``prune`` in a thread of its own whenever it is asked to.

    Asked while it runs, it runs once more afterwards, however often it was asked.

    Args:
        prune: what to do. Must not raise.
    """

    def __init__(self, prune: Callable[[], None]) -> None:
        self._prune = prune
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._asked = False

    def request(self) -> None:
        """Let a prune begin that sees everything stored until now. Returns at once."""
        with self._lock:
            self._asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="input-checkpoint-prune")
                self._thread.start()

    def wait(self) -> None:
        """Wait until every prune that was asked for is done."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while self._has_work():
            self._prune()

    def _has_work(self) -> bool:
        with self._lock:
            asked, self._asked = self._asked, False
            if not asked:
                self._thread = None
            return asked
