"""A training process for tests to kill, and the moments at which it ends or stops itself.

A test starts it with `tests.support.kills.start`. It prints a line at every step.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Optional

import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from tests.support.hooked_training import wait_until
from tests.support.repeatable import PIPELINES
from tests.support.training import make_estimator, shuffled_ids
from tests.support.wrappers import BeforeWrites

ELEMENT_INTS = 2_000


@dataclass(frozen=True)
class AtStep:
    """After the training of a step."""

    step: int
    written: str = ""
    """If this is not empty, the process waits until an object of the store has a key that starts with it."""


@dataclass(frozen=True)
class BeforeWrite:
    """Before an object of the store is written whose key starts with ``key``."""

    key: str
    model_at: Optional[int] = None
    """The step at which the model was saved last. Training goes no further. None: it may."""
    written: str = ""
    """If this is not empty, an object of the store has a key that starts with it."""


@dataclass(frozen=True)
class InModelSave:
    """When the model of a step is about to be written."""

    step: int


@dataclass(frozen=True)
class AfterModelSave:
    """When the model of a step has been written, before any listener of the hook learns of it."""

    step: int
    written: str = ""
    """If this is not empty, the process waits until an object of the store has a key that starts with it."""


@dataclass(frozen=True)
class Training:
    """What a process trains, and when it ends."""

    model_dir: Path
    backend: Optional[str]
    """None: without the hook."""
    steps: int = 40
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the hook."""
    model_every: int = 10
    """Steps from one model checkpoint to the next."""
    buffer: int = 100
    """Size of the shuffle buffer. 0: a large state, whose save takes a while."""
    killed: Any = None
    """The moment at which the process sends itself SIGKILL."""
    stopped: Any = None
    """The moment at which it sends itself SIGSTOP."""
    keep_models: int = 5
    """How many model checkpoints are kept."""
    pipeline: str = ""
    """Name in `tests.support.repeatable.PIPELINES`. Empty: as ``buffer`` says."""
    step_seconds: float = 0.0
    """How long a step takes at least."""
    pack_seconds: float = 0.0
    """How long the storage takes for each pack."""
    mark_seconds: float = 0.0
    """How long it takes for each mark."""
    listener: str = ""
    """Mode of the saving listener. Empty: the hook saves by its own schedule."""


def padded_ids() -> Any:
    """Return 16 KB elements in a shuffle buffer of 500: about 8 MB of state, so that a save takes a while."""

    def pad(example: Any) -> Any:
        noise = tf.random.stateless_uniform([ELEMENT_INTS], [example, 1], maxval=2**30, dtype=tf.int64)
        return noise * 1000 + example

    return (
        tf.data.Dataset.range(1000)
        .map(pad)
        .shuffle(500, seed=11)
        .map(lambda padded: padded[0] % 1000)
        .repeat()
        .batch(4)
    )


class EachStep(tf.estimator.SessionRunHook):
    """Calls a function with the step after each run."""

    def __init__(self, action: Callable[[int], object]) -> None:
        self._action = action

    def begin(self) -> None:
        self._step = tf.identity(tf.compat.v1.train.get_global_step())

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._action(int(run_context.session.run(self._step)))


class BeforeModelSave(tf.estimator.CheckpointSaverListener):
    """Calls a function with the step before a model is written."""

    def __init__(self, action: Callable[[int], object]) -> None:
        self._action = action

    def before_save(self, session: Any, global_step_value: int) -> None:
        self._action(int(global_step_value))


class AfterModelIsSaved(tf.estimator.CheckpointSaverListener):
    """Calls a function with the step after a model is written."""

    def __init__(self, action: Callable[[int], object]) -> None:
        self._action = action

    def after_save(self, session: Any, global_step_value: int) -> None:
        self._action(int(global_step_value))


def run(work: Callable[[], object], output: Connection) -> None:
    """Do some work, with everything that is printed going to ``output``. The target of a process."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    tf.get_logger().setLevel("ERROR")
    tf.get_logger().propagate = False
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"error {type(error).__name__}: {error}")
    finally:
        sys.stdout.flush()


def train(training: Training) -> None:
    """Train, and end or stop the process as the training says."""
    estimator = make_estimator(
        training.model_dir,
        save_checkpoints_steps=training.model_every,
        keep_checkpoint_max=training.keep_models,
    )
    hooks: list[Any] = [EachStep(lambda step: print("step", step, flush=True))]
    if training.step_seconds:
        hooks.append(EachStep(lambda step: time.sleep(training.step_seconds)))
    first: list[Any] = []
    listeners: list[Any] = []
    backend: Any = training.backend
    options = dict(training.options)
    for moment, number in ((training.killed, signal.SIGKILL), (training.stopped, signal.SIGSTOP)):
        if isinstance(moment, AtStep):
            hooks.append(EachStep(_when(moment.step, number, _wait_for_key(training, moment.written))))
        elif isinstance(moment, InModelSave):
            listeners.append(BeforeModelSave(_when(moment.step, number)))
        elif isinstance(moment, AfterModelSave):
            wait_for_key = _wait_for_key(training, moment.written)
            first.append(AfterModelIsSaved(_when(moment.step, number, wait_for_key)))
        elif isinstance(moment, BeforeWrite):
            opened = ic.open_backend(backend, options.pop("storage_options", None))
            backend = BeforeWrites(opened, _before_write(moment, training, number))
            if moment.model_at is not None:
                hooks.append(EachStep(_wait_after(moment.model_at)))
    if training.pack_seconds or training.mark_seconds:
        opened = ic.open_backend(backend, options.pop("storage_options", None))
        backend = BeforeWrites(opened, lambda key: _be_slow(key, training))
    if backend is not None:
        hook = ic.CheckpointInputPipelineHook(estimator, backend=backend, **options)
        hooks.insert(0, hook)
        if training.listener:
            listeners.insert(0, hook.saving_listener(mode=training.listener))
    listeners = [*first, *listeners]
    estimator.train(input_fn_of(training), hooks=hooks, saving_listeners=listeners, max_steps=training.steps)


def input_fn_of(training: Training) -> Callable[[], Any]:
    """Return the ``input_fn`` of a training."""
    if training.pipeline:
        return PIPELINES[training.pipeline]
    return padded_ids if training.buffer == 0 else lambda: shuffled_ids(buffer=training.buffer)


def _be_slow(key: str, training: Training) -> None:
    if key.startswith("packs/"):
        time.sleep(training.pack_seconds)
    if key.endswith(".mark"):
        time.sleep(training.mark_seconds)


def _wait_for_key(training: Training, prefix: str) -> Callable[[], None]:
    def wait() -> None:
        if prefix:
            opened = ic.open_backend(str(training.backend))
            wait_until(lambda: any(True for _ in opened.list(prefix)))

    return wait


def _when(
    step: int, number: signal.Signals, before: Callable[[], None] = lambda: None
) -> Callable[[int], None]:
    def act(reached: int) -> None:
        if reached == step:
            before()
            os.kill(os.getpid(), number)

    return act


def _before_write(moment: BeforeWrite, training: Training, number: signal.Signals) -> Callable[[str], None]:
    wait_for_key = _wait_for_key(training, moment.written)

    def act(key: str) -> None:
        if key.startswith(moment.key):
            wait_until(lambda: moment.model_at in (None, latest_model_step(str(training.model_dir))))
            wait_for_key()
            os.kill(os.getpid(), number)

    return act


def _wait_after(step: int) -> Callable[[int], None]:
    def act(reached: int) -> None:
        if reached > step:
            time.sleep(60)
            raise AssertionError(f"training has passed step {step}")

    return act
