"""How fast a resume draws the batches between a full checkpoint and the model, relative to training on them.

The batches per second are measured in one process: after a restore of the same checkpoint, the same batches
are drawn or trained on in turn. The whole resumes follow a kill, each in a new process: from a mark, from a
full checkpoint at the step of the model, and from the full checkpoint before it, after which training repeats
all the steps in between.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import tensorflow as tf

from benchmarks import candidates, fresh_process, pipelines, places
from benchmarks.candidates import TrainingSession
from benchmarks.hooked_training import TimedHook, hooked_training, perceptron
from benchmarks.report import Figure, Goal, number
from benchmarks.step_clock import StepClock
from input_checkpoint import CheckpointRef, CheckpointStore
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.tensorflow.iterators import (
    GraphIterators,
    SessionIterators,
    external_state_policy_number,
)
from input_checkpoint.training.schedule import SaveSchedule

v1 = tf.compat.v1

NAME = "fast_forward"
SPEED = "batches per second"
RESUME = "until the end of the next step [s]"
DRAWN = "drawn"
PULLED = "fetched by Python"
"""The input alone: ``session.run`` of a batch that nobody uses."""
TRAINED = "trained on"
FAST_FORWARD = "fast-forward"
FULL_RESUME = "full checkpoint"
REPEATED = "steps repeated"

INPUT_BOUND = "input-bound"
BALANCED = "balanced"
COMPUTE_BOUND = "compute-bound"

GOALS = (
    Goal(NAME, SPEED, DRAWN, TRAINED, 1.5, at_most=False, cases=INPUT_BOUND),
    Goal(NAME, SPEED, DRAWN, TRAINED, 5, at_most=False, cases=COMPUTE_BOUND),
    Goal(NAME, SPEED, DRAWN, TRAINED, cases=BALANCED),
    Goal(NAME, SPEED, DRAWN, PULLED, 0.97, at_most=False),
    Goal(NAME, RESUME, FAST_FORWARD, REPEATED, 1.0),
    Goal(NAME, RESUME, FAST_FORWARD, FULL_RESUME),
)

_WARM_UP = 20
_ROWS = 20_000


@dataclass(frozen=True)
class Workload:
    """A pipeline and what a step does with its batches."""

    name: str
    dataset: Callable[[], Any]
    train: Callable[[Any], Any]
    steps: int
    """How many batches to draw or to train on in one turn."""
    rounds: int
    missed: int
    """How many batches lie between the full checkpoint and the model of a whole resume."""
    resumes: int
    """How many rounds of whole resumes."""

    @property
    def resume_case(self) -> str:
        """The name of the whole resumes in the results."""
        return f"{self.name}, {number(self.missed)} batches"


def decoded_pictures() -> Any:
    """Return batches of 8 pictures, which are decoded after the shuffle."""
    files = tf.data.Dataset.range(_ROWS).map(pipelines.jpeg).shuffle(500, seed=1).repeat()
    return files.map(_decode, num_parallel_calls=2).batch(8, drop_remainder=True).prefetch(2)


def token_rows(batch: int) -> Any:
    """Return batches of rows of 1,024 tokens."""
    rows = tf.data.Dataset.range(_ROWS).map(pipelines.token_row).shuffle(2_000, seed=1).repeat()
    return rows.batch(batch, drop_remainder=True).prefetch(2)


def looked_at(batch: Any) -> Any:
    """Return the operation of a step that does next to nothing."""
    return tf.reduce_sum(tf.cast(batch[:, 0], tf.int32))


def _decode(picture: Any) -> Any:
    return tf.reshape(tf.io.decode_jpeg(picture, channels=3), [pipelines.CROP[0], pipelines.CROP[1], 3])


def _workloads(steps: Sequence[int], rounds: int, missed: int, resumes: int) -> list[Workload]:
    """Return the workloads.

    Args:
        steps: of each workload.
        rounds: of each.
        missed: of each.
        resumes: of each.
    """
    kinds = (
        (f"{INPUT_BOUND}, pictures", decoded_pictures, looked_at),
        (f"{BALANCED}, tokens", _tokens(32), _perceptron(256)),
        (f"{COMPUTE_BOUND}, tokens", _tokens(32), _perceptron(1024)),
    )
    return [Workload(*kind, count, rounds, missed, resumes) for kind, count in zip(kinds, steps)]


def _tokens(batch: int) -> Callable[[], Any]:
    return functools.partial(token_rows, batch)


def _perceptron(width: int) -> Callable[[Any], Any]:
    return functools.partial(perceptron, width=width)


FULL = _workloads((100, 300, 150), rounds=4, missed=250, resumes=3)
QUICK = _workloads((10, 20, 10), rounds=2, missed=30, resumes=1)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, workload by workload."""
    for workload in QUICK if quick else FULL:
        yield from fresh_process.run(draw_and_train, workload)
        with places.folder() as folder:
            # All rounds begin with a copy of the same training, under the same path.
            prepared, used = folder / "prepared", folder / "used"
            fresh_process.run(train_to_base, workload, used)
            used.rename(prepared)
            for turn in range(workload.resumes):
                shutil.copytree(prepared, used)
                yield from _resume_round(workload, used, turn)
                shutil.rmtree(used)


