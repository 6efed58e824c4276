"""What it saves to save the input in full at every 4th or 16th model checkpoint only, and what marks cost.

Every training checkpoints its model equally often, in a process of its own. Between two model checkpoints,
nearly the whole buffer is replaced, and all background work is finished. The cost of counting is measured in
one process, in which trainings with and without marks take turns, interval by interval.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import tensorflow as tf

from benchmarks import candidates, fresh_process, pipelines, places
from benchmarks.candidates import TrainingSession, consumed
from benchmarks.hooked_training import TimedHook, hooked_training, perceptron
from benchmarks.report import Figure, Goal, number
from benchmarks.traffic import TrafficBackend
from input_checkpoint import Backend, open_backend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.training.schedule import SaveSchedule
from integration.servers.server import Place

NAME = "rare_saves"
STALL = "stall per model checkpoint [s]"
MARK_STALL = "stall where only a mark is written [s]"
FULL_STALL = "stall where the input is saved in full [s]"
SAVED = "bytes of full checkpoints per model checkpoint"
MARKED = "bytes of marks per model checkpoint"
WRITTEN = "bytes written per model checkpoint"
REQUESTS = "requests per model checkpoint"
STEPS = "steps per second"
STEP = "processor time of a step without a save [µs]"
"""Of the training process. Differs less from turn to turn than the time that has passed."""

NO_MARKS = "every one, no marks"
EVERY = "every one"
FOURTH = "every 4th"
SIXTEENTH = "every 16th"
NO_HOOK = "no hook"
NOT_COUNTED = "max_fast_forward=0"
COUNTED = "counting and marks"

_PARTS = 10

_EVERY = {NO_MARKS: 1, EVERY: 1, FOURTH: 4, SIXTEENTH: 16}

GOALS = (
    Goal(NAME, STALL, EVERY, NO_MARKS, 1.1),
    Goal(NAME, STALL, FOURTH, EVERY, 0.3),
    Goal(NAME, STALL, SIXTEENTH, EVERY, 0.1),
    Goal(NAME, STALL, FOURTH, NO_MARKS),
    Goal(NAME, STALL, SIXTEENTH, NO_MARKS),
    Goal(NAME, WRITTEN, EVERY, NO_MARKS, 1.01),
    Goal(NAME, WRITTEN, FOURTH, EVERY, 0.3),
    Goal(NAME, WRITTEN, SIXTEENTH, EVERY, 0.1),
    Goal(NAME, REQUESTS, EVERY, NO_MARKS),
    Goal(NAME, REQUESTS, FOURTH, EVERY),
    Goal(NAME, REQUESTS, SIXTEENTH, EVERY),
    Goal(NAME, STEPS, COUNTED, NOT_COUNTED, 0.97, at_most=False),
    Goal(NAME, STEPS, COUNTED, NO_HOOK),
    Goal(NAME, STEP, COUNTED, NOT_COUNTED),
    Goal(NAME, STEP, NOT_COUNTED, NO_HOOK),
)


@dataclass(frozen=True)
class Run:
    """Trainings that save their model equally often, and their input more or less often."""

    elements: int
    rounds: int
    remote: bool
    model_steps: int = 100
    models: int = 16


@dataclass(frozen=True)
class ShortSteps:
    """Trainings whose steps are short, so that counting matters."""

    name: str
    train: Callable[[Any], Any]
    interval: int
    """Steps between two model checkpoints, each with a full checkpoint."""
    rounds: int


def small_step(batch: Any) -> Any:
    """Return the operation of a step of about a millisecond."""
    return perceptron(batch, width=256)


FULL = (Run(1_000, 2, remote=False), Run(1_000, 1, remote=True))
FULL_STEPS = (
    ShortSteps("steps that do nothing", consumed, 4_000, 12),
    ShortSteps("small steps", small_step, 1_000, 12),
)
QUICK = (Run(50, 1, remote=False, model_steps=5), Run(50, 1, remote=True, model_steps=5))
QUICK_STEPS = (ShortSteps("steps that do nothing", consumed, 100, 2),)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures: first those of rare saves, then those of counting."""
    with places.slow_s3() as remote:
        for run in QUICK if quick else FULL:
            for turn, who in candidates.turns(list(_EVERY), run.rounds):
                yield from fresh_process.run(train, run, who, turn, remote if run.remote else None)
    for steps in QUICK_STEPS if quick else FULL_STEPS:
        yield from fresh_process.run(count, steps)


