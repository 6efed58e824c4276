"""Servers that hang, stall and trickle, and the test that every backend ends in time on each of them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from input_checkpoint import Backend, BackendUnavailableError, open_backend

LIMITS = {"timeout": 0.5, "min_bytes_per_second": 32 << 20}
"""storage_options for a test: one second for `UPLOAD`."""
UPLOAD = bytes(16 << 20)
"""More than the buffers of both sockets hold."""
_ENDED_BEFORE = 30.0
_BYTE_SECONDS = 0.2
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000000\r\n"
    b"Content-Range: bytes 0-999999/1000000\r\n\r\n"
)

_ROOT = Path(__file__).parents[2]
_REQUESTS = """
import json, signal, sys, threading, time
from input_checkpoint import open_backend

# A shell starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
uri, options, what_next = sys.argv[1:]
backend = open_backend(uri, json.loads(options))
threading.Thread(target=backend.put, args=("stored", bytes(16 << 20)), daemon=True).start()
threading.Thread(target=backend.get, args=("key",), daemon=True).start()
time.sleep(0.5)
print("sending", flush=True)
if what_next == "wait":
    backend.get("key")
"""
"""A program that sends requests in threads, and then ends or waits for another request."""

Place = tuple[str, Mapping[str, Any]]
"""A URI and storage_options."""
PlaceAt = Callable[[int], Place]
"""Returns the place of a backend, given the port of its server."""
Handle = Callable[[socket.socket], None]
"""What a server does with one connection."""


def never_answers(connection: socket.socket) -> None:
    """Read everything, and say nothing."""
    while connection.recv(1 << 16):
        pass


def stops_reading(connection: socket.socket) -> None:
    """Read the beginning of the request only."""
    connection.recv(2000)
    time.sleep(3600)


def answers_byte_by_byte(connection: socket.socket) -> None:
    """Send an answer that never ends, head and body, a byte at a time."""
    _receive_in_background(connection)
    for byte in _HEAD + bytes(1_000_000):
        connection.sendall(bytes([byte]))
        time.sleep(_BYTE_SECONDS)


def sends_the_body_byte_by_byte(connection: socket.socket) -> None:
    """Send the head at once, and the body a byte at a time."""
    _receive_in_background(connection)
    connection.sendall(_HEAD)
    for _ in range(1_000_000):
        connection.sendall(b"x")
        time.sleep(_BYTE_SECONDS)


def stalls_after_the_head(connection: socket.socket) -> None:
    """Send the head, and nothing else."""
    _receive_in_background(connection)
    connection.sendall(_HEAD)
    time.sleep(3600)


def closes_in_the_middle(connection: socket.socket) -> None:
    """Send a part of the body, and close the connection."""
    connection.recv(1 << 16)
    connection.sendall(_HEAD + bytes(500_000))


WITHOUT_AN_ANSWER: Mapping[str, Handle] = {
    function.__name__: function for function in (never_answers, stops_reading)
}
WITH_A_PART_OF_AN_ANSWER: Mapping[str, Handle] = {
    function.__name__: function
    for function in (
        answers_byte_by_byte,
        sends_the_body_byte_by_byte,
        stalls_after_the_head,
        closes_in_the_middle,
    )
}


@contextlib.contextmanager
def misbehaving(handle: Handle) -> Iterator[int]:
    """Run a server that does the same with every connection; yield its port."""
    with socket.socket() as listener, contextlib.ExitStack() as connections:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)

        def serve(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                handle(connection)
            connection.close()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    connections.callback(_shut_down, connection)
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        _shut_down(listener)


@contextlib.contextmanager
def never_accepting() -> Iterator[int]:
    """Run a server whose queue of connections is full, so that no other one opens; yield its port."""
    with contextlib.ExitStack() as cleanup:
        listener = cleanup.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = cleanup.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


class EndsInTime:
    """Every operation ends with `BackendUnavailableError`, whatever the server does.

    A subclass has a fixture ``place_at``, which returns a function from a port to a URI and storage_options.
    """

    writes: Mapping[str, Callable[[Backend], object]] = {
        "create": lambda backend: backend.create("created", UPLOAD),
        "put": lambda backend: backend.put("stored", UPLOAD),
        "delete": lambda backend: backend.delete(["stored"]),
    }
    reads: Mapping[str, Callable[[Backend], object]] = {
        "get": lambda backend: backend.get("key"),
        "get of a range": lambda backend: backend.get("key", 5, 100_000),
        "list": lambda backend: list(backend.list()),
    }

    @pytest.fixture
    def shared_options(self) -> Mapping[str, Any]:
        """More storage_options, with what clients in this process share. By default they share nothing."""
        return {}

    @pytest.mark.parametrize("behavior", WITHOUT_AN_ANSWER)
    def test_without_an_answer(
        self, place_at: PlaceAt, shared_options: Mapping[str, Any], behavior: str
    ) -> None:
        with misbehaving(WITHOUT_AN_ANSWER[behavior]) as port:
            self.check_ends(place_at(port), shared_options, {**self.writes, **self.reads})

    def test_without_a_connection(self, place_at: PlaceAt, shared_options: Mapping[str, Any]) -> None:
        with never_accepting() as port:
            self.check_ends(place_at(port), shared_options, {**self.writes, **self.reads})

    @pytest.mark.parametrize("behavior", WITH_A_PART_OF_AN_ANSWER)
    def test_with_a_part_of_an_answer(
        self, place_at: PlaceAt, shared_options: Mapping[str, Any], behavior: str
    ) -> None:
        with misbehaving(WITH_A_PART_OF_AN_ANSWER[behavior]) as port:
            self.check_ends(place_at(port), shared_options, self.reads)

    @pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
    def test_the_process_ends_during_requests(
        self, place_at: PlaceAt, number: Optional[signal.Signals]
    ) -> None:
        with misbehaving(stops_reading) as port:
            uri, options = place_at(port)
            patient = json.dumps({**options, "timeout": 3600})
            command = [sys.executable, "-c", _REQUESTS, uri, patient, "return" if number is None else "wait"]
            with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
                try:
                    assert process.stdout is not None
                    assert process.stdout.readline() == "sending\n"
                    if number is not None:
                        process.send_signal(number)
                    process.communicate(timeout=_ENDED_BEFORE)
                finally:
                    process.kill()
        assert process.returncode in ((0,) if number is None else (1, -number))

    def check_ends(
        self,
        place: Place,
        shared_options: Mapping[str, Any],
        operations: Mapping[str, Callable[[Backend], object]],
    ) -> None:
        """Run all operations at the same time."""
        uri, options = place
        limited = (uri, {**options, **shared_options, **LIMITS})
        started = time.monotonic()
        with ThreadPoolExecutor(len(operations)) as threads:
            outcomes = {
                name: threads.submit(_outcome, limited, operation) for name, operation in operations.items()
            }
        found = {name: outcome.result() for name, outcome in outcomes.items()}
        assert {name: type(error) for name, error in found.items()} == dict.fromkeys(
            operations, BackendUnavailableError
        ), found
        assert time.monotonic() - started < _ENDED_BEFORE


def _outcome(place: Place, operation: Callable[[Backend], object]) -> object:
    uri, options = place
    try:
        return operation(open_backend(uri, options))
    except Exception as error:
        return error


def _receive_in_background(connection: socket.socket) -> None:
    def receive() -> None:
        with contextlib.suppress(OSError):
            never_answers(connection)

    threading.Thread(target=receive, daemon=True).start()


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
