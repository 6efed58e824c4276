"""How long a training takes to resume, in a new process, until its first and its second step.

Every resume is a process of its own, as after a preemption: with our hook, with TensorFlow's, and without any
input state. TensorFlow's hook saves the whole state again after the first step, before the second can begin.
So the two steps are told apart, by one hook that stands first in the list and one that stands last.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import s3fs
import tensorflow as tf

from benchmarks import candidates, fresh_process, places, records, restarted_training
from benchmarks.names import OURS, OURS_S3, TF_HOOK
from benchmarks.report import Figure, Goal
from benchmarks.restarted_training import (
    BUILT,
    FIRST_STEP,
    NO_STATE,
    PROCESSOR,
    PROGRAM,
    SECOND_STEP,
    TRAINING,
    Order,
)
from benchmarks.slow_link import Link
from integration.servers.server import Place

NAME = "restart"
TF_GET = "s3fs.get + TensorFlow's hook"
ALLOWED = "TensorFlow's hook x 1.05 + 0.1 s"
COLD = ", cold"
"""The end of the name of a case in which no file of the checkpoint is in the page cache."""

LINK = Link(bandwidth=200e6)
"""Over a slower one, both would do nothing but wait for the same bytes."""
_STEPS = 4
"""Steps until the checkpoint is saved."""

GOALS = (
    Goal(NAME, FIRST_STEP, OURS, TF_HOOK, 1.2, cases="pictures 3 000"),
    Goal(NAME, FIRST_STEP, OURS, TF_HOOK, 1.0, cases="pictures 10 000"),
    Goal(NAME, FIRST_STEP, OURS, TF_HOOK, 1.0, cases="tokens"),
    Goal(NAME, FIRST_STEP, OURS, TF_HOOK, 1.2, cases="256 B"),
    Goal(NAME, SECOND_STEP, OURS, TF_HOOK, 0.5),
    Goal(NAME, PROGRAM, OURS, ALLOWED, 1.0),
    Goal(NAME, TRAINING, OURS_S3, TF_GET, 0.85),
    Goal(NAME, FIRST_STEP, OURS, NO_STATE),
    Goal(NAME, BUILT, OURS, TF_HOOK),
    Goal(NAME, PROCESSOR, OURS, TF_HOOK),
)


@dataclass(frozen=True)
class Case:
    """A checkpoint that trainings resume from."""

    kind: str
    """One of `records.KINDS`."""
    elements: int
    rounds: int
    cold_rounds: int = 0
    """Further rounds, for which no file of the checkpoint is in the page cache."""
    remote: bool = False

    @property
    def name(self) -> str:
        """The name of the pipeline."""
        name = records.KINDS[self.kind].pipeline(self.elements).name
        return f"{name}, S3 at {LINK.bandwidth / 1e6:.0f} MB/s" if self.remote else name


FULL = (
    Case("pictures", 3_000, 3, cold_rounds=3),
    Case("pictures", 10_000, 3),
    Case("tokens", 20_000, 3),
    Case("vectors", 100_000, 3),
    Case("pictures", 3_000, 3, remote=True),
)
QUICK = (Case("pictures", 200, 2, cold_rounds=1), Case("pictures", 200, 1, remote=True))


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, case by case."""
    for case in QUICK if quick else FULL:
        with places.folder() as folder, contextlib.ExitStack() as servers:
            remote = servers.enter_context(places.slow_s3(LINK)) if case.remote else None
            file = folder / "records"
            fresh_process.run(records.write, case.kind, case.elements, file)
            yield from _resume_in_turn(case, _Trainings(case, folder, remote, file))


def _resume_in_turn(case: Case, trainings: _Trainings) -> Iterator[Figure]:
    names = [OURS_S3, TF_GET] if case.remote else [OURS, TF_HOOK, NO_STATE]
    for who in names:
        trainings.begin(who)
    for cold, rounds in ((False, case.rounds), (True, case.cold_rounds)):
        name = case.name + (COLD if cold else "")
        for number, who in candidates.turns(names, rounds):
            if who == NO_STATE and number:
                continue  # no goal is about it, and every round takes the start of a process
            for quantity, value in trainings.resume(who, cold).items():
                yield Figure(NAME, name, who, quantity, number, value)
                if (who, quantity) == (TF_HOOK, PROGRAM):
                    yield Figure(NAME, name, ALLOWED, quantity, number, 1.05 * value + 0.1)


class _Trainings:
    """One training per candidate, each with a model directory of its own."""

    def __init__(self, case: Case, folder: Path, remote: Optional[Place], file: Path) -> None:
        self._case = case
        self._folder = folder
        self._remote = remote
        self._file = file

    def begin(self, who: str) -> None:
        """Train until there is a checkpoint to resume from."""
        order = replace(self._order(who), train_steps=_STEPS, download=None)
        # What it takes is not measured, so it need not import TensorFlow again.
        fresh_process.run(restarted_training.run, order)
        if who == TF_GET:
            assert self._remote is not None
            newest = tf.train.latest_checkpoint(order.model_dir, "checkpoint_input")
            files = [*glob.glob(f"{newest}.*"), f"{order.model_dir}/checkpoint_input"]
            filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **self._remote.storage_options)
            filesystem.put(files, f"{self._remote.uri}/tensorflow/")

    def resume(self, who: str, cold: bool) -> dict[str, float]:
        """Resume in a new process, and return how long what took."""
        order = self._order(who)
        if who == TF_GET:
            for path in Path(order.model_dir).glob("input*"):
                path.unlink()
        # What others have written must not be written to the disk during this process.
        os.sync()
        if cold:
            _leave_page_cache(Path(order.model_dir), Path(order.backend))
        with _unchanged(Path(order.model_dir)):
            found: dict[str, float] = json.loads(self._run(order).splitlines()[-1])
        return found

    def _order(self, who: str) -> Order:
        folder = self._folder / who.replace(" ", "-")
        order = Order(
            self._case.kind,
            self._case.elements,
            str(self._file),
            {OURS_S3: OURS, TF_GET: TF_HOOK}.get(who, who),
            str(folder / "model"),
            str(folder / "input"),
        )
        if self._remote is None:
            return order
        return replace(
            order,
            backend=f"{self._remote.uri}/ours",
            storage_options=self._remote.storage_options,
            download=f"{self._remote.uri}/tensorflow" if who == TF_GET else None,
        )

    def _run(self, order: Order) -> str:
        order = replace(order, started_at=time.time())
        command = [sys.executable, "-m", "benchmarks.restarted_training", order.to_json()]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextlib.contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    """Undo at the end what TensorFlow's hook does in the block: it saves, and says what is current."""
    current = {path: path.read_bytes() for path in folder.glob("checkpoint*")}
    before = set(folder.iterdir())
    yield
    for path in set(folder.iterdir()) - before:
        path.unlink()
    for path, content in current.items():
        path.write_bytes(content)


def _leave_page_cache(*folders: Path) -> None:
    """Have the next process read the files of these folders from the disk."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
