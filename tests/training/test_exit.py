"""A program ends in bounded time, although a save hangs in a storage that never answers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENDED_BEFORE = 60
CHILD = """
import logging, signal, sys, threading
from input_checkpoint import CheckpointStore, KeepLast
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.training import background_saver
from tests.training.test_background_saver import FixedInput

# A shell starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
logging.basicConfig(stream=sys.stdout)
background_saver.EXIT_SECONDS = 1
hangs_in, what_next = sys.argv[1:]

class Frozen(MemoryBackend):
    def _hang(self):
        print("hanging", flush=True)
        threading.Event().wait()

    def put(self, key, data):
        self._hang()

    def delete(self, keys):
        if hangs_in == "prune" and any(key.startswith("checkpoints/") for key in keys):
            self._hang()
        super().delete(keys)

if hangs_in == "prune":
    Frozen.put = MemoryBackend.put
run = CheckpointStore.open(Frozen("memory://frozen"), create=True).begin_run("main")
saver = background_saver.BackgroundSaver(run, KeepLast(1))
saver.submit(1, FixedInput(b"1"))
if hangs_in == "prune":
    saver.submit(2, FixedInput(b"2"))
    saver._thread.join()
if what_next == "raise":
    saver.wait_for_snapshot()
    raise SystemExit(3)
if what_next == "wait":
    saver.wait()
"""


def start(hangs_in: str, what_next: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, hangs_in, what_next]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)


@pytest.mark.parametrize("hangs_in", ["save", "prune"])
@pytest.mark.parametrize(("what_next", "code"), [("return", 0), ("raise", 3)])
def test_the_end_of_the_program_does_not_wait_for_a_storage_that_hangs(hangs_in, what_next, code):
    with start(hangs_in, what_next) as process:
        try:
            printed, _ = process.communicate(timeout=ENDED_BEFORE)
        finally:
            process.kill()
    assert process.returncode == code
    assert bool(re.search(r"Input checkpoint for step 1 in \S+ abandoned", printed)) == (hangs_in == "save")


@pytest.mark.parametrize("hangs_in", ["save", "prune"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_program_that_waits_for_a_storage_that_hangs(hangs_in, number):
    with start(hangs_in, "wait") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hanging\n"
            process.send_signal(number)
            process.communicate(timeout=ENDED_BEFORE)
        finally:
            process.kill()
    assert process.returncode in (-number, 1)
