"""Pipelines of all kinds, and whether another process draws the same from them after a restore.

``python -m tests.support.repeatability FOLDER`` is that other process.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from input_checkpoint.state import Element, ElementBatch, IteratorState, StoredState
from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.shuffle_seeds import ShuffleSeeds, began_another_pass
from input_checkpoint.tensorflow.variants import split_payload, split_variants
from tests.support.pipelines import Build, Dataset, TextLines, increment, numbers, read, with_options
from tests.support.restoring import plain_iterator

v1 = tf.compat.v1
experimental = tf.data.experimental

SAVED_AT = (0, 27)
DRAWS = (5, 35)
"""How many batches are drawn after the restore, and how many more after that."""
_READ_AHEAD_SECONDS = 0.02
_FILES = 4
_ROWS = 60


@dataclass(frozen=True)
class Row:
    """One pipeline, and what we say of it."""

    build: Build
    refused: str = ""
    """A pattern that the reason matches. Empty if it is repeatable."""
    restarts: bool = False
    """Whether it restarts at random."""
    differs: bool = False
    """Whether another process is known to draw something else."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn after one restore, until one of `DRAWS`."""

    batches: list[Any]
    another_pass: bool


def table(folder: Path) -> dict[str, Row]:
    """Return the pipelines by name. Their files are in a folder."""
    return {**_certain(folder), **_restarting(folder), **_refused(folder)}


def write_files(folder: Path) -> None:
    """Write what the pipelines read."""
    for index in range(_FILES):
        values = range(index * 1000, index * 1000 + _ROWS)
        (folder / f"{index}.txt").write_text("".join(f"{value}\n" for value in values))
        (folder / f"{index}.bin").write_bytes(np.array(values, np.int64).tobytes())
        with tf.io.TFRecordWriter(str(folder / f"{index}.records")) as writer:
            for value in values:
                feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
                example = tf.train.Example(features=tf.train.Features(feature={"x": feature}))
                writer.write(example.SerializeToString())


def save(folder: Path, name: str, row: Row) -> list[list[Any]]:
    """Save the states of a pipeline in a folder. Return what this process draws after each of them."""
    found = []
    for index, saved_at in enumerate(SAVED_AT):
        with plain_iterator(row.build) as iterator:
            iterator.draw(saved_at)
            time.sleep(_READ_AHEAD_SECONDS)
            (folder / f"{name}.{index}.state").write_bytes(iterator.save())
            found.append(iterator.draw(sum(DRAWS)))
    return found


def draw_elsewhere(folder: Path) -> dict[str, list[list[Drawn]]]:
    """Return what another process draws from the states in a folder, by name and state."""
    subprocess.run(
        [sys.executable, "-m", "tests.support.repeatability", str(folder)], check=True, timeout=250
    )
    found: dict[str, list[list[Drawn]]] = pickle.loads((folder / "drawn").read_bytes())
    return found


def elements(state: bytes) -> list[Element]:
    """The elements of a state that TensorFlow has encoded."""
    return [split_payload(variant) for variant in split_variants(state)]


def tapped(seeds: ShuffleSeeds, name: str, state: bytes) -> None:
    """Note the seeds of a state, as a restore does."""
    found = elements(state)
    batch = ElementBatch(range(len(found)), found)
    for stored in seeds.tap([StoredState(name, len(found), iter([batch]))]):
        for _ in stored.batches:
            pass


def _restore(build: Build, pipelines: Mapping[str, Pipeline], state: bytes) -> Iterator[Drawn]:
    (name,) = pipelines
    seeds = ShuffleSeeds(pipelines)
    tapped(seeds, name, state)
    with plain_iterator(build) as iterator:
        iterator.restore(state)
        batches: list[Any] = []
        for count in DRAWS:
            batches = batches + iterator.draw(count)
            after = seeds.seeds_in([IteratorState(name, elements(iterator.save()))])
            yield Drawn(batches, began_another_pass(seeds.restored, after))


