"""The seeds in a saved state tell whether a shuffle without a seed has begun another pass."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from input_checkpoint.state import Element, ElementBatch, IteratorState, StoredState
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number
from input_checkpoint.tensorflow.shuffle_seeds import Seeds, ShuffleSeeds, began_another_pass
from input_checkpoint.tensorflow.variants import split_payload
from tests.support.pipelines import Build, Dataset, numbers, read
from tests.support.repeatability import elements, tapped
from tests.support.restoring import plain_iterator

v1 = tf.compat.v1


def unfused(dataset: Any) -> Any:
    """A pipeline whose ``shuffle`` and ``repeat`` TensorFlow does not merge."""
    options = tf.data.Options()
    options.experimental_optimization.shuffle_and_repeat_fusion = False
    return dataset.with_options(options)


def unprefetched(dataset: Any) -> Any:
    """A pipeline that reads nothing ahead, so that a pass begins exactly when its first batch is drawn."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def large(number: Any) -> Any:
    return tf.random.stateless_uniform([100_000], [number, 1])


def inner(number: Any) -> Any:
    return Dataset.range(number * 1000, number * 1000 + 60).shuffle(9)


def other_pass(build: Build, first: int, second: int) -> bool:
    """Whether another pass is recognized after as many more draws, in an iterator that was restored."""
    pipelines = read(build)
    (name,) = pipelines
    seeds = ShuffleSeeds(pipelines)
    with plain_iterator(build) as iterator:
        iterator.draw(first)
        time.sleep(0.05)
        state = iterator.save()
    tapped(seeds, name, state)
    with plain_iterator(build) as iterator:
        iterator.restore(state)
        iterator.draw(second)
        after = seeds.seeds_in([IteratorState(name, elements(iterator.save()))])
    return began_another_pass(seeds.restored, after)


# One pass of each has 60 batches or elements. It begins at 0.
PASSES: dict[str, Build] = {
    "merged": lambda: numbers(60).shuffle(9).repeat(),
    "not merged": lambda: unfused(numbers(60).shuffle(9).repeat()),
    "batches": lambda: numbers(120).shuffle(9).batch(2).repeat(),
    "cache": lambda: numbers(60).cache().shuffle(9).repeat(),
    "two passes": lambda: numbers(60).shuffle(9).repeat(2),
    "one order for all passes": lambda: numbers(60).shuffle(9, reshuffle_each_iteration=False).repeat(),
    "large elements": lambda: numbers(60).map(large).shuffle(9).map(tf.shape).repeat(),
    "two shuffles": lambda: numbers(60).shuffle(9).map(abs).shuffle(7).repeat(),
    "mixed": lambda: (
        Dataset.sample_from_datasets([numbers(60), numbers(60)], stop_on_empty_dataset=True).take(60).repeat()
    ),
    "inside flat_map": lambda: numbers(9).flat_map(inner),
    "inside interleave": lambda: numbers(9).interleave(inner, 1),
    "batches inside flat_map": lambda: numbers(9).flat_map(lambda number: inner(number).batch(1)),
}


@pytest.mark.parametrize("name", PASSES)
def test_draws_within_a_pass_are_recognized_as_such(name: str) -> None:
    assert not other_pass(PASSES[name], 5, 20)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize(("first", "second"), [(5, 80), (50, 20), (58, 4)])
def test_another_pass_is_recognized(name: str, first: int, second: int) -> None:
    assert other_pass(lambda: unprefetched(PASSES[name]()), first, second)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("draws", [1, 2, 3, 4, 6, 12])