def draw_and_train(workload: Workload) -> list[Figure]:
    """Draw batches and train on them in turn, from the same checkpoint."""
    with places.folder() as folder, v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(workload.dataset())
        batch = iterator.get_next()
        train_op = workload.train(batch)
        iterators = GraphIterators(graph, external_state_policy_number("fail"))
        store = CheckpointStore.open(LocalBackend(str(folder)), create=True)
        with v1.Session() as session:
            session.run([iterator.initializer, v1.global_variables_initializer()])
            source = iterators.bind(session)
            _run(session, train_op, _WARM_UP)
            snapshot = source.snapshot()
            base = store.begin_run("main").save(_WARM_UP, snapshot.states()).ref
            snapshot.release()
            work = {
                DRAWN: lambda: _draw(source, workload.steps),
                PULLED: lambda: _run(session, batch.op, workload.steps),
                TRAINED: lambda: _run(session, train_op, workload.steps),
            }
            return _take_turns(workload, store, base, source, work)


def _take_turns(
    workload: Workload,
    store: CheckpointStore,
    base: CheckpointRef,
    source: SessionIterators,
    work: dict[str, Callable[[], None]],
) -> list[Figure]:
    figures = []
    for turn, who in candidates.turns(list(work), workload.rounds + 1):
        source.restore(store.load(base))
        started = time.perf_counter()
        work[who]()
        speed = workload.steps / (time.perf_counter() - started)
        if turn:  # TensorFlow prepares an operation on its first run
            figures.append(Figure(NAME, workload.name, who, SPEED, turn, speed))
    return figures


def _draw(source: SessionIterators, steps: int) -> None:
    (name,) = source.names
    source.skip(name, steps - 1)
    source.draw(name)


def _run(session: Any, operation: Any, times: int) -> None:
    for _ in range(times):
        session.run(operation)


def _resume_round(workload: Workload, folder: Path, turn: int) -> Iterator[Figure]:
    """Resume in one process, and in others after it was killed."""
    found = {REPEATED: fresh_process.run_until_killed(train_to_mark, workload, folder)}
    # After a fast-forward, the input is saved in full. So the next process finds a full checkpoint.
    for who in (FAST_FORWARD, FULL_RESUME):
        found[who] = fresh_process.run_until_killed(resume, workload, folder)
    for who, seconds in found.items():
        yield Figure(NAME, workload.resume_case, who, RESUME, turn, seconds)


def train_to_base(workload: Workload, folder: Path) -> None:
    """Train a few steps, and end normally: with a full checkpoint and a model."""
    with _training(workload, folder) as (session, _, _):
        for _ in range(_WARM_UP):
            session.step()


def train_to_mark(workload: Workload, folder: Path, kill: Callable[[float], None]) -> None:
    """Resume at the full checkpoint, train until the next model is saved, and die a step later."""
    started = time.perf_counter()
    with _training(workload, folder) as (session, hook, clock):
        for _ in range(workload.missed + 1):
            session.step()
        hook.wait()
        kill(clock.ended_at - started)


def resume(workload: Workload, folder: Path, kill: Callable[[float], None]) -> None:
    """Resume at the model, train one step, and die."""
    started = time.perf_counter()
    with _training(workload, folder) as (session, hook, clock):
        session.step()
        hook.wait()
        if session.global_step() != _WARM_UP + workload.missed + 1:
            raise RuntimeError("the training was not resumed at its newest model")
        kill(clock.ended_at - started)


@contextlib.contextmanager
def _training(workload: Workload, folder: Path) -> Iterator[tuple[TrainingSession, TimedHook, StepClock]]:
    model = folder / "model"
    hook = TimedHook(
        model_dir=str(model),
        backend=LocalBackend(str(folder / "input")),
        # Never again in full before the next model is saved.
        save_steps=10 * workload.missed,
        model_schedule=SaveSchedule(every_steps=workload.missed),
    )
    clock = StepClock()
    hooks = [clock, hook]
    with hooked_training(workload.dataset, workload.train, model, workload.missed, hooks) as session:
        yield session, hook, clock
