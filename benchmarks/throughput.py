"""Steps per second while states are saved, relative to no saves at all.

Every competitor trains for one save interval at a time, with its save at the beginning and everything that
the save does behind training within. The intervals of all competitors take turns in one session.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from benchmarks import apart, competitors, pipelines, places
from benchmarks.competitors import (
    OURS,
    OURS_S3,
    TF_HOOK,
    HookCompetitor,
    Ours,
    TensorFlowHook,
    TrainingSession,
)
from benchmarks.pipelines import Pipeline
from benchmarks.report import Figure, Goal
from input_checkpoint import open_backend
from input_checkpoint.backends.local import LocalBackend
from integration.servers.server import Place

NAME = "throughput"
STEPS = "steps a second"
NOBODY = "no saves"
LOST = "training lost a save [s]"
PROCESSOR = "processor time of training's process [s]"
"""Without that of the emulated storage, which no real one takes from the cores that training runs on."""

GOALS = (
    Goal(NAME, STEPS, OURS, NOBODY, 0.97, at_most=False),
    Goal(NAME, STEPS, OURS_S3, NOBODY, 0.97, at_most=False),
    Goal(NAME, STEPS, TF_HOOK, NOBODY),
    Goal(NAME, LOST, OURS, TF_HOOK),
    Goal(NAME, PROCESSOR, OURS, NOBODY),
    Goal(NAME, PROCESSOR, OURS_S3, NOBODY),
    Goal(NAME, PROCESSOR, TF_HOOK, NOBODY),
)

_DEVICE_SECONDS = 0.02
_LEAST_LOST = 0.001
_BATCH = 8


@dataclass(frozen=True)
class Course:
    """What is run."""

    busy: bool
    """Whether steps keep the processor busy, or wait for a device."""
    elements: int
    interval: float
    """Seconds from save to save, about."""
    rounds: int


# Steps that wait for a device vary by less, so that shorter intervals tell as much.
FULL = (Course(True, 1_000, 8.0, 3), Course(False, 1_000, 4.0, 2))
QUICK = (Course(True, 200, 1.0, 2), Course(False, 200, 1.0, 2))


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, first of steps that keep the processor busy, then of such that do not."""
    with places.slow_s3() as remote:
        for course in QUICK if quick else FULL:
            yield from apart.run(train, course, remote)


def train(course: Course, remote: Place) -> list[Figure]:
    """Train, interval by interval."""
    with places.folder() as folder:
        hooks = [
            Ours(OURS, LocalBackend(str(folder / "ours"))),
            Ours(OURS_S3, open_backend(f"{remote.uri}/throughput-{course.busy}", remote.storage_options)),
            TensorFlowHook(TF_HOOK, folder / "tensorflow"),
        ]
        pipeline = pipelines.pictures(course.elements, batch=_BATCH)
        with competitors.training(pipeline, hooks, busy_step if course.busy else light_step) as session:
            return _take_turns(course, session, hooks, pipeline)


def busy_step(batch: Any) -> Any:
    """Return an operation that keeps all cores busy for about as long as a device would take."""
    decoded = tf.map_fn(_decode, batch, fn_output_signature=tf.uint8)
    features = tf.reshape(tf.cast(decoded, tf.float32), [-1, 1024])
    weights = tf.ones([1024, 256])
    return tf.reduce_sum(tf.matmul(features, weights))


def light_step(batch: Any) -> Any:
    """Return an operation that does next to nothing: the device does the rest."""
    return tf.strings.length(batch)


def _decode(picture: Any) -> Any:
    return tf.reshape(tf.io.decode_jpeg(picture, channels=3), [pipelines.CROP[0], pipelines.CROP[1], 3])


def _take_turns(
    course: Course, session: TrainingSession, hooks: list[HookCompetitor], pipeline: Pipeline
) -> list[Figure]:
    wait = 0.0 if course.busy else _DEVICE_SECONDS
    steps = max(3, round(course.interval / _seconds_a_step(session, wait)))
    kind = "processor" if course.busy else "device"
    case = f"{pipeline.name}, {kind} steps, {course.interval:.0f} s between saves"
    figures = []
    names = [NOBODY, *(hook.name for hook in hooks)]
    by_name = {hook.name: hook for hook in hooks}
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number, name in competitors.turns(names, course.rounds):
        started, processor = time.perf_counter(), time.process_time()
        if name == NOBODY:
            _train(session, steps, wait)
        else:
            by_name[name].save()
            _train(session, steps - 2, wait)
            # Whatever is not done by now belongs to this interval as well.
            by_name[name].settle()
        seconds = time.perf_counter() - started
        spent[name].append(seconds)
        figures.append(Figure(NAME, case, name, STEPS, number, steps / seconds))
        figures.append(Figure(NAME, case, name, PROCESSOR, number, time.process_time() - processor))
    # Of medians, since a single interval varies by more than a save takes.
    alone = statistics.median(spent.pop(NOBODY))
    for name, several in spent.items():
        lost = max(_LEAST_LOST, statistics.median(several) - alone)
        figures.append(Figure(NAME, case, name, LOST, 0, lost))
    return figures


def _seconds_a_step(session: TrainingSession, wait: float) -> float:
    _train(session, 3, wait)
    started = time.perf_counter()
    _train(session, 10, wait)
    return (time.perf_counter() - started) / 10


def _train(session: TrainingSession, steps: int, wait: float) -> None:
    for _ in range(steps):
        session.step()
        if wait:
            time.sleep(wait)
