"""Input pipelines of many kinds, by what they do. Building one runs nothing and reads no file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from input_checkpoint.tensorflow.dataset_graph import Pipeline, read_pipelines
from input_checkpoint.tensorflow.fingerprint import fingerprint_iterators
from input_checkpoint.training.pipeline_change import Fingerprint

v1 = tf.compat.v1
Dataset = tf.data.Dataset
TextLines = tf.data.TextLineDataset
Build = Callable[[], Any]

FILES = [f"/data/part-{index}" for index in range(5)]


def numbers(count: int = 100) -> Any:
    return Dataset.range(count)


def increment(number: Any) -> Any:
    return number + 1


def parsed(files: Sequence[str] = FILES, **options: Any) -> Any:
    """Numbers from text files."""
    lines = Dataset.from_tensor_slices(files).interleave(TextLines, **{"cycle_length": 2, **options})
    return lines.map(lambda line: tf.strings.to_number(line, tf.int64))


def lengths(buckets: Sequence[int]) -> Any:
    rows = numbers().map(lambda number: tf.fill([number % 20 + 1], number))
    return rows.bucket_by_sequence_length(tf.size, list(buckets), [4] * (len(buckets) + 1))


def mixed(weights: Sequence[float], **options: Any) -> Any:
    parts = [Dataset.range(k * 100, k * 100 + 50).repeat() for k in range(len(weights))]
    return Dataset.sample_from_datasets(parts, list(weights), seed=1, **options)


def with_options(dataset: Any, **values: Any) -> Any:
    options = tf.data.Options()
    for name, value in values.items():
        setattr(options, name, value)
    return dataset.with_options(options)


def looked_up() -> Any:
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2]), -1)
    return Dataset.from_tensor_slices(["a", "b", "c"]).map(table.lookup)


def scaled(factor: int) -> Any:
    constant = tf.constant(factor, tf.int64)
    return numbers().map(lambda number: number * constant)


def branching(number: Any) -> Any:
    return tf.cond(number > 3, lambda: number * 2, lambda: number - 1)


def looping(number: Any) -> Any:
    return tf.while_loop(lambda total: total < 10, lambda total: total + 3, [number])


@tf.function
def traced(number: Any) -> Any:
    return number * 5


PIPELINES: dict[str, Build] = {
    "range": numbers,
    "tensors": lambda: Dataset.from_tensors({"a": 1.0, "b": "text"}),
    "slices": lambda: Dataset.from_tensor_slices(np.arange(20)),
    "large slices": lambda: Dataset.from_tensor_slices(np.arange(200_000.0)),
    "slices of text": lambda: Dataset.from_tensor_slices(["x", "y"]),
    "sparse slices": lambda: Dataset.from_tensor_slices(tf.sparse.from_dense([[1, 0], [0, 2]])),
    "ragged slices": lambda: Dataset.from_tensor_slices(tf.ragged.constant([[1], [2, 3]])),
    "text lines": lambda: TextLines(FILES),
    "text lines in parallel": lambda: TextLines(FILES, num_parallel_reads=2),
    "gzipped text lines": lambda: TextLines(FILES, compression_type="GZIP"),
    "records": lambda: tf.data.TFRecordDataset(FILES),
    "records in parallel": lambda: tf.data.TFRecordDataset(FILES, num_parallel_reads=3),
    "fixed-length records": lambda: tf.data.FixedLengthRecordDataset(FILES, 16, header_bytes=4),
    "csv": lambda: tf.data.experimental.CsvDataset(FILES, [tf.int64, tf.float32]),
    "csv with header": lambda: tf.data.experimental.CsvDataset(FILES, [tf.int64], header=True),
    "random": lambda: Dataset.random(seed=3),
    "counter": lambda: Dataset.counter(),
    "listed files": lambda: Dataset.list_files("/data/*", seed=1),
    "map": lambda: numbers().map(increment),
    "map with a captured constant": lambda: scaled(3),
    "map in parallel": lambda: numbers().map(increment, num_parallel_calls=4),
    "autotuned map": lambda: numbers().map(increment, num_parallel_calls=tf.data.AUTOTUNE),
    "map with a branch": lambda: numbers().map(branching),
    "map with a loop": lambda: numbers().map(looping),
    "map with a tf.function": lambda: numbers().map(traced),
    "map to a dict": lambda: numbers().map(lambda number: {"a": number, "b": tf.as_string(number)}),
    "map with a table": looked_up,
    "map with random numbers": lambda: numbers().map(lambda number: tf.random.uniform([3])),
    "map with stateless random numbers": lambda: numbers().map(
        lambda number: tf.random.stateless_uniform([3], [number, 7])
    ),
    "map with Python": lambda: numbers().map(lambda n: tf.numpy_function(lambda x: x, [n], tf.int64)),
    "filter": lambda: numbers().filter(lambda number: tf.equal(number % 2, 0)),
    "shuffle": lambda: numbers().shuffle(10, seed=1),
    "shuffle without a seed": lambda: numbers().shuffle(10),
    "shuffle once": lambda: numbers().shuffle(10, seed=1, reshuffle_each_iteration=False),
    "batch": lambda: numbers().batch(4),
    "batch without remainder": lambda: numbers().batch(4, drop_remainder=True),
    "batch in parallel": lambda: numbers().batch(4, num_parallel_calls=2),
    "padded batch": lambda: numbers().map(lambda n: tf.fill([n % 3], n)).padded_batch(4),
    "ragged batch": lambda: numbers().map(lambda n: tf.fill([n % 3], n)).ragged_batch(4),
    "unbatch": lambda: numbers().batch(4).unbatch(),
    "rebatch": lambda: numbers().batch(4).rebatch(3),
    "repeat": lambda: numbers().repeat(),
    "repeat thrice": lambda: numbers().repeat(3),
    "take and skip": lambda: numbers().skip(3).take(20),
    "take while": lambda: numbers().take_while(lambda number: number < 30),
    "shard": lambda: numbers().shard(4, 1),
    "prefetch": lambda: numbers().batch(4).prefetch(2),
    "autotuned prefetch": lambda: numbers().batch(4).prefetch(tf.data.AUTOTUNE),
    "cache in memory": lambda: numbers().cache(),
    "cache in a file": lambda: numbers().cache("/data/cache"),
    "snapshot": lambda: numbers().snapshot("/data/snapshot"),
    "interleave": lambda: parsed(),
    "interleave in parallel": lambda: parsed(num_parallel_calls=2),
    "unordered interleave": lambda: parsed(num_parallel_calls=2, deterministic=False),
    "flat_map": lambda: Dataset.from_tensor_slices(FILES).flat_map(TextLines),
    "flat_map of maps": lambda: numbers().flat_map(lambda n: Dataset.range(n).map(lambda m: m * n)),
    "shuffles inside interleave": lambda: numbers(5).interleave(
        lambda n: Dataset.range(n).shuffle(5, seed=2), cycle_length=2
    ),
    "window": lambda: numbers().window(5, shift=2).flat_map(lambda window: window.batch(5)),
    "group by window": lambda: numbers().group_by_window(
        lambda n: n % 3, lambda key, group: group.batch(5), window_size=5
    ),
    "buckets": lambda: lengths([5, 10]),
    "scan": lambda: numbers().scan(np.int64(0), lambda state, number: (state + number, state)),
    "unique": lambda: numbers().map(lambda number: number % 7).unique(),
    "enumerate": lambda: numbers().enumerate(),
    "zip": lambda: Dataset.zip((numbers(), numbers().map(increment))),
    "zip of one dataset with itself": lambda: (lambda one: Dataset.zip((one, one)))(numbers().map(increment)),
    "concatenate": lambda: numbers(10).concatenate(numbers(20)),
    "sample": lambda: mixed([0.3, 0.7]),
    "choose": lambda: Dataset.choose_from_datasets(
        [numbers(3).repeat(), numbers(5).repeat()], numbers(2).repeat()
    ),
    "rejection resample": lambda: numbers().rejection_resample(lambda n: n % 2, [0.2, 0.8], seed=1),
    "options": lambda: with_options(numbers().map(increment), deterministic=False),
    "ignore errors": lambda: numbers().map(increment).ignore_errors(),
    "images": lambda: (
        Dataset.from_tensor_slices(FILES)
        .shuffle(1000, seed=1)
        .interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=4)
        .map(lambda record: tf.io.parse_single_example(record, {"x": tf.io.FixedLenFeature([8], tf.float32)}))
        .shuffle(500, seed=2)
        .repeat()
        .batch(32, drop_remainder=True)
        .prefetch(2)
    ),
    "a hundred concatenated datasets": lambda: _concatenated(100),
}


def _concatenated(count: int) -> Any:
    dataset = numbers(1)
    for index in range(2, count + 1):
        dataset = dataset.concatenate(numbers(index).map(increment))
    return dataset


def read(build: Build, one_shot: bool = False) -> dict[str, Pipeline]:
    """What the graph says of a pipeline."""
    with tf.Graph().as_default() as graph:
        make = v1.data.make_one_shot_iterator if one_shot else v1.data.make_initializable_iterator
        make(build()).get_next()
        return read_pipelines(graph, graph.get_collection("iterators"))


def fingerprint_of(build: Build, one_shot: bool = False) -> Fingerprint:
    (fingerprint,) = fingerprint_iterators(read(build, one_shot)).values()
    return fingerprint


def print_fingerprints() -> None:
    """As another program would take them: with other functions before, another seed, in another order."""
    for _ in range(20):
        numbers().map(lambda number: number * 3)
    found = {}
    for name in reversed(PIPELINES):
        with tf.Graph().as_default() as graph:
            v1.set_random_seed(17)
            tf.constant(1) + tf.constant(2)
            v1.data.make_initializable_iterator(numbers(3).map(increment).batch(2))
            iterator = v1.data.make_initializable_iterator(PIPELINES[name]())
            iterator.get_next()
            resources = graph.get_collection("iterators")[-1:]
            (found[name],) = fingerprint_iterators(read_pipelines(graph, resources)).values()
    json.dump({name: fingerprint.to_json() for name, fingerprint in found.items()}, sys.stdout)


if __name__ == "__main__":
    print_fingerprints()