def _certain(folder: Path) -> dict[str, Row]:
    files = [str(folder / f"{index}.txt") for index in range(_FILES)]
    records = [str(folder / f"{index}.records") for index in range(_FILES)]
    features = {"x": tf.io.FixedLenFeature([], tf.int64)}

    def shuffled(count: int = 400, seed: Optional[int] = 1, **options: Any) -> Any:
        return numbers(count).shuffle(50, seed=seed, **options)

    def graph_seed() -> Any:
        v1.set_random_seed(3)
        return shuffled(40, None).repeat()

    def table_lookup() -> Any:
        keys = tf.constant([1, 2], tf.int64)
        lookup = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, keys * 10), -1)
        return shuffled().map(lookup.lookup)

    builds: dict[str, Build] = {
        "range": lambda: numbers(400),
        "tensors": lambda: Dataset.from_tensors(3).repeat(),
        "slices": lambda: Dataset.from_tensor_slices(np.arange(400)),
        "sparse tensors": lambda: Dataset.from_tensors(tf.sparse.eye(3)).repeat().map(tf.sparse.to_dense),
        "sparse slices": lambda: Dataset.from_tensor_slices(tf.sparse.eye(90)).map(tf.sparse.to_dense),
        "ragged slices": lambda: Dataset.from_tensor_slices(tf.ragged.constant([[1], [2, 3]] * 90)).map(
            lambda row: row + 1
        ),
        "text lines": lambda: TextLines(files),
        "text lines in parallel": lambda: TextLines(files, num_parallel_reads=3),
        "records": lambda: tf.data.TFRecordDataset(records),
        "autotuned records": lambda: tf.data.TFRecordDataset(records, num_parallel_reads=tf.data.AUTOTUNE),
        "fixed length": lambda: tf.data.FixedLengthRecordDataset(str(folder / "0.bin"), 8).repeat(),
        "csv": lambda: experimental.CsvDataset(files, [tf.int64]),
        "parsed examples": lambda: (
            tf.data.TFRecordDataset(records).batch(3).apply(experimental.parse_example_dataset(features, 2))
        ),
        "map": lambda: shuffled().map(increment),
        "parallel map": lambda: shuffled().map(increment, num_parallel_calls=4),
        "autotuned map": lambda: shuffled().map(increment, num_parallel_calls=tf.data.AUTOTUNE),
        "ordered map": lambda: shuffled().map(increment, num_parallel_calls=2, deterministic=True),
        "filter": lambda: numbers(400).filter(lambda number: tf.equal(number % 2, 0)),
        "map and batch": lambda: shuffled().map(increment, num_parallel_calls=2).batch(3),
        "batch in parallel": lambda: shuffled().batch(3, num_parallel_calls=2),
        "padded batch": lambda: numbers(400).map(lambda n: tf.fill([n % 3], n)).padded_batch(4),
        "sparse batch": lambda: (
            numbers(400)
            .map(lambda n: tf.fill([n % 3], n))
            .apply(experimental.dense_to_sparse_batch(3, [3]))
            .map(tf.sparse.to_dense)
        ),
        "unbatch": lambda: shuffled().batch(4).unbatch(),
        "rebatch": lambda: shuffled().batch(4).rebatch(3),
        "repeat": lambda: numbers(9).repeat(),
        "repeat thrice": lambda: numbers(20).repeat(3),
        "take and skip": lambda: shuffled().skip(3).take(300),
        "take while": lambda: numbers(400).take_while(lambda number: number < 60),
        "shard": lambda: shuffled().shard(4, 1),
        "prefetch": lambda: shuffled().batch(4).prefetch(tf.data.AUTOTUNE),
        "cache": lambda: numbers(25).map(increment).cache().repeat(),
        "shuffled cache": lambda: numbers(25).cache().shuffle(9, seed=1).repeat(),
        "cache in a file": lambda: numbers(25).cache(str(folder / "cache")).shuffle(9, seed=1).repeat(),
        "interleave": lambda: Dataset.from_tensor_slices(files).interleave(TextLines, 2),
        "interleave in parallel": lambda: Dataset.from_tensor_slices(files).interleave(
            TextLines, 2, num_parallel_calls=2
        ),
        "autotuned interleave": lambda: (
            Dataset.from_tensor_slices(files)
            .shuffle(9, seed=1)
            .repeat()
            .interleave(TextLines, 3, num_parallel_calls=tf.data.AUTOTUNE)
        ),
        "flat_map": lambda: Dataset.from_tensor_slices(files).flat_map(TextLines),
        "seeded shuffle in interleave": lambda: (
            numbers(9)
            .interleave(lambda n: Dataset.range(n * 100, n * 100 + 50).shuffle(9, seed=2), 3)
            .repeat()
        ),
        "window": lambda: numbers(400).window(5, shift=2).flat_map(lambda window: window.batch(5)),
        "group by window": lambda: numbers(400).group_by_window(
            lambda n: n % 3, lambda key, group: group.batch(5), window_size=5
        ),
        "buckets": lambda: (
            numbers(400)
            .map(lambda number: tf.fill([number % 20 + 1], number))
            .bucket_by_sequence_length(tf.size, [5, 10], [4, 4, 4])
        ),
        "scan": lambda: numbers(400).scan(np.int64(0), lambda state, number: (state + number, state)),
        "known size": lambda: shuffled().apply(experimental.assert_cardinality(400)),
        "group by reducer": lambda: numbers(400).apply(
            experimental.group_by_reducer(
                lambda number: number % 90,
                experimental.Reducer(
                    lambda _: np.int64(0), lambda total, each: total + each, lambda total: total
                ),
            )
        ),
        "map_and_batch": lambda: shuffled().apply(experimental.map_and_batch(increment, 3, 2)),
        "unique": lambda: numbers(400).map(lambda number: number % 90).unique(),
        "enumerate": lambda: shuffled().enumerate(),
        "zip": lambda: Dataset.zip((shuffled(), shuffled(seed=2))),
        "concatenate": lambda: numbers(30).concatenate(numbers(90)),
        "sample": lambda: Dataset.sample_from_datasets(
            [numbers(9).repeat(), numbers(7).repeat()], [0.3, 0.7], seed=1
        ),
        "choose": lambda: Dataset.choose_from_datasets(
            [numbers(3).repeat(), numbers(5).repeat()], numbers(2).repeat()
        ),
        "ignore errors": lambda: numbers(400).map(lambda number: 100 // (number % 3)).ignore_errors(),
        "random numbers": lambda: Dataset.random(seed=1),
        "seeded shuffle": lambda: shuffled(40).repeat(),
        "seeded shuffle once": lambda: shuffled(40, reshuffle_each_iteration=False).repeat(),
        "seeded shuffle and repeat": lambda: numbers(40).apply(
            experimental.shuffle_and_repeat(9, None, seed=1)
        ),
        "seed of the graph": graph_seed,
        "files in order": lambda: Dataset.list_files(files, shuffle=False).flat_map(TextLines),
        "files shuffled with a seed": lambda: Dataset.list_files(files, seed=1).flat_map(TextLines).repeat(),
        "lookup table": table_lookup,
        "a function without state": lambda: shuffled().map(
            lambda n: tf.numpy_function(lambda x: x, [n], tf.int64, stateful=False)
        ),
        "stateless random numbers": lambda: shuffled().map(lambda n: tf.random.stateless_uniform([], [n, 1])),
        "slack": lambda: with_options(shuffled().batch(3).prefetch(2), experimental_slack=True),
        "one pass without a seed": lambda: shuffled(seed=None),
        "an endless pass without a seed": lambda: numbers(30).repeat().shuffle(9),
        "one pass without a seed, mapped and batched": lambda: (
            Dataset.zip((shuffled(seed=None), shuffled(seed=None)))
            .map(lambda left, right: left + right, num_parallel_calls=2)
            .filter(lambda number: number % 3 > 0)
            .batch(3, num_parallel_calls=2)
            .unbatch()
            .scan(np.int64(0), lambda state, number: (state + number, state))
            .window(2)
            .flat_map(lambda window: window.batch(2))
            .interleave(Dataset.from_tensor_slices, 2)
            .interleave(Dataset.from_tensors, 2, num_parallel_calls=2)
            .take_while(lambda number: number >= 0)
            .skip(1)
            .take(300)
            .shard(2, 0)
            .ignore_errors()
            .padded_batch(2)
            .rebatch(1)
            .map(increment)
            .prefetch(2)
        ),
        "one pass without a seed, with options": lambda: with_options(
            shuffled(seed=None), experimental_slack=True
        ),
        "random numbers without a seed": lambda: Dataset.random(),
        "sample without a seed": lambda: Dataset.sample_from_datasets(
            [numbers(9).repeat(), numbers(7).repeat()], [0.3, 0.7], stop_on_empty_dataset=True
        ),
    }
    return {name: Row(build) for name, build in builds.items()}


def _restarting(folder: Path) -> dict[str, Row]:
    files = [str(folder / f"{index}.txt") for index in range(_FILES)]

    def short(count: int = 60) -> Any:
        return numbers(count).shuffle(9)

    def inner(number: Any) -> Any:
        return Dataset.range(number * 1000, number * 1000 + 60).shuffle(9)

    builds: dict[str, Build] = {
        "shuffle and repeat": lambda: short().repeat(),
        "shuffle, repeat and batch": lambda: short().repeat().batch(2),
        "batch before repeat": lambda: short().batch(2).repeat(),
        "many short passes": lambda: numbers(3).shuffle(3).repeat(),
        "many short passes of batches": lambda: numbers(3).shuffle(3).batch(2).repeat(),
        "many short passes of prefetched batches": lambda: (
            numbers(3).shuffle(3).batch(3).prefetch(1).repeat()
        ),
        "one order": lambda: numbers(60).shuffle(9, reshuffle_each_iteration=False).repeat(),
        "one order of batches": lambda: (
            numbers(60).shuffle(9, reshuffle_each_iteration=False).batch(2).repeat()
        ),
        "two passes": lambda: short().repeat(2),
        "two passes of batches": lambda: short().batch(2).repeat(2),
        "cache, shuffle, repeat": lambda: numbers(60).cache().shuffle(9).repeat(),
        "shuffle, cache, repeat": lambda: short().cache().repeat(),
        "shuffled files": lambda: Dataset.list_files(files).interleave(TextLines, 2).repeat(),
        "shuffled files, shuffled lines": lambda: (
            Dataset.list_files(files).interleave(TextLines, 2).shuffle(9).batch(2).repeat()
        ),
        "shuffle_and_repeat": lambda: numbers(60).apply(experimental.shuffle_and_repeat(9)),
        "inside flat_map": lambda: numbers(4).flat_map(inner).repeat(),
        "inside interleave": lambda: numbers(4).interleave(inner, 2).repeat(),
        "inside parallel interleave": lambda: numbers(4).interleave(inner, 2, num_parallel_calls=2).repeat(),
        "batches inside interleave": lambda: numbers(40).interleave(lambda n: inner(n).batch(60), 2),
        "short batches inside interleave": lambda: numbers(90).interleave(
            lambda n: Dataset.range(n, n + 3).shuffle(3).batch(2), 2
        ),
        "a long and many short ones": lambda: numbers(90).interleave(
            lambda n: Dataset.range(tf.where(n < 1, tf.constant(900, tf.int64), 3)).shuffle(3), 2
        ),
        "the same element again": lambda: Dataset.from_tensors(np.int64(1)).repeat().interleave(inner, 2),
        "two passes inside": lambda: numbers(4).flat_map(lambda n: inner(n).repeat(2)),
        "two shuffles": lambda: numbers(200).shuffle(9).batch(2).shuffle(9),
        "two shuffles of little": lambda: numbers(90).shuffle(9).batch(2).shuffle(900),
        "two shuffles of which one has a seed": lambda: short(30).batch(2).shuffle(9, seed=1).repeat(),
        "after a concatenation": lambda: numbers(20).concatenate(short()).repeat(),
        "batches after a concatenation": lambda: numbers(9).concatenate(short(90)).batch(20).unbatch(),
        "sampled again": lambda: Dataset.sample_from_datasets(
            [numbers(90), numbers(90)], stop_on_empty_dataset=True
        ).repeat(),
        "a dataset that is read twice": lambda: (lambda one: Dataset.zip((one, one)))(short().repeat()),
    }
    return {name: Row(build, restarts=True) for name, build in builds.items()}


def _refused(folder: Path) -> dict[str, Row]:
    files = [str(folder / f"{index}.txt") for index in range(_FILES)]

    features = {"x": tf.io.FixedLenFeature([], tf.int64)}

    def unordered(dataset: Any) -> Any:
        return with_options(dataset, deterministic=False)

    def interleaved(**options: Any) -> Any:
        return Dataset.from_tensor_slices(files).interleave(TextLines, 2, num_parallel_calls=2, **options)

    def generated() -> Any:
        return Dataset.from_generator(lambda: iter(range(90)), output_signature=tf.TensorSpec([], tf.int64))

    def fed() -> Any:
        return Dataset.from_tensor_slices(v1.placeholder(tf.int64, [9]))

    def reduced(number: Any) -> Any:
        return numbers(9).shuffle(9).reduce(np.int64(0), lambda total, each: total * 10 + each) + number

    def noisy(number: Any) -> Any:
        return number + tf.random.uniform([], 0, 1000, tf.int64)

    def mutable_table() -> Any:
        lookup = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
        return numbers().map(lookup.lookup)

    def variable() -> Any:
        return Dataset.range(v1.get_variable("limit", [], tf.int64))

    return {
        "options": Row(lambda: unordered(numbers()), r"tf.data.Options.deterministic=False"),
        "options inside": Row(
            lambda: numbers().flat_map(lambda n: unordered(numbers())), r"tf.data.Options.deterministic=False"
        ),
        "unordered interleave": Row(
            lambda: interleaved(deterministic=False), r"interleave\(deterministic=False\)"
        ),
        "unordered map": Row(
            lambda: numbers().map(increment, num_parallel_calls=2, deterministic=False),
            r"map\(deterministic=False\)",
        ),
        "unordered map inside": Row(
            lambda: numbers().flat_map(
                lambda n: Dataset.range(n).map(increment, num_parallel_calls=2, deterministic=False)
            ),
            r"map\(deterministic=False\)",
        ),
        "unordered batch": Row(
            lambda: numbers().batch(2, num_parallel_calls=2, deterministic=False),
            r"batch\(deterministic=False\)",
        ),
        "unordered examples": Row(
            lambda: (
                numbers()
                .map(tf.strings.as_string)
                .batch(2)
                .apply(experimental.parse_example_dataset(features, 2, deterministic=False))
            ),
            r"parse_example_dataset\(deterministic=False\)",
        ),
        "sloppy parallel_interleave": Row(
            lambda: numbers().apply(experimental.parallel_interleave(Dataset.range, 2, sloppy=True)),
            r"parallel_interleave\(deterministic=False\)",
        ),
        "generator": Row(generated, "`from_generator`"),
        "prefetch to a device": Row(
            lambda: numbers().apply(experimental.prefetch_to_device("/cpu:0")), "`prefetch_to_device`"
        ),
        "tf.data service": Row(
            lambda: numbers().apply(experimental.service.distribute("parallel_epochs", "grpc://localhost:1")),
            "the tf.data service",
        ),
        "Python function": Row(
            lambda: numbers().map(lambda n: tf.py_function(lambda x: x, [n], tf.int64)), "EagerPyFunc"
        ),
        "NumPy function": Row(
            lambda: numbers().map(lambda n: tf.numpy_function(lambda x: x, [n], tf.int64)), "PyFunc"
        ),
        "random numbers in map": Row(lambda: numbers(400).map(noisy), "RandomUniform", differs=True),
        "seeded random numbers in map": Row(
            lambda: numbers(400).map(lambda n: n + tf.random.uniform([], 0, 1000, tf.int64, seed=1)),
            "RandomUniform",
            differs=True,
        ),
        "rejection_resample": Row(
            lambda: numbers().rejection_resample(lambda n: n % 2, [0.2, 0.8], seed=1), "RandomUniform"
        ),
        "fed": Row(fed, "Placeholder"),
        "random range": Row(
            lambda: Dataset.from_tensors(tf.random.uniform([])).repeat(), "RandomUniform", differs=True
        ),
        "captured random number": Row(
            lambda: (lambda noise: numbers(400).map(lambda n: tf.cast(n, tf.float32) + noise))(
                tf.random.uniform([])
            ),
            "RandomUniform",
            differs=True,
        ),
        "variable": Row(variable, "VariableV2|VarHandleOp"),
        "mutable table": Row(mutable_table, "MutableHashTable"),
        "cache in a file after a shuffle": Row(
            lambda: numbers().shuffle(9).cache(str(folder / "shuffled")).repeat(), r"cache\(file\)"
        ),
        "snapshot": Row(lambda: numbers().snapshot(str(folder / "snapshot")), "snapshot"),
        "reduce inside map": Row(lambda: numbers(400).map(reduced), "Reduce", differs=True),
        "shuffle inside group_by_window": Row(
            lambda: numbers().group_by_window(
                lambda n: n % 3, lambda key, group: group.shuffle(5), window_size=5
            ),
            "GroupByWindow",
        ),
        "symbolic checkpoint": Row(
            lambda: with_options(numbers(), experimental_symbolic_checkpoint=True), "symbolic_checkpoint"
        ),
        "known fault": Row(
            lambda: numbers().shuffle(9, seed=1).batch(3).repeat(), "directly after the first `shuffle`"
        ),
        "not tested": Row(
            lambda: experimental.SqlDataset("sqlite", "file.db", "SELECT 1", (tf.int64,)), "Sql"
        ),
    }


def _main(folder: Path) -> None:
    rows = table(folder)
    drawn: dict[str, list[list[Drawn]]] = {}
    for name, row in rows.items():
        states = sorted(folder.glob(f"{name}.*.state"))
        pipelines = read(row.build) if states else {}
        drawn[name] = [list(_restore(row.build, pipelines, state.read_bytes())) for state in states]
    (folder / "drawn").write_bytes(pickle.dumps(drawn))


if __name__ == "__main__":
    # So that what is pickled has the name that the parent knows.
    from tests.support import repeatability

    repeatability._main(Path(sys.argv[1]))
