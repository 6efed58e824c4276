"""SIGTERM, noticed at once, even while the main thread is inside a long call of a C library."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import Any, Callable, Optional

_NOTE = 255
"""A byte that is the number of no signal: our own handler has run."""


class TerminationSignal:
    """Calls a function at each SIGTERM, until it is released.

    A handler that the program has set before is called too. If it raises, for example SystemExit, the error
    is held back in `held_error`. A wakeup descriptor that the program has set still gets every signal.

    Args:
        notify: called in another thread, perhaps more than once for one signal.

    Raises:
        ValueError: this is not the main thread.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        global _handler
        self._notify = notify
        if _handler is None:
            _handler = _Handler()
        self._handler = _handler
        self._handler.listeners.append(notify)

    @property
    def held_error(self) -> Optional[BaseException]:
        """The first error that the program's own handler has raised."""
        return self._handler.held_error

    def release(self) -> None:
        """Call the function no more. The last release restores the previous handler and descriptor."""
        global _handler
        if self._handler is not _handler:
            return  # in a forked process
        self._handler.listeners.remove(self._notify)
        # Only the main thread can restore a handler. Without listeners, the handler restores it itself.
        if not self._handler.listeners and threading.current_thread() is threading.main_thread():
            _handler = None
            self._handler.restore()


class _Handler:
    """The handler of SIGTERM, shared by all who listen.

    Python calls a handler only when the main thread runs Python code again. But the number of the signal is
    written to the wakeup descriptor at once, and a thread waits for it there.
    """

    def __init__(self) -> None:
        self.listeners: list[Callable[[], None]] = []
        self.held_error: Optional[BaseException] = None
        previous = signal.signal(signal.SIGTERM, self._handle)
        # None: it was not set by Python, which cannot restore it.
        self._previous = signal.SIG_DFL if previous is None else previous
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._fd = self._writer.fileno()
        self._previous_fd = signal.set_wakeup_fd(self._fd, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="input-checkpoint-sigterm", daemon=True).start()

    def restore(self) -> None:
        """Restore the previous handler and wakeup descriptor, unless others have been set meanwhile."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)
        current = signal.set_wakeup_fd(-1)
        # The previous one may have been closed.
        with contextlib.suppress(OSError, ValueError):
            signal.set_wakeup_fd(self._previous_fd if current == self._fd else current)
        self._writer.close()  # ends the thread

    def _handle(self, number: int, frame: Any) -> None:
        if not self.listeners:
            self._act_as_before(number, frame)
            return
        # Another library may have replaced the wakeup descriptor.
        with contextlib.suppress(OSError):
            self._writer.send(bytes([_NOTE]))
        if callable(self._previous):
            try:
                self._previous(number, frame)
            except BaseException as error:
                self.held_error = self.held_error or error

    def _act_as_before(self, number: int, frame: Any) -> None:
        if callable(self._previous):
            self._previous(number, frame)
        elif self._previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _listen(self) -> None:
        with self._reader:
            while True:
                received = self._reader.recv(64)
                if not received:
                    return
                self._pass_on(bytes(number for number in received if number != _NOTE))
                if _NOTE in received or signal.SIGTERM in received:
                    for notify in tuple(self.listeners):
                        notify()

    def _pass_on(self, numbers: bytes) -> None:
        """Write the numbers of signals where the program expects them."""
        if numbers and self._previous_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._previous_fd, numbers)


_handler: Optional[_Handler] = None


def _restore_in_child() -> None:
    # The descriptor is shared: a SIGTERM that a forked process gets would stop the training of its parent.
    global _handler
    if _handler is not None:
        _handler.listeners.clear()
        _handler.restore()
        _handler = None


os.register_at_fork(after_in_child=_restore_in_child)
