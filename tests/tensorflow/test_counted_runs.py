"""The draws of runs with hooks are counted exactly, or the count is known not to be certain."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional, Union

import pytest
import tensorflow as tf

from input_checkpoint.tensorflow import counted_runs
from input_checkpoint.tensorflow.batch_digest import BatchDigests
from input_checkpoint.tensorflow.draw_counter import DrawCounter, Drawn, Position, draws_between
from input_checkpoint.tensorflow.draw_guard import DrawGuard
from input_checkpoint.tensorflow.iterators import GraphIterators, SessionIterators
from input_checkpoint.tensorflow.restoring import restoring

v1 = tf.compat.v1
Dataset = tf.data.Dataset


class Counting(v1.train.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Counts as the hook does, and compares each count with the state of the iterators.

    The datasets are ranges, so their next element says how often they were drawn from.
    """

    def begin(self) -> None:
        graph = v1.get_default_graph()
        self._digests = BatchDigests(graph)
        self._iterators = GraphIterators(graph, policy=2)
        self.with_digests = True

    def after_create_session(self, session: Any, coord: Any) -> None:
        self.source: SessionIterators = self._iterators.bind(session)
        self.guard = DrawGuard(self.source, "memory://", lambda: None)
        self.guard.restored()
        self.counter = DrawCounter(self._iterators.names)
        self.guard.count(self.counter, self._digests)
        self.base = self.position

    def before_run(self, run_context: Any) -> None:
        self.guard.expect(run_context.original_args, with_digests=self.with_digests)

    @property
    def position(self) -> Position:
        return self.counter.position()

    @property
    def drawn(self) -> Union[Drawn, str]:
        """What was drawn since the session was created."""
        return draws_between(self.base, self.position)

    @property
    def counts(self) -> list[int]:
        """The draws of each iterator, which must be certain."""
        drawn = self.drawn
        assert isinstance(drawn, Drawn), drawn
        return [drawn.draws[name] for name in self.source.names]

    @property
    def reason(self) -> str:
        drawn = self.drawn
        assert isinstance(drawn, str), drawn
        return drawn


