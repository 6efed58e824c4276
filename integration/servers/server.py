"""The interface of the servers in the integration suite."""

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

_START_TIMEOUT = 60


class MissingServerError(Exception):
    """The program of a server is not installed. The message says how to install it."""


@dataclass(frozen=True)
class Place:
    """A location for a store: what a user would pass to `open_backend`."""

    uri: str
    storage_options: dict[str, Any] = field(default_factory=dict)


class Server(abc.ABC):
    """A storage server on loopback, with its data in one folder.

    Args:
        folder: the folder of this server. It survives `kill` and the next `start`.
    """

    name: str
    """The name in the environment variable `INTEGRATION`."""
    durable = True
    """Whether the data survives `kill` and `start`."""
    two_engines = False
    """Whether the plugin for it has obstore as a second engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()

    @abc.abstractmethod
    def start(self) -> None:
        """Start or restart the server on its port and data. Return once it responds.

        Raises:
            MissingServerError: the program of the server is not installed.
        """

    @abc.abstractmethod
    def kill(self) -> None:
        """Kill the server with SIGKILL, whatever it is doing."""

    def wait_until_durable(self) -> None:  # noqa: B027 - true at once for production servers
        """Wait until everything that the server acknowledged survives `kill`. Some emulators need time."""

    def stop(self) -> None:
        """Stop all processes of the server."""
        self.kill()

    @abc.abstractmethod
    def place(self, name: str) -> Place:
        """Return the empty location with this name."""

    @abc.abstractmethod
    def version(self) -> str:
        """Return the name and version of the server."""

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend its processes for the duration of a ``with`` block, as on a machine that hangs."""
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """Run the server for the duration of a ``with`` block."""
        try:
            self.start()
            yield self
        finally:
            self.stop()


class Process:
    """A process of a server, in its own process group, with its output in a file."""

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
        """Wait until the server responds. Raise RuntimeError with the end of its log if it does not."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._process.args!r} did not start: {tail}")
            time.sleep(0.05)

    def descendants(self) -> list[psutil.Process]:
        """Return all descendants, including those that left the process group."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def kill(self) -> None:
        """Kill the process and its group with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    """Return an unused loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return whether something accepts connections on this loopback port."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
