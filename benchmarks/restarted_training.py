"""A training program, as a user writes it, which tells how long its start took.

``python -m benchmarks.restarted_training ORDER`` runs it. `benchmarks.restart` starts the processes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import tensorflow as tf

from benchmarks import records
from benchmarks.names import OURS, TF_HOOK
from benchmarks.pipelines import consumed
from benchmarks.step_clock import StepClock

v1 = tf.compat.v1

NO_STATE = "no input state"

BUILT = "hook constructed and begun [s]"
FIRST_STEP = "from begin() to the end of the first step [s]"
SECOND_STEP = "from begin() until the second step begins [s]"
PROGRAM = "from the start of the process to the end of the first step [s]"
TRAINING = "from before the hook to the end of the first step [s]"
"""With what must be done before the session: a download, or the hook's first requests."""
PROCESSOR = "processor time of the process until then [s]"


@dataclass(frozen=True)
class Order:
    """What the program is to do."""

    kind: str
    """One of `records.KINDS`."""
    elements: int
    """In the shuffle buffer."""
    records: str
    """The file with the elements."""
    who: str
    """`OURS`, `TF_HOOK` or `NO_STATE`."""
    model_dir: str
    backend: str
    """For `OURS`."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    download: Optional[str] = None
    """For `TF_HOOK`: the folder on S3 from which its files are fetched first."""
    train_steps: Optional[int] = None
    """Train that many steps, save, and end. None: resume, and end after the first step."""
    started_at: float = 0.0
    """When the process was started, on the clock of `time.time`."""

    def to_json(self) -> str:
        """Return it as an argument of the command line."""
        return json.dumps(asdict(self))


class _Last(tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]  # untyped base
    """The last hook of the list. All others are done when it is called."""

    begun_at = 0.0
    second_step_at: Optional[float] = None
    _steps = 0

    def begin(self) -> None:
        """Called by TensorFlow."""
        self.begun_at = time.perf_counter()

    def before_run(self, run_context: Any) -> None:
        """Called by TensorFlow."""
        self._steps += 1
        if self._steps == 2:
            self.second_step_at = time.perf_counter()


def run(order: Order) -> dict[str, float]:
    """Resume one training, and return how long what took. Or train for the first time."""
    entered = time.perf_counter()
    if order.download:
        _download(order)
    ready_for_hook = time.perf_counter()
    hooks = _hooks(order)
    constructing = time.perf_counter() - ready_for_hook
    clock, last = StepClock(), _Last()
    with v1.Graph().as_default():
        train_op = _train_op(order)
        creating = time.perf_counter()
        session = v1.train.MonitoredTrainingSession(
            checkpoint_dir=order.model_dir,
            save_checkpoint_steps=order.train_steps or 1_000_000,
            save_summaries_steps=None,
            save_summaries_secs=None,
            log_step_count_steps=None,
            hooks=[clock, *hooks, last],
        )
        with session:
            if order.train_steps is not None:
                for _ in range(order.train_steps):
                    session.run(train_op)
                return {}
            session.run(train_op)
            processor, first_step_ended_at = time.process_time(), clock.ended_at
            session.run(train_op)
            assert last.second_step_at is not None
            started = time.perf_counter() - (time.time() - order.started_at)
            _check_restored(order, hooks)
            found = {
                BUILT: constructing + last.begun_at - creating,
                FIRST_STEP: first_step_ended_at - last.begun_at,
                SECOND_STEP: last.second_step_at - last.begun_at,
                TRAINING: first_step_ended_at - entered,
                PROGRAM: first_step_ended_at - started,
                PROCESSOR: processor,
            }
            print(json.dumps(found), flush=True)
            # Nothing is saved at the end: the next process must find the same checkpoint.
            os._exit(0)


def _check_restored(order: Order, hooks: list[Any]) -> None:
    if order.who == OURS:
        restored = hooks[0]._running_saver.run.base
    elif order.who == TF_HOOK:
        restored = tf.train.latest_checkpoint(order.model_dir, "checkpoint_input")
    else:
        return
    if restored is None:
        raise RuntimeError(f"{order.who} has restored nothing")


def _hooks(order: Order) -> list[Any]:
    if order.who == OURS:
        from input_checkpoint import CheckpointInputPipelineHook

        return [
            CheckpointInputPipelineHook.for_session(
                model_dir=order.model_dir,
                backend=order.backend,
                storage_options=dict(order.storage_options) or None,
                save_steps=order.train_steps or 1_000_000,
            )
        ]
    if order.who == TF_HOOK:
        config = tf.estimator.RunConfig(
            order.model_dir, save_checkpoints_steps=order.train_steps or 1_000_000
        )
        estimator = tf.estimator.Estimator(lambda features: None, config=config)
        return [tf.data.experimental.CheckpointInputPipelineHook(estimator)]
    return []


def _train_op(order: Order) -> Any:
    """Return the operation of one step."""
    batches = records.batches(order.kind, order.elements, Path(order.records))
    iterator = v1.data.make_initializable_iterator(batches)
    v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
    weights = v1.get_variable("weights", [1000, 1000])
    step = v1.train.get_or_create_global_step()
    loss = tf.cast(consumed(iterator.get_next()), tf.float32) * 1e-9
    with tf.control_dependencies([weights.assign_add(tf.ones([1000, 1000]) * loss)]):
        return step.assign_add(1).op


def _download(order: Order) -> None:
    import s3fs

    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **order.storage_options)
    for path in filesystem.ls(order.download):
        filesystem.get(path, str(Path(order.model_dir) / Path(path).name))


def main(arguments: Sequence[str]) -> None:
    """Run what the command line asks for."""
    v1.logging.set_verbosity(v1.logging.ERROR)
    run(Order(**json.loads(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
