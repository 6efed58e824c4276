"""Whether another process draws the same batches after a restore: what we say, and what TensorFlow does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from input_checkpoint.tensorflow.dataset_graph import read_pipelines
from input_checkpoint.tensorflow.determinism import (
    REPEATABLE_KINDS,
    repeatable_table,
    restarts_at_random,
    why_not_repeatable,
)
from input_checkpoint.tensorflow.iterators import external_state_policy_number
from input_checkpoint.tensorflow.random_datasets import READS_ITS_INPUT_ONCE, is_unseeded
from tests.support.pipelines import numbers, read
from tests.support.repeatability import DRAWS, Drawn, draw_elsewhere, save, table, write_files

v1 = tf.compat.v1
# The first test that needs the results waits for all of them.
pytestmark = pytest.mark.timeout(300)
FAIL = external_state_policy_number("fail")
NAMES = table(Path("unused"))
RUN = [name for name, row in NAMES.items() if row.differs or not row.refused]


class Results:
    """What this process and another one have drawn from the same states."""

    def __init__(self, folder: Path) -> None:
        write_files(folder)
        rows = table(folder)
        self.here = {name: save(folder, name, rows[name]) for name in RUN}
        self.elsewhere = draw_elsewhere(folder)

    def pairs(self, name: str) -> list[tuple[list[Any], Drawn]]:
        """What was drawn here and elsewhere, for each state and number of draws."""
        return [
            (here[: sum(DRAWS[: index + 1])], drawn)
            for here, elsewhere in zip(self.here[name], self.elsewhere[name])
            for index, drawn in enumerate(elsewhere)
        ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory.mktemp("repeatability"))


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_is_that_of_the_table(name: str, tmp_path: Path) -> None:
    write_files(tmp_path)
    row = table(tmp_path)[name]
    (pipeline,) = read(row.build).values()
    reason = why_not_repeatable(pipeline, FAIL)
    if row.refused:
        assert reason is not None
        assert re.search(row.refused, reason)
    else:
        assert reason is None
        assert restarts_at_random(pipeline) == row.restarts


@pytest.mark.parametrize(
    "name", [name for name, row in NAMES.items() if not row.refused and not row.restarts]
)
def test_another_process_draws_the_same(name: str, results: Results) -> None:
    for here, elsewhere in results.pairs(name):
        assert here
        assert elsewhere.batches == here


@pytest.mark.parametrize("name", [name for name, row in NAMES.items() if row.restarts])
def test_another_process_draws_the_same_until_a_pass_begins(name: str, results: Results) -> None:
    for here, elsewhere in results.pairs(name):
        assert here
        assert elsewhere.batches == here or elsewhere.another_pass


@pytest.mark.parametrize("name", [name for name, row in NAMES.items() if row.differs])
def test_another_process_draws_something_else(name: str, results: Results) -> None:
    assert any(elsewhere.batches != here for here, elsewhere in results.pairs(name))


def test_every_transformation_that_counts_as_repeatable_was_tested() -> None:
    tested = set()
    for row in NAMES.values():
        if not row.refused:
            (pipeline,) = read(row.build).values()
            tested |= {operation.kind for level in pipeline.every_level() for operation in level}
    assert tested == REPEATABLE_KINDS


def test_every_transformation_that_counts_as_reading_its_input_once_was_tested() -> None:
    """Beside a shuffle without a seed, in a state that was saved before anything was drawn."""
    tested = set()
    for row in NAMES.values():
        if not row.refused and not row.restarts:
            (pipeline,) = read(row.build).values()
            if any(map(is_unseeded, pipeline.operations)):
                tested |= {operation.kind for operation in pipeline.operations}
    assert tested >= READS_ITS_INPUT_ONCE


@pytest.mark.parametrize("policy", ["warn", "ignore"])
def test_a_policy_that_hides_external_state_is_a_reason(policy: str) -> None:
    (pipeline,) = read(numbers).values()
    reason = why_not_repeatable(pipeline, external_state_policy_number(policy))
    assert reason is not None
    assert "external_state_policy" in reason


def test_an_iterator_that_the_graph_does_not_initialize_is_not_repeatable() -> None:
    reason = why_not_repeatable(None, FAIL)
    assert reason is not None
    assert "does not show" in reason


def pipeline_of(*datasets: Any) -> Any:
    """The pipeline of an iterator that each of these datasets initializes."""
    iterator = v1.data.Iterator.from_structure(tf.int64, [])
    iterator.get_next()
    for dataset in datasets:
        iterator.make_initializer(dataset)
    graph = v1.get_default_graph()
    (pipeline,) = read_pipelines(graph, graph.get_collection("iterators")).values()
    return pipeline


def test_an_iterator_of_several_datasets_is_not_repeatable() -> None:
    with tf.Graph().as_default():
        reason = why_not_repeatable(pipeline_of(numbers(), numbers()), FAIL)
    assert reason is not None
    assert "several datasets" in reason


def test_an_iterator_that_one_dataset_initializes_twice_is_repeatable() -> None:
    with tf.Graph().as_default():
        dataset = numbers()
        assert why_not_repeatable(pipeline_of(dataset, dataset), FAIL) is None


def test_options_that_cannot_be_read_are_a_reason() -> None:
    def build() -> Any:
        dataset = numbers()
        variant = tf.raw_ops.OptionsDataset(
            input_dataset=tf.data.experimental.to_variant(dataset),
            serialized_options=b"\xff",
            output_types=[tf.int64],
            output_shapes=[[]],
        )
        return tf.data.experimental.from_variant(variant, dataset.element_spec)

    (pipeline,) = read(build).values()
    assert "Options of another version" in (why_not_repeatable(pipeline, FAIL) or "")


@pytest.mark.parametrize("one_shot", [False, True])
def test_both_kinds_of_iterators_are_judged(one_shot: bool) -> None:
    (pipeline,) = read(lambda: numbers().shuffle(9).repeat(), one_shot).values()
    assert why_not_repeatable(pipeline, FAIL) is None
    assert restarts_at_random(pipeline)


def test_the_documentation_has_the_table_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
    assert repeatable_table() in text
