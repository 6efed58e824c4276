"""Steps per second with saves, relative to training without saves.

Every candidate trains for one save interval at a time. The interval starts with the save and includes all of
its background work. The candidates take turns in one session, and all hooks are called in every step of it.
So the ratios show what saves cost. `rare_saves` measures what the hook itself costs, without a save.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from benchmarks import candidates, fresh_process, pipelines, places
from benchmarks.candidates import HookCandidate, Ours, TensorFlowHook, TrainingSession
from benchmarks.names import OURS, OURS_S3, TF_HOOK
from benchmarks.pipelines import Pipeline
from benchmarks.report import Figure, Goal
from input_checkpoint import open_backend
from input_checkpoint.backends.local import LocalBackend
from integration.servers.server import Place

NAME = "throughput"
STEPS = "steps per second"
NO_SAVES = "no saves"
LOST = "training time lost per save [s]"
PROCESSOR = "processor time of the training process [s]"
"""Without that of the emulated storage: a real one uses no cores of the training machine."""

GOALS = (
    Goal(NAME, STEPS, OURS, NO_SAVES, 0.97, at_most=False),
    Goal(NAME, STEPS, OURS_S3, NO_SAVES, 0.97, at_most=False),
    Goal(NAME, STEPS, TF_HOOK, NO_SAVES),
    Goal(NAME, LOST, OURS, TF_HOOK),
    Goal(NAME, PROCESSOR, OURS, NO_SAVES),
    Goal(NAME, PROCESSOR, OURS_S3, NO_SAVES),
    Goal(NAME, PROCESSOR, TF_HOOK, NO_SAVES),
)

_DEVICE_SECONDS = 0.02
_MIN_LOST = 0.001
_BATCH = 8
_NEURONS, _LAYERS = 1200, 3


@dataclass(frozen=True)
class Workload:
    """What a step does, and how often to save."""

    busy: bool
    """True: steps keep the processor busy. False: they wait for a device."""
    elements: int
    interval: float
    """Approximate seconds between two saves."""
    rounds: int


# About 5 % of the pictures are new after eight seconds of busy steps. Steps that wait for a device vary less,
# so shorter intervals are enough.
FULL = (Workload(True, 10_000, 8.0, 3), Workload(False, 500, 2.0, 3))
QUICK = (Workload(True, 200, 1.0, 2), Workload(False, 200, 1.0, 2))


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures: first for steps that keep the processor busy, then for steps that do not."""
    # Real storage takes no processor time from training.
    with places.slow_s3(low_priority=True) as remote:
        for workload in QUICK if quick else FULL:
            yield from fresh_process.run(train, workload, remote)


def train(workload: Workload, remote: Place) -> list[Figure]:
    """Train interval by interval, and return the figures."""
    with places.folder() as folder:
        hooks = [
            Ours(OURS, LocalBackend(str(folder / "ours"))),
            Ours(OURS_S3, open_backend(f"{remote.uri}/throughput-{workload.busy}", remote.storage_options)),
            TensorFlowHook(TF_HOOK, folder / "tensorflow"),
        ]
        pipeline = pipelines.pictures(workload.elements, batch=_BATCH)
        with candidates.training(pipeline, hooks, busy_step if workload.busy else light_step) as session:
            return _take_turns(workload, session, hooks, pipeline)


def busy_step(batch: Any) -> Any:
    """Return the result of a step that keeps two cores busy for an eighth of a second."""
    pictures = [_decode(picture) for picture in tf.unstack(batch, num=_BATCH)]
    features = tf.reshape(tf.cast(tf.stack(pictures), tf.float32), [-1, 1024])
    seed = tf.cast(tf.compat.v1.train.get_global_step(), tf.int32)
    layer = tf.random.stateless_uniform([_NEURONS, _NEURONS], [1, seed])
    for _ in range(_LAYERS):
        layer = tf.matmul(layer, layer) / _NEURONS
    return tf.reduce_sum(tf.matmul(features, tf.ones([1024, 256]))) + tf.reduce_sum(layer)


def light_step(batch: Any) -> Any:
    """Return the result of a step that does next to nothing, as if a device did the work."""
    return tf.reduce_sum(tf.strings.length(batch))


def _decode(picture: Any) -> Any:
    return tf.reshape(tf.io.decode_jpeg(picture, channels=3), [pipelines.CROP[0], pipelines.CROP[1], 3])


def _take_turns(
    workload: Workload, session: TrainingSession, hooks: list[HookCandidate], pipeline: Pipeline
) -> list[Figure]:
    wait = 0.0 if workload.busy else _DEVICE_SECONDS
    steps = max(3, round(workload.interval / _seconds_per_step(session, wait)))
    kind = "processor" if workload.busy else "device"
    case = f"{pipeline.name}, {kind} steps, {workload.interval:.0f} s between saves"
    figures = []
    names = [NO_SAVES, *(hook.name for hook in hooks)]
    by_name = {hook.name: hook for hook in hooks}
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number, name in candidates.turns(names, workload.rounds):
        if name == TF_HOOK and number and workload.busy:
            continue  # no goal is about it, and it takes the longest
        started, processor = time.perf_counter(), time.process_time()
        if name == NO_SAVES:
            _train(session, steps, wait)
        else:
            by_name[name].save()
            _train(session, steps - 2, wait)
            # What is still running belongs to this interval as well.
            by_name[name].wait_until_durable()
        seconds = time.perf_counter() - started
        spent[name].append(seconds)
        figures.append(Figure(NAME, case, name, STEPS, number, steps / seconds))
        figures.append(Figure(NAME, case, name, PROCESSOR, number, time.process_time() - processor))
    # Compares medians, because a single interval varies by more than a save takes.
    without_saves = statistics.median(spent.pop(NO_SAVES))
    for name, intervals in spent.items():
        lost = max(_MIN_LOST, statistics.median(intervals) - without_saves)
        figures.append(Figure(NAME, case, name, LOST, 0, lost))
    return figures


def _seconds_per_step(session: TrainingSession, wait: float) -> float:
    _train(session, 3, wait)
    started = time.perf_counter()
    _train(session, 10, wait)
    return (time.perf_counter() - started) / 10


def _train(session: TrainingSession, steps: int, wait: float) -> None:
    for _ in range(steps):
        session.step()
        if wait:
            time.sleep(wait)
