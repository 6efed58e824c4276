"""What it saves to save the input in full at every 4th or 16th model checkpoint only, and what marks cost.

Every training checkpoints its model equally often. The trainings are in one process and take turns, each in a
session of its own. Between two model checkpoints, nearly the whole buffer is replaced, and all background
work is finished. The cost of counting is measured in the same way, with and without marks.
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
from benchmarks.candidates import TrainingSession
from benchmarks.hooked_training import TimedHook, hooked_training, perceptron
from benchmarks.pipelines import consumed
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

_MODELS = {NO_MARKS: 8, EVERY: 8, FOURTH: 8, SIXTEENTH: 16}
"""Model checkpoints in a round: as many as one full save needs, and otherwise enough for a mean."""

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
    model_steps: int

    @property
    def case(self) -> str:
        """Its name in the results."""
        return f"{pipelines.pictures(self.elements).name}, {'slow S3' if self.remote else 'disk'}"


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


FULL = (Run(100, 3, remote=False, model_steps=10), Run(100, 3, remote=True, model_steps=10))
FULL_STEPS = (
    ShortSteps("steps that do nothing", consumed, 2_000, 3),
    ShortSteps("small steps", small_step, 500, 3),
)
QUICK = (Run(50, 1, remote=False, model_steps=5), Run(50, 1, remote=True, model_steps=5))
QUICK_STEPS = (ShortSteps("steps that do nothing", consumed, 100, 2),)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures: first those of rare saves, then those of counting."""
    with places.slow_s3() as remote:
        for run in QUICK if quick else FULL:
            yield from fresh_process.run(train, run, remote if run.remote else None)
    for steps in QUICK_STEPS if quick else FULL_STEPS:
        yield from fresh_process.run(count, steps)


def train(run: Run, remote: Optional[Place]) -> list[Figure]:
    """Let the trainings take turns, and return the figures of all model checkpoints after the first one."""
    with places.folder() as folder, contextlib.ExitStack() as stack:
        trainings = {who: stack.enter_context(_rare_saves(run, who, folder, remote)) for who in _EVERY}
        return [
            Figure(NAME, run.case, who, what, turn, value)
            for turn, who in candidates.turns(list(_EVERY), run.rounds)
            for what, value in trainings[who].take_round().items()
        ]


@dataclass
class _RareSaves:
    """A training that saves its model in every interval, and its input more or less often."""

    run: Run
    who: str
    session: TrainingSession
    hook: TimedHook
    backend: TrafficBackend
    saved: int = 0
    """Model checkpoints so far, without that of the first step."""

    def take_round(self) -> dict[str, float]:
        """Train for a round, and return its figures."""
        every, models = _EVERY[self.who], _MODELS[self.who]
        self.backend.take_traffic()
        stalls = [self._train_to_model() for _ in range(models)]
        traffic = self.backend.take_traffic()
        marks = [stall for place, stall in enumerate(stalls, 1) if place % every]
        found = {
            STALL: statistics.mean(stalls),
            FULL_STALL: statistics.median(stalls[every - 1 :: every]),
            SAVED: (traffic.uploaded - traffic.marked) / models,
            MARKED: traffic.marked / models,
            WRITTEN: traffic.uploaded / models,
            REQUESTS: traffic.requests / models,
        }
        if marks:
            found[MARK_STALL] = statistics.median(marks)
        return found

    def _train_to_model(self) -> float:
        """Train until after the next model checkpoint. Return for how long the hook kept the training."""
        # One step of this interval was run after the last model checkpoint, or at the start.
        for _ in range(self.run.model_steps - 2):
            self.session.step()
        before = self.hook.seconds
        self.session.step()
        self.session.step()
        stall = self.hook.seconds - before
        self.hook.wait()
        self.saved += 1
        assert self.session.global_step() == self.saved * self.run.model_steps + 1
        return stall


@contextlib.contextmanager
def _rare_saves(run: Run, who: str, folder: Path, remote: Optional[Place]) -> Iterator[_RareSaves]:
    name = who.replace(" ", "-").replace(",", "")
    backend = TrafficBackend(_backend(name, folder / name, remote))
    hook = _hook(backend, folder / name, run.model_steps, who)
    dataset = pipelines.pictures(run.elements).dataset
    with hooked_training(dataset, consumed, folder / name / "model", run.model_steps, [hook]) as session:
        session.step()
        hook.wait()
        yield _RareSaves(run, who, session, hook, backend)


def _backend(name: str, folder: Path, remote: Optional[Place]) -> Backend:
    if remote is None:
        return LocalBackend(str(folder / "input"))
    return open_backend(f"{remote.uri}/rare-saves-{name}", remote.storage_options)


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
