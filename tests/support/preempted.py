"""A training process with ``save_on_preemption``, and a storage that is slow or hangs when a test says so."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

import input_checkpoint as ic
from tests.support.accumulation import accumulate
from tests.support.hooked_training import session_hook, train_in_session
from tests.support.kills import RunningTraining
from tests.support.train_child import EachStep
from tests.support.training import make_estimator, shuffled_ids
from tests.support.wrappers import BeforeWrites

v1 = tf.compat.v1


@dataclass(frozen=True)
class Preempted:
    """What a process trains."""

    folder: Path
    """Has the model, the input, and the files by which a test controls the process."""
    steps: int = 150
    """Up to which step, or with ``model_after``, how many more."""
    options: Mapping[str, Any] = field(default_factory=lambda: {"save_on_preemption": True})
    """Of the hook."""
    step_seconds: float = 0.05
    op_seconds: float = 0.0
    """How long an operation of each step takes."""
    in_thread: bool = False
    """Whether another thread than the main one trains."""
    model_after: bool = False
    """Whether the model is saved by a hook that comes after ours, in a session without Estimator."""
    listener: Optional[str] = None
    """The mode of a saving listener, if there is one."""

    @property
    def model(self) -> Path:
        """The model directory."""
        return self.folder / "model"

    @property
    def store(self) -> Path:
        """Where the input is saved."""
        return self.folder / "input"

    @property
    def is_going(self) -> Path:
        """The machine is about to go once this file exists."""
        return self.folder / "is-going"

    @property
    def slow(self) -> Path:
        """Each pack takes a while once this file exists: as many seconds as it says."""
        return self.folder / "slow"


@contextmanager
def preempted(training: Preempted) -> Iterator[RunningTraining]:
    """Start a training process. It does not outlive the ``with`` block."""
    training.folder.mkdir(parents=True, exist_ok=True)
    with RunningTraining(functools.partial(train, training)) as running:
        yield running


def reach(running: RunningTraining, step: int) -> None:
    """Wait until a process prints that a step has ended."""
    for line in running.lines():
        if line == f"step {step}\n":
            return
    raise AssertionError(f"training ended before step {step}")


def train(training: Preempted) -> None:
    """Train in this process."""
    if not training.in_thread:
        _train(training)
        return
    thread = threading.Thread(target=_train, args=(training,), name="trainer")
    thread.start()
    thread.join()


def accumulate_until_preempted(folder: Path, runs: int) -> None:
    """Train in this process with several runs to a step, and print the step after each of them."""
    hooks = [
        EachStep(lambda step: print("step", step, flush=True)),
        EachStep(lambda step: time.sleep(0.2)),
    ]
    accumulate(folder / "model", runs, hooks=hooks, backend=str(folder / "input"), save_on_preemption=True)


def _train(training: Preempted) -> None:
    backend = BeforeWrites(ic.open_backend(str(training.store)), functools.partial(_be_slow, training))
    options = dict(training.options)
    if "termination_watcher_fn" in options:
        options["termination_watcher_fn"] = training.is_going.exists
    hooks = [
        EachStep(lambda step: print("step", step, flush=True)),
        EachStep(lambda step: time.sleep(training.step_seconds)),
    ]
    if training.model_after:
        _train_in_session(training, backend, hooks, options)
        return
    estimator = make_estimator(training.model)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=backend, **options)
    hooks.append(hook)
    if training.op_seconds:
        hooks.append(_SlowOperation(training.op_seconds))
    listeners = [hook.saving_listener(training.listener)] if training.listener else None
    estimator.train(shuffled_ids, hooks=hooks, max_steps=training.steps, saving_listeners=listeners)
    print("train returned", flush=True)


def _train_in_session(
    training: Preempted, backend: ic.Backend, hooks: list[Any], options: Mapping[str, Any]
) -> None:
    hook = session_hook(training.model, backend, **options)
    saver = v1.train.CheckpointSaverHook(str(training.model), save_steps=10)
    train_in_session(training.model, [*hooks, hook, saver], training.steps, saved_by_session=False)


def _be_slow(training: Preempted, key: str) -> None:
    if key.startswith("packs/") and training.slow.exists():
        time.sleep(float(training.slow.read_text()))


class _SlowOperation(tf.estimator.SessionRunHook):
    """Lets each run take a while, inside TensorFlow."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def begin(self) -> None:
        self._wait: Callable[..., Any] = v1.py_func(self._sleep, [], tf.float32)

    def before_run(self, run_context: Any) -> Any:
        return tf.estimator.SessionRunArgs(self._wait)

    def _sleep(self) -> Any:
        time.sleep(self._seconds)
        return np.float32(0)
