"""A preemption is noticed at once, leaves the program's own handlers alone, and ends the process in time."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from input_checkpoint.training import preemption as module
from input_checkpoint.training.preemption import EXIT_CODE, Preemption
from tests.support.hooked_training import wait_until

ROOT = Path(__file__).parents[2]
HEADER = """
import hashlib, logging, os, signal, sys, threading, time
from input_checkpoint.training.preemption import Preemption
logging.basicConfig(stream=sys.stdout, format="%(message)s")
"""


@contextmanager
def child(program: str) -> Iterator[subprocess.Popen[str]]:
    """Start a program, and wait until it prints that it is ready."""
    command = [sys.executable, "-c", HEADER + program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _no_late_messages() -> Iterator[None]:
    """Keep the messages of one test out of the log of the next: a thread writes them after the request."""
    yield
    wait_until(lambda: all(thread.name != "input-checkpoint-sigterm" for thread in threading.enumerate()))


@pytest.fixture
def preemption() -> Iterator[Preemption]:
    watched = Preemption(grace_seconds=60)
    watched.begin()
    yield watched
    watched.end()


@pytest.fixture
def own_handler() -> Iterator[list[int]]:
    """The numbers of the signals that a handler of the program has got."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    """Send SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_requests_a_stop_within_the_time_of_grace(preemption: Preemption) -> None:
    assert not preemption.requested
    terminate()
    wait_until(lambda: preemption.requested)
    assert preemption.reason == "SIGTERM"
    assert 50 < preemption.deadline - time.monotonic() <= 60
    assert 0 <= preemption.waited < 10


def test_more_signals_change_nothing(preemption: Preemption, caplog: pytest.LogCaptureFixture) -> None:
    terminate()
    wait_until(lambda: preemption.requested)
    deadline = preemption.deadline
    terminate()
    terminate()
    time.sleep(0.2)
    assert preemption.deadline == deadline
    assert caplog.text.count("training stops after this step") == 1


def test_sigterm_is_noticed_while_the_main_thread_is_in_a_long_call_of_a_c_library() -> None:
    program = """
preemption = Preemption(grace_seconds=60)
preemption.begin()
print("ready", flush=True)
started = time.monotonic()
hashlib.pbkdf2_hmac("sha256", b"", b"", 5_000_000)
seconds = time.monotonic() - started
print(preemption.requested, preemption.waited / seconds)
"""
    with child(program) as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    requested, share = printed.splitlines()[-1].split()
    assert requested == "True"
    assert float(share) > 0.3


