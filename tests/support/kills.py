"""Runs training processes, and kills them with SIGKILL.

Each training is a process of its own, forked from one that has only imported TensorFlow. So it starts in
milliseconds.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from tests.support import train_child
from tests.support.hooked_training import wait_until
from tests.support.train_child import Training

_IMPORTED_ONCE = ["tests.support.train_child", "tests.support.accumulation", "tests.support.replicas"]


@dataclass(frozen=True)
class Outcome:
    """How a training process ended."""

    killed: bool
    output: str
    exit_code: Optional[int] = None

    @property
    def error(self) -> str:
        """The error that ended training, or an empty string."""
        last = self.output.rpartition("\nerror ")
        return last[2] if last[1] else ""


class RunningTraining:
    """A training process. It does not outlive the ``with`` block.

    Args:
        work: what the process does. It can be pickled.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED_ONCE)
        reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=train_child.run, args=(work, writer))
        self._process.start()
        writer.close()
        self._output = os.fdopen(os.dup(reader.fileno()), errors="replace")
        reader.close()
        self._lines: list[str] = []

    def __enter__(self) -> RunningTraining:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()
        self._output.close()

    def lines(self) -> Iterator[str]:
        """Yield what the process prints, until it ends."""
        for line in self._output:
            self._lines.append(line)
            yield line

    def wait_until_stopped(self) -> None:
        """Wait until the process has stopped itself."""
        status = Path(f"/proc/{self._process.pid}/stat")
        deadline = time.monotonic() + 60
        while status.read_text().rpartition(") ")[2][0] != "T":
            assert time.monotonic() < deadline, "the process has not stopped"
            time.sleep(0.01)

    def wake(self) -> None:
        """Let a stopped process continue."""
        os.kill(self._process.pid or 0, signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def finish(self) -> Outcome:
        """Wait for the end of the process."""
        for _ in self.lines():
            pass
        self._process.join()
        code = self._process.exitcode
        return Outcome(code == -signal.SIGKILL, "".join(self._lines), code)


def start(training: Training) -> RunningTraining:
    """Start a training process."""
    return RunningTraining(functools.partial(train_child.train, training))


def finish(training: Training) -> Outcome:
    """Run a training process to its end, which may be an error. Fail if it is not killed as planned."""
    with start(training) as running:
        outcome = running.finish()
    assert outcome.killed == (training.killed is not None), outcome.output[-4000:]
    return outcome


def kill_after(training: Training, seconds: float, written: str = "") -> Outcome:
    """Run a training process, and kill it at some time after its first step. Fail if it ends before.

    Args:
        training: what it trains.
        seconds: how long after the step.
        written: if this is not empty, the time begins when the store has an object of this key.
    """
    with start(training) as running:
        for line in running.lines():
            if line.startswith("step "):
                wait_until(lambda: (Path(str(training.backend)) / written).exists())
                timer = threading.Timer(seconds, running.kill)
                timer.start()
                break
        outcome = running.finish()
    assert outcome.killed, outcome.output[-4000:]
    return outcome


def succeed(training: Training) -> Outcome:
    """Run a training process to its end. Fail if it raises."""
    outcome = finish(training)
    assert not outcome.error, outcome.output[-4000:]
    return outcome


def first_step(output: str) -> int:
    """Return the first step that a training ran."""
    return int(re.findall(r"^step (\d+)$", output, re.MULTILINE)[0])


def end_with_kill(work: Callable[[], object]) -> None:
    """Do some work in a process that kills itself. Fail if it ends in another way."""
    with RunningTraining(work) as running:
        outcome = running.finish()
    assert outcome.killed, outcome.output[-4000:]


def train(
    model_dir: Path,
    backend: Optional[str],
    steps: int,
    options: Optional[Mapping[str, Any]] = None,
    kill_at: Optional[str] = None,
    kill_after_seconds: float = 0.0,
) -> bool:
    """Train on a large state to ``steps``, or until SIGKILL.

    Args:
        kill_at: kill at the first line of output that starts with this. None lets the process finish.
        kill_after_seconds: how long to wait after that line.

    Returns:
        Whether the process was killed.
    """
    hook = {} if backend is None else {"storage_options": dict(options or {})}
    # Slowly enough that the signal arrives before training ends.
    training = Training(model_dir, backend, steps, options=hook, buffer=0, step_seconds=0.02)
    with start(training) as running:
        for line in running.lines():
            if kill_at is not None and line.startswith(kill_at):
                time.sleep(kill_after_seconds)
                running.kill()
                break
        outcome = running.finish()
    assert outcome.killed or not outcome.error, outcome.output[-4000:]
    return outcome.killed