class Fetching(v1.train.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Another hook with fetches and feeds."""

    def __init__(self, fetches: Any, feed_dict: Optional[Mapping[Any, Any]] = None, every: int = 1) -> None:
        self._arguments = v1.train.SessionRunArgs(fetches, feed_dict)
        self._every = every
        self._runs = 0

    def before_run(self, run_context: Any) -> Any:
        self._runs += 1
        return self._arguments if self._runs % self._every == 0 else None


def numbers(count: int = 1000) -> Any:
    """An initialized iterator over a range."""
    iterator = v1.data.make_initializable_iterator(Dataset.range(count))
    v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
    return iterator


def assigned(name: str, value: Any) -> Any:
    """A training step, which needs the value."""
    variable = v1.get_variable(name, [], tf.int64, v1.zeros_initializer, use_resource=True)
    return variable.assign_add(value).op


@pytest.fixture(autouse=True)
def graph() -> Iterator[Any]:
    with v1.Graph().as_default() as graph:
        yield graph


@pytest.fixture(params=["control flow v1", "control flow v2"])
def control_flow(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "control flow v1":
        v1.disable_control_flow_v2()
    yield request.param
    v1.enable_control_flow_v2()


@contextlib.contextmanager
def session_with(counting: Counting, hooks: Sequence[Any] = (), target: str = "") -> Iterator[Any]:
    creator = v1.train.ChiefSessionCreator(master=target)
    with v1.train.MonitoredSession(creator, hooks=[counting, *hooks]) as session:
        yield session


def next_elements(counting: Counting, *iterators: Any) -> list[int]:
    """Draw from each iterator, to see how often it was drawn from before."""
    graph = v1.get_default_graph()
    elements = [graph.get_tensor_by_name(iterator) for iterator in iterators]
    return [int(value) for value in counting.source.session.run(elements)]


def test_a_step_is_one_draw() -> None:
    batch = numbers().get_next()
    step, counting = assigned("v", batch), Counting()
    with session_with(counting) as session:
        for _ in range(5):
            session.run(step)
        assert counting.counts == [5]
        assert next_elements(counting, batch.name) == [5]


def test_the_digest_is_that_of_the_batch_that_a_fast_forward_draws_there() -> None:
    batch = numbers().get_next()
    step, counting = assigned("v", batch), Counting()
    with session_with(counting) as session:
        for _ in range(5):
            session.run([step, batch])
        drawn = counting.drawn
    with v1.Session() as other:
        other.run(v1.get_collection(v1.GraphKeys.TABLE_INITIALIZERS))
        source = counting._iterators.bind(other)
        source.skip(source.names[0], 4)
        assert drawn == Drawn({source.names[0]: 5}, {source.names[0]: source.draw(source.names[0])})


def test_draws_that_wait_for_one_another_have_the_digest_of_the_last() -> None:
    iterator = numbers()
    first = iterator.get_next()
    with tf.control_dependencies([first]):
        second = iterator.get_next()
    step, counting = assigned("v", first + second), Counting()
    with session_with(counting) as session:
        for _ in range(3):
            session.run(step)
        drawn = counting.drawn
    with v1.Session() as other:
        other.run(v1.get_collection(v1.GraphKeys.TABLE_INITIALIZERS))
        source = counting._iterators.bind(other)
        source.skip(source.names[0], 5)
        assert drawn == Drawn({source.names[0]: 6}, {source.names[0]: source.draw(source.names[0])})


def test_the_caller_gets_what_it_fetches_and_nothing_else() -> None:
    batch = numbers().get_next()
    twice, counting = batch * 2, Counting()
    with session_with(counting) as session:
        session.run([batch, twice])
        assert session.run({"a": [batch, (twice,)]}) == {"a": [1, (2,)]}
        assert isinstance(counting.drawn, Drawn)


def test_other_hooks_get_what_they_fetch() -> None:
    class Sees(Fetching):
        def after_run(self, run_context: Any, run_values: Any) -> None:
            seen.append(run_values.results)

    seen: list[Any] = []
    batch = numbers().get_next()
    counting = Counting()
    with session_with(counting, [Sees({"twice": batch * 2})]) as session:
        for _ in range(3):
            session.run(batch)
        assert seen == [{"twice": 0}, {"twice": 2}, {"twice": 4}]
        assert counting.counts == [3]


def test_without_a_request_no_digest_is_taken() -> None:
    step, counting = assigned("v", numbers().get_next()), Counting()
    with session_with(counting) as session:
        counting.with_digests = False
        for _ in range(3):
            session.run(step)
        assert counting.reason == "the last batch from iterator 'IteratorV2' has no digest"


def test_several_runs_of_a_step_are_several_draws() -> None:
    batch = numbers().get_next()
    accumulate, apply, counting = assigned("a", batch), assigned("b", batch), Counting()
    with session_with(counting) as session:
        for _ in range(3):
            session.run(accumulate)
            session.run(accumulate)
            session.run(apply)
        assert counting.counts == [9]
        assert next_elements(counting, batch.name) == [9]


def test_two_operations_that_draw_from_one_iterator_are_two_draws_without_a_last_batch() -> None:
    iterator = numbers()
    one, other = iterator.get_next(), iterator.get_next()
    counting = Counting()
    with session_with(counting) as session:
        for _ in range(3):
            session.run([one, other])
        assert counting.position.draws == {"IteratorV2": 6}
        assert counting.reason == "the last batch from iterator 'IteratorV2' has no digest"
        session.run(one)
        session.run(one)
        assert counting.counts == [8]


def test_a_batch_that_is_fetched_besides_is_not_drawn_again() -> None:
    batch = numbers().get_next()
    step, counting = assigned("v", batch), Counting()
    with session_with(counting, [Fetching(batch), Fetching([batch + 1], every=2)]) as session:
        for _ in range(4):
            session.run([step, batch])
        assert counting.counts == [4]


def test_a_hook_draws_from_another_iterator_in_a_run_with_hooks() -> None:
    training, validation = numbers().get_next(), numbers().get_next()
    step, counting = assigned("v", training), Counting()
    with session_with(counting, [Fetching(validation)]) as session:
        for _ in range(4):
            session.run(step)
        assert counting.counts == [4, 4]


def test_iterators_that_are_drawn_from_at_different_rates_have_digests_of_their_last_batches() -> None:
    frequent, rare = numbers().get_next(), numbers().get_next()
    step, rare_step, counting = assigned("v", frequent), assigned("w", rare), Counting()
    with session_with(counting) as session:
        # From the first cycle, it is known that some runs draw only from one.
        for _ in range(2):
            session.run([step, rare_step])
            session.run(step)
            session.run(step)
        assert counting.counts == [6, 2]
        assert next_elements(counting, frequent.name, rare.name) == [6, 2]


def test_a_rare_iterator_is_digested_even_without_a_request() -> None:
    frequent, rare = numbers().get_next(), numbers().get_next()
    step, rare_step, counting = assigned("v", frequent), assigned("w", rare), Counting()
    with session_with(counting) as session:
        session.run([step, rare_step])
        session.run(step)
        session.run(step)
        counting.with_digests = False
        session.run([step, rare_step])
        counting.with_digests = True
        session.run(step)
        assert counting.counts == [5, 2]


def test_a_batch_that_is_fed_is_not_drawn() -> None:
    batch = numbers().get_next()
    step, counting = assigned("v", batch), Counting()
    with session_with(counting) as session:
        for _ in range(3):
            session.run(step, {batch: 7})
        assert counting.counts == [0]
        session.run(step)
        session.run(step)
        assert counting.counts == [2]
        assert next_elements(counting, batch.name) == [2]


@pytest.mark.parametrize("needed", ["both components", "the component that is fed"])
def test_one_component_that_is_fed_by_another_hook(needed: str) -> None:
    iterator = v1.data.make_one_shot_iterator(Dataset.range(1000).map(lambda n: (n, n)))
    one, other = iterator.get_next()
    step = assigned("v", one + other if needed == "both components" else one)
    counting = Counting()
    with session_with(counting, [Fetching([], {one: 7})]) as session:
        for _ in range(3):
            session.run(step)
        # A digest would need the component that is not fed, and draw for it.
        draws = 3 if needed == "both components" else 0
        assert counting.position.draws == {"OneShotIterator": draws}
        if draws:
            assert counting.reason == "the last batch from iterator 'OneShotIterator' has no digest"
        else:
            assert counting.counts == [0]
        assert next_elements(counting, other.name) == [draws]


NOT_NEEDED: dict[str, Callable[[Any], Any]] = {
    "its static shape": tf.shape,
    "its static size": lambda batch: tf.size(batch) + 1,
    "its rank": tf.rank,
    "zeros like it": tf.zeros_like,
    "a function that ignores it": lambda batch: tf.function(lambda value: tf.constant(1))(batch),
}


@pytest.mark.parametrize("kind", NOT_NEEDED)
def test_a_batch_whose_value_tensorflow_does_not_need_is_not_drawn(kind: str) -> None:
    iterator = v1.data.make_one_shot_iterator(
        Dataset.range(1000).map(lambda n: tf.ensure_shape(tf.fill([3], n), [3]))
    )
    batch = iterator.get_next()
    element = batch[0]
    fetch, counting = NOT_NEEDED[kind](batch), Counting()
    with session_with(counting) as session:
        for _ in range(3):
            session.run(fetch)
        assert counting.counts == [0]
        session.run(batch)
        session.run(batch)
        for _ in range(3):
            session.run([fetch, batch])
        assert counting.counts == [5]
        assert next_elements(counting, element.name) == [5]


def _after(batch: Any) -> Any:
    with tf.control_dependencies([batch]):
        return tf.constant(1)


NEEDED: dict[str, Callable[[Any], Any]] = {
    "its product with zero": lambda batch: batch * 0,
    "an operation": lambda batch: tf.group(batch),
    "a control dependency": _after,
    "a conditional after it": lambda batch: tf.cond(batch > 2, lambda: batch + 1, lambda: batch - 1),
    "a loop after it": lambda batch: tf.while_loop(lambda i: i < 9, lambda i: i + 1 + batch, [batch]),
    "the name": lambda batch: batch.name,
}


@pytest.mark.parametrize("kind", NEEDED)
def test_everything_else_that_depends_on_a_batch_draws_it_once(kind: str, control_flow: str) -> None:
    batch = numbers().get_next()
    fetch, counting = NEEDED[kind](batch), Counting()
    with session_with(counting) as session:
        for _ in range(4):
            session.run(fetch)
        assert counting.counts == [4]
        assert next_elements(counting, batch.name) == [4]


UNCERTAIN: dict[str, Callable[[Any, Any], Any]] = {
    "a conditional": lambda iterator, flag: tf.cond(
        flag, iterator.get_next, lambda: tf.constant(0, tf.int64)
    ),
    "a conditional in a conditional": lambda iterator, flag: tf.cond(
        flag,
        lambda: tf.cond(flag, iterator.get_next, lambda: tf.constant(0, tf.int64)),
        lambda: tf.constant(0, tf.int64),
    ),
    "a conditional after a conditional": lambda iterator, flag: tf.cond(
        flag,
        lambda: _get_next_after(tf.cond(flag, lambda: 1, lambda: 2), iterator),
        lambda: tf.constant(0, tf.int64),
    ),
    "a loop": lambda iterator, flag: tf.while_loop(
        lambda i: i < 3, lambda i: i + 1 + 0 * iterator.get_next(), [tf.constant(0, tf.int64)]
    ),
    "a function": lambda iterator, flag: tf.function(iterator.get_next)(),
    "an optional": lambda iterator, flag: iterator.get_next_as_optional().get_value(),
}


def _get_next_after(value: Any, iterator: Any) -> Any:
    with tf.control_dependencies([value]):
        return iterator.get_next()


@pytest.mark.parametrize("kind", UNCERTAIN)
def test_draws_in_control_flow_or_functions_are_not_certain(kind: str, control_flow: str) -> None:
    flag = v1.placeholder_with_default(True, [])
    fetch, counting = UNCERTAIN[kind](numbers(), flag), Counting()
    with session_with(counting) as session:
        for _ in range(3):
            session.run(fetch)
        assert "iterator 'IteratorV2' cannot be counted: operation" in counting.reason


def test_a_handle_that_is_fed_counts_for_its_iterator() -> None:
    iterators = [numbers(), numbers()]
    handle = v1.placeholder(tf.string, [])
    batch = v1.data.Iterator.from_string_handle(handle, tf.int64, []).get_next()
    step, counting = assigned("v", batch), Counting()
    texts = [iterator.string_handle() for iterator in iterators]
    with session_with(counting) as session:
        handles = session.run(texts)
        for index in (0, 0, 1, 0, 1):
            session.run(step, {handle: handles[index]})
        session.run(step, {handle: handles[0]})
        session.run(step, {handle: handles[1]})
        assert counting.counts == [4, 3]


def test_a_handle_that_is_chosen_in_the_graph_makes_all_iterators_uncertain() -> None:
    one, other = numbers().string_handle(), numbers().string_handle()
    handle = tf.where(v1.placeholder_with_default(True, []), one, other)
    batch = v1.data.Iterator.from_string_handle(handle, tf.int64, []).get_next()
    counting = Counting()
    with session_with(counting) as session:
        session.run(batch)
        assert "draws from an iterator that cannot be found in the graph" in counting.reason


def test_an_untracked_draw_from_another_iterator_makes_that_one_uncertain() -> None:
    training, validation = numbers().get_next(), numbers().get_next()
    step, counting = assigned("v", training), Counting()
    with session_with(counting) as session:
        for _ in range(2):
            session.run(step)
        assert counting.counts == [2, 0]
        counting.source.session.run(validation)
        assert "iterator 'IteratorV2_1' cannot be counted: a run outside" in counting.reason
        counting.base = counting.position
        session.run(step)
        assert counting.counts == [1, 0]


@pytest.mark.parametrize("way", ["run", "make_callable", "partial_run"])
def test_untracked_draws_are_noted_however_they_are_run(way: str) -> None:
    batch = numbers().get_next()
    counting = Counting()
    with session_with(counting):
        raw = counting.source.session
        if way == "run":
            raw.run(batch)
        elif way == "make_callable":
            raw.make_callable(batch)()
        else:
            raw.partial_run(raw.partial_run_setup([batch]), batch)
        assert "outside of the session hooks" in counting.reason


def test_a_partial_run_may_draw_later() -> None:
    batch = numbers().get_next()
    counting = Counting()
    with session_with(counting):
        counting.source.session.partial_run_setup([batch])
        counting.base = counting.position
        assert "outside of the session hooks" in counting.reason


def test_the_input_that_is_held_for_a_save_has_the_position_before_the_untracked_draw() -> None:
    batch = numbers().get_next()
    counting = Counting()
    with session_with(counting) as session:
        session.run(batch)
        before = counting.position
        assert counting.guard.position == before
        counting.source.session.run(batch)
        assert counting.guard.position == before
        counting.guard.close()
        assert counting.guard.position == counting.position != before


def test_an_initialization_makes_the_distance_uncertain() -> None:
    iterator = numbers()
    batch = iterator.get_next()
    counting = Counting()
    with session_with(counting) as session:
        session.run(batch)
        session.run(iterator.initializer)
        assert "may have been initialized again" in counting.reason


def test_a_run_that_fails_makes_its_iterators_uncertain() -> None:
    batch, other = numbers().get_next(), numbers().get_next()
    flag = v1.placeholder_with_default(False, [])
    with tf.control_dependencies([batch, v1.Assert(flag, ["refused"])]):
        step = tf.no_op()
    counting = Counting()
    with session_with(counting) as session:
        session.run(other)
        session.run(step, {flag: True})
        with pytest.raises(tf.errors.InvalidArgumentError):
            session.run(step)
        assert "'IteratorV2' cannot be counted: a run that may have drawn from it failed" in counting.reason


def test_the_end_of_the_data_makes_its_iterator_uncertain() -> None:
    batch = numbers(2).get_next()
    counting = Counting()
    with session_with(counting) as session:
        session.run(batch)
        session.run(batch)
        assert counting.counts == [2]
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run(batch)
        assert "failed" in counting.reason


def test_the_runs_of_a_fast_forward_are_neither_counted_nor_untracked() -> None:
    batch = numbers().get_next()
    first, second = Counting(), Counting()
    with session_with(first, [second]) as session:
        first.source.skip("IteratorV2", 3)
        first.source.draw("IteratorV2")
        assert first.counts == second.counts == [0]
        arguments = v1.train.SessionRunArgs(batch)
        first.guard.check(arguments, 0)
        second.guard.check(arguments, 0)
        assert session.run(batch) == 4


def test_only_the_thread_that_restores_is_not_watched() -> None:
    batch = numbers().get_next()
    counting = Counting()
    with session_with(counting), restoring():
        counting.source.session.run(batch)
        assert counting.counts == [0]
        thread = threading.Thread(target=counting.source.session.run, args=[batch])
        thread.start()
        thread.join()
        assert "outside of the session hooks" in counting.reason


def test_two_hooks_count_one_session() -> None:
    batch = numbers().get_next()
    first, second = Counting(), Counting()
    with session_with(first, [second]) as session:
        for _ in range(4):
            session.run(batch)
        assert first.counts == second.counts == [4]
        assert first.drawn == second.drawn
        assert next_elements(first, batch.name) == [4]


def test_runs_of_a_remote_session_are_counted() -> None:
    server = v1.train.Server.create_local_server()
    batch = numbers().get_next()
    step, counting = assigned("v", batch), Counting()
    with session_with(counting, target=server.target) as session:
        for _ in range(4):
            session.run(step)
        assert counting.counts == [4]


def test_a_program_with_new_fetches_in_every_run_is_counted_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counted_runs, "_MOST_KINDS", 4)
    batch = numbers().get_next()
    fetches = [batch + index for index in range(20)]
    counting = Counting()
    with session_with(counting) as session:
        for fetch in fetches:
            session.run(fetch)
        session.run(fetch)
        assert counting.counts == [21]
        counted = counting.guard._watch._counted
        assert counted is not None
        assert len(counted._kinds) <= 4


def test_a_trace_that_another_hook_asks_for_is_what_it_gets() -> None:
    class Traces(Fetching):
        def before_run(self, run_context: Any) -> Any:
            options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE) if self._every == 1 else None
            return v1.train.SessionRunArgs(None, options=options)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            traces.append(bool(run_values.run_metadata.step_stats.dev_stats))

    traces: list[bool] = []
    batch = numbers().get_next()
    for every in (1, 2):
        with session_with(Counting(), [Traces(None, every=every)]) as session:
            session.run(batch)
            session.run(batch)
    assert traces == [True, True, False, False]


def test_only_the_first_run_of_a_kind_is_traced() -> None:
    batch = numbers().get_next()
    step, counting = assigned("v", batch), Counting()
    levels = []
    with session_with(counting, [Fetching(batch * 2, every=3)]) as session:
        watch = counting.guard._watch
        run = watch._run
        watch._run = lambda fetches, feeds, options, metadata: (
            levels.append(options.trace_level) or run(fetches, feeds, options, metadata)
        )
        for _ in range(6):
            session.run(step)
        # The third run has more fetches, which cannot make the step draw less.
        assert levels == [v1.RunOptions.SOFTWARE_TRACE, 0, 0, 0, 0, 0]
        assert counting.counts == [6]
