"""A fingerprint is the same in every process, and shows the changes that matter to a saved state."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any, Callable, Optional

import numpy as np
import pytest
import tensorflow as tf

from input_checkpoint.tensorflow.dataset_graph import read_pipelines
from input_checkpoint.tensorflow.fingerprint import fingerprint_iterators
from input_checkpoint.training.pipeline_change import MAX_FINGERPRINT_BYTES, Fingerprint, compare, judge
from tests.support.pipelines import (
    FILES,
    PIPELINES,
    Build,
    Dataset,
    TextLines,
    fingerprint_of,
    increment,
    mixed,
    numbers,
    parsed,
    scaled,
    with_options,
)

v1 = tf.compat.v1


def as_json(fingerprint: Fingerprint) -> str:
    return json.dumps(fingerprint.to_json(), sort_keys=True)


@pytest.fixture(scope="module")
def of_another_process() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.pipelines"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def test_there_are_enough_pipelines_to_trust_the_fingerprint() -> None:
    assert len(PIPELINES) >= 60


@pytest.mark.parametrize("name", PIPELINES)
def test_the_same_pipeline_has_the_same_fingerprint_in_another_process(
    name: str, of_another_process: dict[str, Any]
) -> None:
    assert fingerprint_of(PIPELINES[name]).to_json() == of_another_process[name]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_fingerprint_is_small_and_survives_json(name: str) -> None:
    fingerprint = fingerprint_of(PIPELINES[name])
    text = json.dumps(fingerprint.to_json(), separators=(",", ":"))
    assert len(text) <= MAX_FINGERPRINT_BYTES
    assert Fingerprint.from_json(json.loads(text)) == fingerprint


def test_all_pipelines_differ_except_where_only_harmless_values_do() -> None:
    by_fingerprint: dict[str, list[str]] = {}
    for name, build in PIPELINES.items():
        by_fingerprint.setdefault(as_json(fingerprint_of(build)), []).append(name)
    assert sorted(names for names in by_fingerprint.values() if len(names) > 1) == [
        ["batch", "prefetch", "autotuned prefetch"],
        ["interleave in parallel", "unordered interleave"],
        ["map", "map in parallel", "autotuned map", "options"],
        ["shuffle", "shuffle without a seed"],
    ]


ONE_SHOT = [name for name in PIPELINES if name not in ("map with a table", "map with Python")]


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_one_shot_iterator_has_the_fingerprint_of_an_initializable_one(name: str) -> None:
    assert compare(fingerprint_of(PIPELINES[name], one_shot=True), fingerprint_of(PIPELINES[name])) == []


def test_the_fingerprint_of_a_usual_pipeline_takes_less_than_50_milliseconds() -> None:
    fingerprint_of(PIPELINES["images"])
    with tf.Graph().as_default() as graph:
        number = tf.constant(1.0)
        for _ in range(5000):
            number = number + 1.0
        v1.data.make_initializable_iterator(PIPELINES["images"]()).get_next()
        durations = [_seconds_to_take(graph) for _ in range(5)]
    assert min(durations) < 0.05


def _seconds_to_take(graph: Any) -> float:
    started = time.perf_counter()
    fingerprint_iterators(read_pipelines(graph, graph.get_collection("iterators")))
    return time.perf_counter() - started


def slices(values: Any) -> Any:
    return Dataset.from_tensor_slices(values)


def rows(size: int = 2, of_type: Any = tf.int64) -> Any:
    return numbers().map(lambda number: tf.fill([size], tf.cast(number, of_type)))


def inner(count: int = 5, size: int = 3, factor: int = 2) -> Any:
    return numbers(count).flat_map(
        lambda n: Dataset.range(9).shuffle(size, seed=1).map(lambda m: m * factor).batch(2)
    )


def keep_multiples(of: int) -> Callable[[Any], Any]:
    return lambda number: tf.equal(number % of, 0)


def windows(size: int) -> Any:
    return numbers().window(size).flat_map(lambda window: window.batch(size))


REFUSED: dict[str, tuple[Build, Build, str]] = {
    "a smaller shuffle buffer": (
        lambda: numbers().shuffle(1000, seed=1),
        lambda: numbers().shuffle(500, seed=1),
        "buffer_size of Shuffle was 1000 and is 500",
    ),
    "a larger shuffle buffer": (
        lambda: numbers().shuffle(1000),
        lambda: numbers().shuffle(1001),
        "buffer_size of Shuffle was 1000 and is 1001",
    ),
    "another buffer of a shuffle in a function": (
        lambda: inner(size=3),
        lambda: inner(size=4),
        "buffer_size of Shuffle inside FlatMap was 3 and is 4",
    ),
    "the second of two shuffles": (
        lambda: numbers().shuffle(9).map(increment).shuffle(5),
        lambda: numbers().shuffle(9).map(increment).shuffle(6),
        r"buffer_size of Shuffle \(2\) was 5 and is 6",
    ),
    "another cycle length": (
        lambda: parsed(cycle_length=2),
        lambda: parsed(cycle_length=4),
        "cycle_length of Interleave was 2 and is 4",
    ),
    "another cycle length in parallel": (
        lambda: parsed(cycle_length=2, num_parallel_calls=2),
        lambda: parsed(cycle_length=3, num_parallel_calls=2),
        "cycle_length of ParallelInterleave was 2 and is 3",
    ),
    "other parallel reads": (
        lambda: TextLines(FILES, num_parallel_reads=2),
        lambda: TextLines(FILES, num_parallel_reads=4),
        "cycle_length",
    ),
    "a map that was added": (
        lambda: numbers().shuffle(9),
        lambda: numbers().map(increment).shuffle(9),
        "Map was added after Range",
    ),
    "a filter that was removed": (
        lambda: numbers().filter(keep_multiples(2)).batch(4),
        lambda: numbers().batch(4),
        "Filter was removed after Range",
    ),
    "batches that became padded": (
        lambda: numbers().batch(4),
        lambda: numbers().padded_batch(4),
        "Batch became PaddedBatch",
    ),
    "two transformations in another order": (
        lambda: numbers().shuffle(9).repeat(),
        lambda: numbers().repeat().shuffle(9),
        "Repeat|Shuffle",
    ),
    "one more dataset in a zip": (
        lambda: Dataset.zip((numbers(), numbers())),
        lambda: Dataset.zip((numbers(), numbers(), numbers())),
        r"Range \(3\) was added",
    ),
    "one more dataset in a mixture": (
        lambda: mixed([0.5, 0.5]),
        lambda: mixed([0.5, 0.3, 0.2]),
        "was added",
    ),
    "a prefetch in the middle": (
        lambda: numbers().map(increment).batch(4),
        lambda: numbers().map(increment).prefetch(2).batch(4),
        "Prefetch was added after Map",
    ),
    "a transformation in a function": (
        lambda: slices(FILES).flat_map(TextLines),
        lambda: slices(FILES).flat_map(lambda file: TextLines(file).skip(1)),
        "Skip inside FlatMap was added",
    ),
    "repeat without an end": (
        lambda: numbers().repeat(3),
        lambda: numbers().repeat(),
        "count of Repeat was limited and is unlimited",
    ),
    "elements of another type": (
        lambda: rows(of_type=tf.int64).shuffle(9),
        lambda: rows(of_type=tf.float32).shuffle(9),
        r"the elements of Shuffle were int64\[2\] and are float32\[2\]",
    ),
    "elements of another size": (
        lambda: rows(2).shuffle(9),
        lambda: rows(3).shuffle(9),
        r"int64\[2\] and are int64\[3\]",
    ),
    "elements of another rank": (
        lambda: numbers().map(increment),
        lambda: rows(3),
        r"int64\[\] and are int64\[3\]",
    ),
    "one more component": (
        lambda: numbers().map(increment),
        lambda: numbers().map(lambda number: (number, number)),
        r"int64\[\] and are int64\[\] int64\[\]",
    ),
    "another fixed batch size": (
        lambda: numbers().batch(4, drop_remainder=True),
        lambda: numbers().batch(8, drop_remainder=True),
        r"the elements of Batch were int64\[4\] and are int64\[8\]",
    ),
    "another batch size after a map": (
        lambda: numbers().map(increment).batch(4),
        lambda: numbers().map(increment).batch(8),
        "batch_size of Batch was 4 and is 8",
    ),
    "another batch size after a map in a function": (
        lambda: numbers(3).flat_map(lambda n: numbers().map(increment).batch(4)),
        lambda: numbers(3).flat_map(lambda n: numbers().map(increment).batch(8)),
        "batch_size of Batch inside FlatMap was 4 and is 8",
    ),
    "a map made parallel in a function": (
        lambda: numbers(3).flat_map(lambda n: numbers().map(increment)),
        lambda: numbers(3).flat_map(lambda n: numbers().map(increment, num_parallel_calls=2)),
        "Map inside FlatMap became ParallelMap inside FlatMap",
    ),
    "a cache in a file": (
        lambda: numbers().cache(),
        lambda: numbers().cache("/data/cache"),
        "filename of Cache",
    ),
    "another snapshot": (
        lambda: numbers().snapshot("/data/a"),
        lambda: numbers().snapshot("/data/b"),
        "path of Snapshot was '/data/a' and is '/data/b'",
    ),
}

WARNED: dict[str, tuple[Build, Build, str]] = {
    "a file in front": (
        lambda: parsed(FILES[1:]),
        lambda: parsed(FILES),
        r"components of TensorSlice was 4 values \(\w+\) and is 5 values",
    ),
    "a file removed": (lambda: parsed(FILES), lambda: parsed(FILES[:-1]), "5 values .* and is 4 values"),
    "files in another order": (
        lambda: parsed(FILES),
        lambda: parsed(FILES[::-1]),
        "components of TensorSlice",
    ),
    "another file": (
        lambda: TextLines("/data/a"),
        lambda: TextLines("/data/b"),
        "'/data/a' and is '/data/b'",
    ),
    "another map function": (
        lambda: numbers().map(lambda number: number + 1),
        lambda: numbers().map(lambda number: number * 2),
        "the function of Map has changed",
    ),
    "another constant in a function": (
        lambda: numbers().map(lambda number: number + 1),
        lambda: numbers().map(lambda number: number + 2),
        "the function of Map has changed",
    ),
    "another captured constant": (
        lambda: scaled(1),
        lambda: scaled(2),
        "other_arguments of Map was 1 and is 2",
    ),
    "another function in a function": (
        lambda: inner(factor=2),
        lambda: inner(factor=3),
        "the function of Map inside FlatMap has changed",
    ),
    "another filter": (
        lambda: numbers().filter(keep_multiples(2)),
        lambda: numbers().filter(keep_multiples(3)),
        "the function of Filter has changed",
    ),
    "a longer range": (lambda: numbers(100), lambda: numbers(200), "stop of Range was 100 and is 200"),
    "other tensors": (
        lambda: slices(np.arange(9)),
        lambda: slices(np.arange(1, 10)),
        "components of TensorSlice",
    ),
    "more to skip": (lambda: numbers().skip(3), lambda: numbers().skip(4), "count of Skip was 3 and is 4"),
    "less to take": (
        lambda: numbers().take(30),
        lambda: numbers().take(20),
        "count of Take was 30 and is 20",
    ),
    "more passes": (
        lambda: numbers().repeat(3),
        lambda: numbers().repeat(5),
        "count of Repeat was 3 and is 5",
    ),
    "another shard": (
        lambda: numbers().shard(4, 0),
        lambda: numbers().shard(4, 1),
        "index of Shard was 0 and is 1",
    ),
    "another block length": (
        lambda: parsed(),
        lambda: parsed(block_length=3),
        "block_length of Interleave was 1",
    ),
    "other weights": (lambda: mixed([0.3, 0.7]), lambda: mixed([0.4, 0.6]), "."),
    "larger windows": (lambda: windows(4), lambda: windows(8), "size of Window was 4 and is 8"),
    "datasets changed places": (
        lambda: Dataset.zip((numbers(5), numbers(6))),
        lambda: Dataset.zip((numbers(6), numbers(5))),
        "stop of Range was 5 and is 6",
    ),
    "one order for all passes": (
        lambda: numbers().shuffle(9),
        lambda: numbers().shuffle(9, reshuffle_each_iteration=False),
        "reshuffle_each_iteration of Shuffle was True and is False",
    ),
}

SILENT: dict[str, tuple[Build, Build]] = {
    "batch size": (lambda: numbers().batch(4), lambda: numbers().batch(8)),
    "batch size after a shuffle": (
        lambda: numbers().shuffle(9).batch(4),
        lambda: numbers().shuffle(9).batch(8),
    ),
    "seed": (lambda: numbers().shuffle(9, seed=1), lambda: numbers().shuffle(9, seed=2)),
    "no seed": (lambda: numbers().shuffle(9, seed=1), lambda: numbers().shuffle(9)),
    "prefetch": (lambda: numbers().batch(4).prefetch(2), lambda: numbers().batch(4).prefetch(5)),
    "prefetch added at the end": (lambda: numbers().batch(4), lambda: numbers().batch(4).prefetch(1)),
    "parallel calls": (
        lambda: numbers().map(increment, num_parallel_calls=2),
        lambda: numbers().map(increment, num_parallel_calls=tf.data.AUTOTUNE),
    ),
    "map made parallel": (
        lambda: numbers().map(increment),
        lambda: numbers().map(increment, num_parallel_calls=2),
    ),
    "parallel interleave": (
        lambda: parsed(num_parallel_calls=2),
        lambda: parsed(num_parallel_calls=tf.data.AUTOTUNE),
    ),
    "read buffer": (lambda: TextLines(FILES), lambda: TextLines(FILES, buffer_size=64)),
    "transformations that do nothing": (
        lambda: numbers().map(increment),
        lambda: numbers().map(lambda n: n).map(increment).take(-1).skip(0).repeat(1).shard(1, 0),
    ),
    "options": (
        lambda: numbers().map(increment),
        lambda: with_options(numbers().map(increment), deterministic=False),
    ),
    "generated names": (
        lambda: numbers().map(increment, name="first").batch(4),
        lambda: numbers().map(increment).batch(4, name="batches"),
    ),
    "batch size in a function": (
        lambda: numbers(3).flat_map(lambda n: numbers().batch(2)),
        lambda: numbers(3).flat_map(lambda n: numbers().batch(3)),
    ),
}


def verdict(before: Build, after: Build) -> tuple[Optional[str], Optional[str]]:
    found = judge(compare(fingerprint_of(before), fingerprint_of(after)), "refuse")
    return found.refusal, found.warning


@pytest.mark.parametrize("change", REFUSED)
def test_what_tensorflow_cannot_restore_is_refused_with_what_changed(change: str) -> None:
    before, after, said = REFUSED[change]
    refusal, warning = verdict(before, after)
    assert refusal is not None
    assert warning is None
    _assert_says(refusal, said)
    assert verdict(after, before)[0] is not None


@pytest.mark.parametrize("change", WARNED)
def test_other_data_are_restored_with_a_warning_of_what_changed(change: str) -> None:
    before, after, said = WARNED[change]
    refusal, warning = verdict(before, after)
    assert refusal is None
    assert warning is not None
    _assert_says(warning, said)


@pytest.mark.parametrize("change", SILENT)
def test_what_does_no_harm_is_silent(change: str) -> None:
    before, after = SILENT[change]
    assert verdict(before, after) == (None, None)


def _assert_says(message: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        raise ValueError(message)


def test_a_change_beyond_what_the_fingerprint_lists_is_noticed() -> None:
    def concatenated(last: int) -> Any:
        dataset = numbers(1)
        for index in range(2, 100):
            dataset = dataset.concatenate(numbers(index))
        return dataset.concatenate(numbers(last))

    refusal, warning = verdict(lambda: concatenated(100), lambda: concatenated(101))
    assert refusal is None
    assert warning is not None
    assert "transformations after the first" in warning


def test_a_credential_in_a_path_is_not_stored() -> None:
    fingerprint = fingerprint_of(lambda: TextLines("ftp://joe:hunter2@host/part-0"))
    assert "hunter2" not in as_json(fingerprint)
