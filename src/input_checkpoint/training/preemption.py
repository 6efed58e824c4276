"""Whether the machine is about to go, and how much time is left."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Callable, Optional

from input_checkpoint.training.termination_signal import TerminationSignal

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports for a process that SIGTERM has ended."""

_POLL_SECONDS = 1.0
_REPORT_SECONDS = 2.0
"""How long the last message may take, before the process ends without it."""

logger = logging.getLogger(__name__)


class Preemption:
    """Knows whether training must stop, because of SIGTERM or because a function says so.

    If `end` has not been called ``grace_seconds`` later, the process ends at once with `EXIT_CODE`, whatever
    its other threads wait for.

    Args:
        grace_seconds: how long the process may still run.
        watcher: returns True when the machine is about to go. Called once a second in a thread of its own.
        describe: returns what is stored, for the message of a process that ends too early.

    Example:
        ```python
        preemption = Preemption(grace_seconds=20)
        preemption.begin()
        while not preemption.requested:
            train_one_step()
        save()
        preemption.end()
        ```
    """

    def __init__(
        self,
        grace_seconds: float,
        watcher: Optional[Callable[[], bool]] = None,
        describe: Callable[[], str] = str,
    ) -> None:
        self._grace = grace_seconds
        self._watcher = watcher
        self._describe = describe
        self._requested = threading.Event()
        self._lock = threading.Lock()
        self._reason = ""
        self._deadline = 0.0
        self._over: Optional[threading.Event] = None
        """Set by `end`. None: `begin` comes first."""
        self._signal: Optional[TerminationSignal] = None

    @property
    def requested(self) -> bool:
        """Whether training must stop."""
        return self._requested.is_set()

    @property
    def reason(self) -> str:
        """What has requested it, for messages."""
        return self._reason

    @property
    def deadline(self) -> float:
        """When the process ends, on the clock of ``time.monotonic``, if it is `requested`."""
        return self._deadline

    @property
    def waited(self) -> float:
        """The seconds since it was requested."""
        return self._grace - (self._deadline - time.monotonic())

    @property
    def exit_error(self) -> BaseException:
        """The error that ends the process: the one of the program's own SIGTERM handler, if it raised one."""
        held = None if self._signal is None else self._signal.held_error
        return held or SystemExit(EXIT_CODE)

    def begin(self) -> None:
        """Begin to watch. Does nothing if it has begun already."""
        if self._over is not None:
            return
        self._over = over = threading.Event()
        if threading.current_thread() is threading.main_thread():
            self._signal = TerminationSignal(lambda: self._request("SIGTERM", over))
        else:
            self._warn_of_thread()
        if self._watcher is not None:
            watch = threading.Thread(
                target=self._watch,
                args=(self._watcher, over),
                name="input-checkpoint-termination",
                daemon=True,
            )
            watch.start()

    def end(self) -> None:
        """Stop watching, and restore the previous signal handler. `begin` may be called again."""
        if self._over is None:
            return
        with self._lock:
            self._over.set()
            self._over = None
            self._requested.clear()
        if self._signal is not None:
            self._signal.release()
            self._signal = None

    def _request(self, reason: str, over: threading.Event) -> None:
        with self._lock:
            if over.is_set() or self._requested.is_set():
                return
            self._reason = reason
            self._deadline = time.monotonic() + self._grace
            self._requested.set()
        threading.Thread(
            target=self._enforce, args=(over,), name="input-checkpoint-deadline", daemon=True
        ).start()
        logger.warning(
            "%s: training stops after this step. The input and the model have %g s to be stored.",
            reason,
            self._grace,
        )

    def _enforce(self, over: threading.Event) -> None:
        """End the process at the deadline, unless training is over before."""
        if over.wait(max(0.0, self._deadline - time.monotonic())):
            return
        # The storage, or the file of the log, may hang.
        report = threading.Thread(target=self._report, name="input-checkpoint-report", daemon=True)
        report.start()
        report.join(_REPORT_SECONDS)
        os._exit(EXIT_CODE)

    def _report(self) -> None:
        try:
            stored = self._describe()
        except Exception as error:
            stored = f"What is stored cannot be read: {error}"
        logger.error(
            "The process ends now, %g s after %s, before everything is stored. %s",
            self._grace,
            self._reason,
            stored,
        )
        logging.shutdown()

    def _watch(self, watcher: Callable[[], bool], over: threading.Event) -> None:
        complaint = ""
        while not over.wait(_POLL_SECONDS):
            try:
                is_ending = watcher()
            except Exception as error:
                if str(error) != complaint:
                    complaint = str(error)
                    logger.warning(
                        "termination_watcher_fn failed, and is called again every %g s: %r",
                        _POLL_SECONDS,
                        error,
                    )
                continue
            if is_ending:
                self._request("termination_watcher_fn", over)
                return

    def _warn_of_thread(self) -> None:
        logger.warning(
            "save_on_preemption: SIGTERM cannot be caught in thread %r, and ends the process without a save. "
            "Train in the main thread%s.",
            threading.current_thread().name,
            "" if self._watcher is not None else ", or pass termination_watcher_fn",
        )
