"""A background thread that runs a function whenever it is asked to, one call at a time."""

from __future__ import annotations

import threading
from typing import Callable, Optional


class ThreadOnRequest:
    """Runs a function in its own thread on request.

    Requests that arrive while it runs are answered by a single run afterwards.

    Args:
        work: must not raise.
        name: of the thread.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self._name = name
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._requested = False

    def request(self) -> None:
        """Have the function run once more, from its beginning. Returns at once."""
        with self._lock:
            self._requested = True
            if self._thread is None:
                # What the end of the program interrupts is completed by the next run of the training.
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Wait until every request is answered."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while self._has_work():
            self._work()

    def _has_work(self) -> bool:
        with self._lock:
            requested, self._requested = self._requested, False
            if not requested:
                self._thread = None
            return requested