def test_the_handler_of_the_program_is_called_and_put_back(own_handler: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    preemption = Preemption(grace_seconds=60)
    preemption.begin()
    terminate()
    wait_until(lambda: preemption.requested)
    assert own_handler == [signal.SIGTERM]
    preemption.end()
    assert signal.getsignal(signal.SIGTERM) is before
    terminate()
    wait_until(lambda: len(own_handler) == 2)


def test_a_handler_that_ends_the_program_does_so_after_the_save() -> None:
    program = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
preemption = Preemption(grace_seconds=60)
preemption.begin()
print("ready", flush=True)
while not preemption.requested:
    time.sleep(0.01)
print("saved", flush=True)
raise preemption.exit_error
"""
    with child(program) as process:
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert "saved" in printed
    assert process.returncode == 7


def test_without_a_handler_of_the_program_the_exit_code_is_that_of_sigterm(preemption: Preemption) -> None:
    terminate()
    wait_until(lambda: preemption.requested)
    error = preemption.exit_error
    assert isinstance(error, SystemExit)
    assert error.code == EXIT_CODE == 143


def test_a_handler_that_was_set_meanwhile_stays(own_handler: list[int]) -> None:
    preemption = Preemption(grace_seconds=60)
    preemption.begin()
    later: list[int] = []

    def mine(number: int, frame: object) -> None:
        later.append(number)

    signal.signal(signal.SIGTERM, mine)
    preemption.end()
    assert signal.getsignal(signal.SIGTERM) is mine


def test_a_wakeup_descriptor_of_the_program_gets_every_signal_and_is_put_back() -> None:
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(10)
    previous = signal.set_wakeup_fd(writer.fileno())
    usr1 = signal.signal(signal.SIGUSR1, lambda *_: None)
    preemption = Preemption(grace_seconds=60)
    try:
        preemption.begin()
        signal.raise_signal(signal.SIGUSR1)
        assert reader.recv(1) == bytes([signal.SIGUSR1])
        assert not preemption.requested
        terminate()
        assert reader.recv(1) == bytes([signal.SIGTERM])
        preemption.end()
        signal.raise_signal(signal.SIGUSR1)
        assert reader.recv(1) == bytes([signal.SIGUSR1])
    finally:
        preemption.end()
        assert signal.set_wakeup_fd(previous) == writer.fileno()
        signal.signal(signal.SIGUSR1, usr1)
        reader.close()
        writer.close()


def test_sigterm_is_noticed_although_another_library_has_replaced_the_wakeup_descriptor(
    preemption: Preemption,
) -> None:
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    ours = signal.set_wakeup_fd(writer.fileno())
    try:
        terminate()
        wait_until(lambda: preemption.requested)
    finally:
        signal.set_wakeup_fd(ours)
        reader.close()
        writer.close()


def test_the_threads_end_and_no_descriptor_stays_open() -> None:
    def sockets() -> set[str]:
        return {link for link in map(read_link, os.listdir("/proc/self/fd")) if link.startswith("socket:")}

    def read_link(fd: str) -> str:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{fd}")
        return ""

    def threads() -> set[str]:
        names = ("input-checkpoint-sigterm", "input-checkpoint-termination", "input-checkpoint-deadline")
        return {thread.name for thread in threading.enumerate() if thread.name in names}

    before = sockets()
    for _ in range(3):
        preemption = Preemption(grace_seconds=60, watcher=lambda: False)
        preemption.begin()
        terminate()
        wait_until(lambda: preemption.requested)  # noqa: B023 - called now
        preemption.end()
    # Other tests may have left other threads and descriptors, which end meanwhile.
    wait_until(lambda: sockets() <= before and not threads())


def test_sigterm_to_a_forked_process_ends_it_and_does_not_stop_its_parent(preemption: Preemption) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    time.sleep(0.2)
    assert not preemption.requested


@pytest.mark.parametrize("first", [0, 1])
def test_two_trainings_at_once_are_both_stopped(first: int, own_handler: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    both = [Preemption(grace_seconds=60), Preemption(grace_seconds=60)]
    for each in both:
        each.begin()
    terminate()
    wait_until(lambda: all(each.requested for each in both))
    both[first].end()
    assert signal.getsignal(signal.SIGTERM) is not before
    both[1 - first].end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_ends_in_another_thread_leaves_sigterm_its_usual_effect() -> None:
    program = """
preemption = Preemption(grace_seconds=60)
preemption.begin()
ending = threading.Thread(target=preemption.end)
ending.start()
ending.join()
print("ready", flush=True)
time.sleep(60)
"""
    with child(program) as process:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    assert process.returncode == -signal.SIGTERM


def test_a_second_training_can_be_watched_after_the_first(preemption: Preemption) -> None:
    terminate()
    wait_until(lambda: preemption.requested)
    preemption.end()
    preemption.begin()
    assert not preemption.requested
    terminate()
    wait_until(lambda: preemption.requested)


def test_a_function_that_returns_true_requests_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    is_ending = threading.Event()
    preemption = Preemption(grace_seconds=60, watcher=is_ending.is_set)
    preemption.begin()
    try:
        time.sleep(0.1)
        assert not preemption.requested
        is_ending.set()
        wait_until(lambda: preemption.requested)
        assert preemption.reason == "termination_watcher_fn"
    finally:
        preemption.end()


def test_a_function_that_fails_is_called_again_and_each_error_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    errors = [OSError("no route")] * 3 + [OSError("refused")]

    def watcher() -> bool:
        if errors:
            raise errors.pop(0)
        return True

    preemption = Preemption(grace_seconds=60, watcher=watcher)
    preemption.begin()
    try:
        wait_until(lambda: preemption.requested)
    finally:
        preemption.end()
    warnings = [record.message for record in caplog.records if "is called again" in record.message]
    assert [("no route" in text, "refused" in text) for text in warnings] == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("watcher", "advice"),
    [
        (None, "Train in the main thread, or pass termination_watcher_fn."),
        (bool, "Train in the main thread."),
    ],
)
def test_outside_the_main_thread_a_warning_says_what_to_do(
    watcher: Any, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    preemption = Preemption(grace_seconds=60, watcher=watcher)
    beginning = threading.Thread(target=preemption.begin, name="trainer")
    beginning.start()
    beginning.join()
    preemption.end()
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "SIGTERM cannot be caught in thread 'trainer'" in warning
    assert warning.endswith(advice)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_process_ends_at_the_deadline_whatever_its_threads_wait_for() -> None:
    program = """
preemption = Preemption(grace_seconds=1.5, describe=lambda: "Step 30 is stored.")
preemption.begin()
threading.Thread(target=threading.Event().wait).start()
print("ready", flush=True)
threading.Event().wait()
"""
    with child(program) as process:
        started = time.monotonic()
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        printed, _ = process.communicate(timeout=60)
        seconds = time.monotonic() - started
    assert process.returncode == 143
    assert 1.4 < seconds < 5
    assert (
        "The process ends now, 1.5 s after SIGTERM, before everything is stored. Step 30 is stored."
        in printed
    )


def test_the_process_ends_at_the_deadline_although_its_last_message_hangs() -> None:
    program = """
preemption = Preemption(grace_seconds=0.5, describe=lambda: threading.Event().wait())
preemption.begin()
print("ready", flush=True)
threading.Event().wait()
"""
    with child(program) as process:
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        seconds = time.monotonic() - started
    assert process.returncode == 143
    assert seconds < 10


def test_a_training_that_ends_before_the_deadline_does_not_end_the_process() -> None:
    program = """
preemption = Preemption(grace_seconds=0.5)
preemption.begin()
print("ready", flush=True)
while not preemption.requested:
    time.sleep(0.01)
preemption.end()
time.sleep(1.5)
print("alive")
"""
    with child(program) as process:
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert printed.endswith("alive\n")
    assert process.returncode == 0