def test_a_pass_that_has_begun_and_ended_is_recognized(batch: int, draws: int) -> None:
    """Between two states that both lack the shuffle, because ``batch`` has given it up."""
    of_a_pass = -(-3 // batch)
    began = other_pass(
        lambda: unprefetched(numbers(3).shuffle(3).batch(batch).repeat()), of_a_pass, draws * of_a_pass
    )
    assert began


@pytest.mark.parametrize(("first", "second"), [(1, 7), (8, 7), (8, 14)])
def test_a_short_file_beside_a_long_one_is_recognized(first: int, second: int) -> None:
    """Both states lack its shuffle: it was opened and read to its end in between."""

    def one(number: Any) -> Any:
        return Dataset.range(tf.where(number < 1, tf.constant(900, tf.int64), 3)).shuffle(3)

    assert other_pass(lambda: unprefetched(numbers(90).interleave(one, 2)), first, second)


@pytest.mark.parametrize(("first", "second"), [(4, 4), (4, 8)])
def test_other_files_in_the_place_of_those_that_were_read_are_recognized(first: int, second: int) -> None:
    """Both states lack their shuffles, because ``batch`` has given them up."""

    def one(number: Any) -> Any:
        return Dataset.range(number, number + 3).shuffle(3).batch(2)

    assert other_pass(lambda: unprefetched(numbers(90).interleave(one, 2)), first, second)


@pytest.mark.parametrize("draws", [1, 5])
def test_a_pass_that_another_shuffle_has_taken_in_is_recognized(draws: int) -> None:
    """The second shuffle creates the first one when it is drawn from, and reads all of it at once."""
    assert other_pass(lambda: unprefetched(numbers(30).shuffle(9).batch(2).shuffle(90)), 0, draws)


def test_pipelines_that_do_not_restart_at_random_are_not_looked_at() -> None:
    assert seeds_of(lambda: numbers().shuffle(9, seed=1).repeat()) == {}


def test_the_seeds_are_found_by_the_path_of_the_shuffle() -> None:
    ((path, pair),) = seeds_of(lambda: numbers().shuffle(9).repeat()).items()
    assert path.endswith("ShuffleAndRepeat")
    assert pair is not None
    assert len(set(pair)) == 2


def test_a_snapshot_is_read_only_until_all_seeds_are_found() -> None:

    def build() -> Any:
        return numbers(2000).shuffle(500).repeat()

    (name,) = read(build)
    with plain_iterator(build) as iterator:
        iterator.draw(1)
        state = elements(iterator.save())
    source = iter(state)
    found = ShuffleSeeds(read(build)).seeds_in([IteratorState(name, source)])
    assert len(found) == 1
    assert len(list(source)) > 450


def test_a_snapshot_of_a_session_can_be_read_in_part() -> None:
    with tf.Graph().as_default() as graph:
        following = v1.data.make_one_shot_iterator(numbers(2000).shuffle(500).repeat()).get_next()
        iterators = GraphIterators(graph, external_state_policy_number("fail"))
        seeds = ShuffleSeeds(read(lambda: numbers(2000).shuffle(500).repeat()))
        with v1.Session(graph=graph) as session:
            graph.finalize()
            session.run(following)
            found = []
            for _ in range(2):
                snapshot = iterators.snapshot(session)
                found.append(seeds.seeds_in(snapshot.states()))
                snapshot.release()
                session.run(following)
    assert found[0] == found[1]
    assert None not in found[0].values()


def test_a_restore_sees_the_same_elements_as_without_the_tap() -> None:
    build = PASSES["batches"]
    with plain_iterator(build) as iterator:
        state = elements(iterator.save())
    (name,) = read(build)
    batches = [ElementBatch([index], [element]) for index, element in enumerate(state)]
    (tapped_state,) = ShuffleSeeds(read(build)).tap([StoredState(name, len(state), iter(batches))])
    assert (tapped_state.name, tapped_state.count) == (name, len(state))
    assert list(tapped_state.batches) == batches


def test_the_order_in_which_a_restore_reads_the_elements_does_not_matter() -> None:
    build = PASSES["inside flat_map"]
    with plain_iterator(build) as iterator:
        iterator.draw(5)
        state = elements(iterator.save())
    assert seeds_in(build, state) == seeds_in(build, state[::-1])


def test_a_shuffle_that_cannot_be_decoded_counts_as_another_pass() -> None:
    build = PASSES["merged"]
    with plain_iterator(build) as iterator:
        state = elements(iterator.save())
    damaged = [(key, payload[:-9] if b"seed2" in key else payload) for key, payload in state]
    seeds = seeds_in(build, damaged)
    assert None in seeds.values()
    assert began_another_pass(seeds, seeds)


def test_a_shuffle_without_seeds_in_its_state_counts_as_another_pass() -> None:
    """So may another version of TensorFlow save it."""
    build = PASSES["merged"]
    with plain_iterator(build) as iterator:
        state = elements(iterator.save())
    renamed = [(key.replace(b"@@seed2", b"@@spice"), payload) for key, payload in state]
    seeds = seeds_in(build, renamed)
    assert began_another_pass(seeds, seeds)


def test_an_element_with_an_unknown_key_counts_as_another_pass() -> None:
    build = PASSES["merged"]
    with plain_iterator(build) as iterator:
        state = elements(iterator.save())
    seeds = seeds_in(build, [(b"key", b"payload"), *state])
    assert began_another_pass(seeds, seeds)


def test_values_that_are_not_compressed_are_read_too() -> None:
    build = PASSES["merged"]
    with plain_iterator(build) as iterator:
        state = elements(iterator.save())
    expected = seeds_in(build, state)
    ((_, pair),) = expected.items()
    assert (
        seeds_in(build, [_plain(key, pair) if b"seed2" in key else (key, payload) for key, payload in state])
        == expected
    )


def test_iterators_are_told_apart() -> None:
    build = PASSES["merged"]
    (pipeline,) = read(build).values()
    seeds = ShuffleSeeds({"train": pipeline, "evaluate": pipeline})
    with plain_iterator(build) as iterator:
        one = elements(iterator.save())
    with plain_iterator(build) as iterator:
        other = elements(iterator.save())
    both = seeds.seeds_in([IteratorState("train", one), IteratorState("evaluate", other)])
    swapped = seeds.seeds_in([IteratorState("train", other), IteratorState("evaluate", one)])
    assert len(both) == 2
    assert began_another_pass(both, swapped)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, {}, False, id="no shuffle"),
        pytest.param({"a": (1, 2)}, {"a": (1, 2)}, False, id="the same seeds"),
        pytest.param({"a": (1, 2)}, {"a": (1, 3)}, True, id="other seeds"),
        pytest.param({"a": (1, 2)}, {}, True, id="a missing path"),
        pytest.param({}, {"a": (1, 2)}, True, id="a new path"),
        pytest.param({"a": None}, {"a": None}, True, id="unknown seeds"),
    ],
)
def test_another_pass_began(before: Seeds, after: Seeds, expected: bool) -> None:
    assert began_another_pass(before, after) == expected


def seeds_of(build: Build) -> Seeds:
    with plain_iterator(build) as iterator:
        iterator.draw(1)
        return seeds_in(build, elements(iterator.save()))


def seeds_in(build: Build, state: list[Element]) -> Seeds:
    pipelines = read(build)
    (name,) = pipelines
    return ShuffleSeeds(pipelines).seeds_in([IteratorState(name, state)])


def _plain(key: bytes, pair: Any) -> Element:
    """The element of a shuffle as TensorFlow would save it without compression."""
    variant = tensor_pb2.VariantTensorDataProto.FromString(key)
    variant.metadata = variant.metadata.split(b"@@")[0] + b"@@seed@@seed2"
    variant.tensors.extend(tf.make_tensor_proto(np.int64(value)) for value in pair)
    return split_payload(variant.SerializeToString())
