"""Draws without training reach the same batch as the training, and have the same digest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import tensorflow as tf

from input_checkpoint.errors import PipelineMismatchError, UnsupportedPipelineError
from input_checkpoint.state import ElementBatch, StoredState
from input_checkpoint.tensorflow import discarded_draws
from input_checkpoint.tensorflow.batch_digest import BatchDigests, digest_text
from input_checkpoint.tensorflow.iterators import GraphIterators, SessionIterators
from tests.support.batches import BATCHES

v1 = tf.compat.v1
Dataset = tf.data.Dataset


@pytest.fixture(params=["control flow v1", "control flow v2"])
def control_flow(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "control flow v1":
        v1.disable_control_flow_v2()
    yield request.param
    v1.enable_control_flow_v2()


class Pipeline:
    """An iterator in a session, drawn from by a training."""

    def __init__(self, build: Callable[[], Any], one_shot: bool = False, target: str = "") -> None:
        graph = v1.get_default_graph()
        make = v1.data.make_one_shot_iterator if one_shot else v1.data.make_initializable_iterator
        self.iterator = make(build())
        self.batch = self.iterator.get_next()
        (operation,) = [op for op in graph.get_operations() if op.type == "IteratorGetNext"]
        self._digest = BatchDigests(graph).tensor(operation.name)
        # An operation that needs the batch, as a training step does.
        self._step = tf.group(self.batch)
        iterators = GraphIterators(graph, policy=2)
        (self.name,) = iterators.names
        self.session = v1.Session(target)
        self.session.__enter__()
        if not one_shot:
            self.session.run(self.iterator.initializer)
        self.source: SessionIterators = iterators.bind(self.session)

    def train(self, steps: int) -> Any:
        """Return the digest of the last batch."""
        for _ in range(steps - 1):
            self.session.run(self._step)
        return digest_text(self.session.run([self._step, self._digest])[1])


@contextlib.contextmanager
def pipeline(build: Callable[[], Any], one_shot: bool = False, target: str = "") -> Iterator[Pipeline]:
    with v1.Graph().as_default():
        made = Pipeline(build, one_shot, target)
        with contextlib.closing(made.session):
            try:
                yield made
            finally:
                made.session.__exit__(None, None, None)


def states(source: SessionIterators) -> list[StoredState]:
    snapshot = source.snapshot()
    found = [(state.name, list(state.elements)) for state in snapshot.states()]
    snapshot.release()
    return [
        StoredState(name, len(elements), [ElementBatch(list(range(len(elements))), elements)])
        for name, elements in found
    ]


def shuffled(build: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: build().shuffle(7, seed=5)


@pytest.mark.parametrize("kind", BATCHES)
def test_the_batch_after_a_restore_and_a_fast_forward_is_the_one_of_the_training(
    kind: str, control_flow: str
) -> None:
    with pipeline(shuffled(BATCHES[kind])) as one:
        one.train(3)
        base = states(one.source)
        expected = one.train(9)
        following = one.train(1)
    with pipeline(shuffled(BATCHES[kind])) as other:
        other.source.restore(base)
        other.source.skip(other.name, 8)
        assert other.source.draw(other.name) == expected
        assert other.train(1) == following


@pytest.mark.parametrize("one_shot", [True, False])
def test_one_shot_and_initializable_iterators_are_fast_forwarded(one_shot: bool, control_flow: str) -> None:
    with pipeline(lambda: Dataset.range(100), one_shot) as made:
        made.source.skip(made.name, 10)
        assert made.session.run(made.batch) == 10


def test_an_iterator_of_a_remote_session_is_fast_forwarded(control_flow: str) -> None:
    server = v1.train.Server.create_local_server()
    with pipeline(lambda: Dataset.range(100), target=server.target) as made:
        made.source.skip(made.name, 10)
        made.source.draw(made.name)
        assert made.session.run(made.batch) == 11


@pytest.mark.parametrize("chunks", [[30], [1] * 30, [7, 0, 22, 1]])
def test_skipping_in_parts_is_the_same_as_single_draws(chunks: list[int], control_flow: str) -> None:
    build = shuffled(lambda: Dataset.range(100))
    with pipeline(build) as single:
        drawn = [single.session.run(single.batch) for _ in range(31)]
    with pipeline(build) as made:
        for count in chunks:
            made.source.skip(made.name, count)
        assert made.session.run(made.batch) == drawn[30]


def test_one_run_of_the_session_does_not_last_long(
    monkeypatch: pytest.MonkeyPatch, control_flow: str
) -> None:
    """Python notices Ctrl-C only between two runs."""
    monkeypatch.setattr(discarded_draws, "_RUN_SECONDS", 0.0)
    with pipeline(lambda: Dataset.range(100)) as made:
        runs = []
        run = made.session.run
        made.session.run = lambda *args: runs.append(args) or run(*args)
        made.source.skip(made.name, 20)
        assert len(runs) == 20
        assert run(made.batch) == 20


def test_the_end_of_the_data_is_an_error(control_flow: str) -> None:
    with pipeline(lambda: Dataset.range(5)) as made:
        made.source.skip(made.name, 5)
        with pytest.raises(tf.errors.OutOfRangeError):
            made.source.skip(made.name, 1)
        with pytest.raises(tf.errors.OutOfRangeError):
            made.source.draw(made.name)


def test_only_the_named_iterator_is_drawn_from() -> None:
    with v1.Graph().as_default() as graph:
        batches = [v1.data.make_one_shot_iterator(Dataset.range(100)).get_next() for _ in range(2)]
        iterators = GraphIterators(graph, policy=2)
        with v1.Session() as session:
            iterators.bind(session).skip(iterators.names[1], 4)
            assert session.run(batches) == [0, 4]
            with pytest.raises(PipelineMismatchError, match="'Unknown'"):
                iterators.bind(session).skip("Unknown", 1)


def test_a_batch_without_a_digest_cannot_be_compared() -> None:
    with v1.Graph().as_default() as graph:
        v1.data.make_one_shot_iterator(Dataset.range(100).window(3)).get_next()
        iterators = GraphIterators(graph, policy=2)
        with v1.Session() as session, pytest.raises(UnsupportedPipelineError, match="such as datasets"):
            iterators.bind(session).draw(iterators.names[0])
