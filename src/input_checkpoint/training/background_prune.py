"""The background thread that prunes: never in the way of a save, and one prune at a time."""

from __future__ import annotations

import threading
from typing import Callable, Optional


class BackgroundPrune:
    """Runs ``prune`` in its own thread on request.

    Requests that arrive while it runs are answered by a single run afterwards.

    Args:
        prune: must not raise.
    """

    def __init__(self, prune: Callable[[], None]) -> None:
        self._prune = prune
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._requested = False

    def request(self) -> None:
        """Start a prune that sees everything stored so far. Returns at once."""
        with self._lock:
            self._requested = True
            if self._thread is None:
                # A prune that the end of the program interrupts is completed by the next one.
                self._thread = threading.Thread(target=self._run, name="input-checkpoint-prune", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Wait until every requested prune is done."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while self._has_work():
            self._prune()

    def _has_work(self) -> bool:
        with self._lock:
            requested, self._requested = self._requested, False
            if not requested:
                self._thread = None
            return requested