def train(run: Run, who: str, turn: int, remote: Optional[Place]) -> list[Figure]:
    """Train, and return the figures of all model checkpoints after the first one."""
    pipeline = pipelines.pictures(run.elements)
    with places.folder() as folder:
        backend = TrafficBackend(_backend(who, turn, folder, remote))
        hook = _hook(backend, folder, run.model_steps, who)
        with hooked_training(
            pipeline.dataset, consumed, folder / "model", run.model_steps, [hook]
        ) as session:
            session.step()
            hook.wait()
            backend.take_traffic()
            stalls = [_train_to_model(session, hook, run, index) for index in range(run.models)]
            traffic = backend.take_traffic()
    every = _EVERY[who]
    full = stalls[every - 1 :: every]
    marks = [stall for place, stall in enumerate(stalls, 1) if place % every]
    found = {
        STALL: statistics.mean(stalls),
        FULL_STALL: statistics.median(full),
        SAVED: (traffic.uploaded - traffic.marked) / run.models,
        MARKED: traffic.marked / run.models,
        WRITTEN: traffic.uploaded / run.models,
        REQUESTS: traffic.requests / run.models,
    }
    if marks:
        found[MARK_STALL] = statistics.median(marks)
    case = f"{pipeline.name}, {'slow S3' if remote else 'disk'}"
    return [Figure(NAME, case, who, what, turn, value) for what, value in found.items()]


def _train_to_model(session: TrainingSession, hook: TimedHook, run: Run, index: int) -> float:
    """Train until after the next model checkpoint, and return for how long the hook kept the training."""
    # One step of this interval was run after the last model checkpoint, or at the start.
    for _ in range(run.model_steps - 2):
        session.step()
    before = hook.seconds
    session.step()
    session.step()
    stall = hook.seconds - before
    hook.wait()
    assert session.global_step() == (index + 1) * run.model_steps + 1
    return stall


def _backend(who: str, turn: int, folder: Path, remote: Optional[Place]) -> Backend:
    if remote is None:
        return LocalBackend(str(folder / "input"))
    name = who.replace(" ", "-").replace(",", "")
    return open_backend(f"{remote.uri}/rare-saves-{name}-{turn}", remote.storage_options)


def _hook(backend: Backend, folder: Path, model_steps: int, who: str) -> TimedHook:
    return TimedHook(
        model_dir=str(folder / "model"),
        backend=backend,
        save_steps=model_steps * _EVERY.get(who, 1),
        model_schedule=SaveSchedule(every_steps=model_steps),
        max_fast_forward=0 if who in (NO_MARKS, NOT_COUNTED) else None,
    )


def count(steps: ShortSteps) -> list[Figure]:
    """Let trainings with and without marks take turns, and return their speeds."""
    with places.folder() as folder, contextlib.ExitStack() as stack:
        trainings = [
            stack.enter_context(_short_steps(steps, folder / str(place), who))
            for place, who in enumerate((NO_HOOK, NOT_COUNTED, COUNTED))
        ]
        case = f"{steps.name}, {number(steps.interval)} steps between saves"
        figures: list[Figure] = []
        for turn in range(steps.rounds + 1):
            for _, training in candidates.turns(trainings, _PARTS):
                training.run_part(steps.interval)
            for training in trainings:
                found = training.take_interval()
                if turn:
                    figures += [Figure(NAME, case, training.who, what, turn, found[what]) for what in found]
        return figures


@dataclass
class _Training:
    """A training that runs a save interval in parts, because a turn should be short."""

    who: str
    session: TrainingSession
    hook: Optional[TimedHook]
    parts: list[float] = field(default_factory=list)
    """Seconds that the parts of this interval took."""
    processor: list[float] = field(default_factory=list)
    """Their processor time."""
    steps: int = 0
    """Steps of this interval."""

    def run_part(self, interval: int) -> None:
        """Train for a part of the interval. The last one has the save, and all of its background work."""
        started, processor = time.perf_counter(), time.process_time()
        for _ in range(interval // _PARTS):
            self.session.step()
        if self.hook is not None:
            self.hook.wait()
        self.parts.append(time.perf_counter() - started)
        self.processor.append(time.process_time() - processor)
        self.steps += interval // _PARTS

    def take_interval(self) -> dict[str, float]:
        """Return the figures of the interval that has ended, and begin the next one."""
        *ordinary, _ = self.processor
        found = {
            STEPS: self.steps / sum(self.parts),
            STEP: 1e6 * statistics.mean(ordinary) * _PARTS / self.steps,
        }
        self.parts, self.processor, self.steps = [], [], 0
        return found


@contextlib.contextmanager
def _short_steps(steps: ShortSteps, folder: Path, who: str) -> Iterator[_Training]:
    hook = None if who == NO_HOOK else _hook(LocalBackend(str(folder / "input")), folder, steps.interval, who)
    hooks = [] if hook is None else [hook]
    with hooked_training(_rows, steps.train, folder / "model", steps.interval, hooks) as session:
        # So that the last part of each interval ends just after its save.
        session.step()
        if hook is not None:
            hook.wait()
        yield _Training(who, session, hook)


def _rows() -> Any:
    """Return batches of small rows, whose state is small too."""
    numbers = tf.data.Dataset.range(1_000).shuffle(100, seed=1).repeat().batch(32, drop_remainder=True)
    return numbers.map(lambda batch: tf.tile(batch[:, tf.newaxis], [1, 64]))
