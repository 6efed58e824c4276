"""Pipelines that draw the same batches again, and some that do not, by name. Each yields ids below 1000."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import tensorflow as tf

from tests.support.training import BATCH, shuffled_ids

Dataset = tf.data.Dataset
AUTOTUNE = tf.data.AUTOTUNE


def seeded() -> Any:
    return shuffled_ids()


def shifted() -> Any:
    """As ``seeded``, but the data was replaced by other data of the same size."""
    return Dataset.range(300, 600).shuffle(100, seed=7).repeat().batch(BATCH)


def reseeded() -> Any:
    """As ``seeded``, but with another seed."""
    return shuffled_ids(seed=8)


def parallel_map() -> Any:
    ids = Dataset.range(300).shuffle(100, seed=7).repeat()
    return ids.map(lambda number: number + 0, num_parallel_calls=4).batch(BATCH).prefetch(4)


def parallel_interleave() -> Any:
    def part(start: Any) -> Any:
        return Dataset.range(start, start + 30)

    starts = Dataset.range(0, 300, 30)
    ids = starts.interleave(part, cycle_length=4, num_parallel_calls=4, deterministic=True)
    return ids.shuffle(50, seed=3).repeat().batch(BATCH)


def cached() -> Any:
    return (
        Dataset.range(200).cache().shuffle(100, seed=5, reshuffle_each_iteration=True).repeat().batch(BATCH)
    )


def unseeded() -> Any:
    """A pass has 15 batches: most fast-forwards begin another pass."""
    return Dataset.range(60).shuffle(60).repeat().batch(BATCH)


def unseeded_once() -> Any:
    """One pass only."""
    return Dataset.range(1000).shuffle(300).batch(BATCH)


def sloppy() -> Any:
    """Which part comes first depends on the time that each takes."""

    def wait(number: Any) -> Any:
        time.sleep(float(np.random.default_rng().uniform(0, 0.002)))
        return number

    def part(start: Any) -> Any:
        numbers = Dataset.range(start, start + 100)
        return numbers.map(lambda number: tf.ensure_shape(tf.numpy_function(wait, [number], tf.int64), []))

    starts = Dataset.range(0, 1000, 100)
    return starts.interleave(part, cycle_length=5, num_parallel_calls=5, deterministic=False).batch(BATCH)


PIPELINES = {
    build.__name__: build
    for build in (
        seeded,
        shifted,
        reseeded,
        parallel_map,
        parallel_interleave,
        cached,
        unseeded,
        unseeded_once,
        sloppy,
    )
}
REPEATABLE = ("seeded", "parallel_map", "parallel_interleave", "cached", "unseeded_once")
