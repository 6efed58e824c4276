"""What every server of the integration suite can do."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import psutil

_SECONDS_TO_START = 60


class MissingServerError(Exception):
    """A server's program is not installed. The message says how to install it."""


@dataclass(frozen=True)
class Place:
    """Somewhere to keep a store, as a user would write it down."""

    uri: str
    storage_options: dict[str, Any] = field(default_factory=dict)


class Server(abc.ABC):
    """A real storage server, on loopback, with its data in one folder.

    Args:
        folder: the server's own; survives `kill` and the next `start`.
    """

    name: str
    """As `INTEGRATION` spells it."""
    durable = True
    """Whether what was stored is still there after `kill` and `start`."""
    two_engines = False
    """Whether its plugin has a second engine, obstore."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()

    @abc.abstractmethod
    def start(self) -> None:
        """Start it, or start it again on the same port and data. Returns once it answers.

        Raises:
            MissingServerError: its program is not installed.
        """

    @abc.abstractmethod
    def kill(self) -> None:
        """End it at once, by SIGKILL, in the middle of whatever it does."""

    def settle(self) -> None:  # noqa: B027 - a production server has nothing to wait for
        """Wait until what it has acknowledged survives a `kill`: at once, but for some emulators."""

    def stop(self) -> None:
        """End everything that belongs to it, for good."""
        self.kill()

    @abc.abstractmethod
    def place(self, name: str) -> Place:
        """Return an empty place of that name."""

    @abc.abstractmethod
    def version(self) -> str:
        """Return the server's name and version."""

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """Run it for the length of a block."""
        try:
            self.start()
            yield self
        finally:
            self.stop()


class Process:
    """A server's process, in a group of its own, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until the server answers; raises RuntimeError with its last words if it does not."""
        until = time.monotonic() + _SECONDS_TO_START
        while not ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                words = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._process.args!r} did not start: {words}")
            time.sleep(0.05)

    def descendants(self) -> list[psutil.Process]:
        """Return its children and theirs, also those that have left its group."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def kill(self) -> None:
        """End the process and its group by SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
