"""Which runs draw from the input, read from the graph alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import pytest
import tensorflow as tf

from input_checkpoint.errors import UnsupportedPipelineError
from input_checkpoint.tensorflow.draws import InputUse, InputUseReader, check_queue_runners

v1 = tf.compat.v1


@pytest.fixture
def graph() -> Iterator[Any]:
    with v1.Graph().as_default() as graph:
        yield graph


@pytest.fixture
def iterator(graph: Any) -> Any:
    return v1.data.make_initializable_iterator(tf.data.Dataset.range(100))


def use(fetches: Any, feed_dict: Any = None) -> InputUse:
    return InputUseReader(v1.get_default_graph()).read(fetches, feed_dict)


def drawn(fetches: Any, feed_dict: Any = None) -> set[Any]:
    return {draw.iterator for draw in use(fetches, feed_dict).draws}


DRAWING: dict[str, Callable[[Any], Any]] = {
    "the element": lambda it: it.get_next(),
    "what is computed from it": lambda it: it.get_next() * 2,
    "an operation": lambda it: tf.group(it.get_next()),
    "a control dependency": lambda it: _after(it.get_next()),
    "an optional": lambda it: it.get_next_as_optional().get_value(),
    "a branch": lambda it: tf.cond(tf.equal(v1.placeholder(tf.int32, []), 1), it.get_next, _zero),
    "a loop": lambda it: tf.while_loop(lambda i: i < 3, lambda i: i + it.get_next(), [_zero()]),
    "a function": lambda it: tf.function(it.get_next)(),
    "a structure": lambda it: {"a": [tf.constant(1), (it.get_next(), "no name")], 1: tf.constant(2)},
    "a composite": lambda it: tf.sparse.from_dense([it.get_next()]),
    "a name": lambda it: it.get_next(name="element").name,
    "an alias": lambda it: _alias(it.string_handle()),
}
HARMLESS: dict[str, Callable[[Any], Any]] = {
    "a constant": lambda it: tf.constant(1),
    "a variable": lambda it: v1.get_variable("variable", [], use_resource=True),
    "the global step": lambda it: v1.train.get_or_create_global_step(),
    "the handle": lambda it: it.string_handle(),
    "serialization": lambda it: tf.raw_ops.SerializeIterator(resource_handle=it._iterator_resource),
    "nonsense": lambda it: [None, 7, object()],
}


def _zero() -> Any:
    return tf.constant(0, tf.int64)


def _after(tensor: Any) -> Any:
    with tf.control_dependencies([tensor]):
        return tf.constant(1)


def _alias(handle: Any) -> Any:
    return v1.data.Iterator.from_string_handle(handle, tf.int64, []).get_next()


@pytest.mark.parametrize("fetch", DRAWING)
def test_a_fetch_that_depends_on_an_element_draws(iterator: Any, fetch: str) -> None:
    assert drawn(DRAWING[fetch](iterator)) == {"IteratorV2"}


@pytest.mark.parametrize("fetch", HARMLESS)
def test_other_fetches_draw_nothing(iterator: Any, fetch: str) -> None:
    assert not use(HARMLESS[fetch](iterator)).changes_input


def test_control_flow_of_tensorflow_1_is_looked_into(iterator: Any) -> None:
    v1.disable_control_flow_v2()
    try:
        branch = DRAWING["a branch"](iterator)
        loop = DRAWING["a loop"](iterator)
    finally:
        v1.enable_control_flow_v2()
    assert branch.op.type == "Merge"
    assert drawn(branch) == drawn(loop) == {"IteratorV2"}


def test_an_initializer_changes_the_input_without_drawing_from_it(iterator: Any) -> None:
    assert use(iterator.initializer) == InputUse((), initializes=True)


def test_an_element_that_is_fed_is_not_drawn(iterator: Any) -> None:
    element = iterator.get_next()
    assert drawn(element * 2, {element: 3}) == set()
    assert drawn([element * 2, iterator.get_next()], {element: 3}) == {"IteratorV2"}


def test_a_handle_that_is_fed_tells_which_iterator_is_drawn_from(graph: Any) -> None:
    handle = v1.placeholder(tf.string, [])
    element = _alias(handle)
    training, validation = use(element, {handle: b"one"}), use(element, {handle: b"two"})
    assert not training.draws[0].may_be(validation.draws[0])
    assert training.draws[0].may_be(use(element, {handle: b"one"}).draws[0])


def test_a_handle_may_stand_for_any_named_iterator(iterator: Any) -> None:
    handle = v1.placeholder(tf.string, [])
    by_handle, by_name = use(_alias(handle), {handle: b"one"}), use(iterator.get_next())
    assert by_handle.draws[0].may_be(by_name.draws[0])


def test_a_queue_that_is_filled_from_an_iterator_is_refused(iterator: Any) -> None:
    v1.train.batch([iterator.get_next()], 2)
    with pytest.raises(UnsupportedPipelineError, match=r"'IteratorV2' in a thread of its own.*prefetch"):
        check_queue_runners(v1.get_default_graph())


def test_a_queue_that_is_filled_from_something_else_is_accepted(iterator: Any) -> None:
    v1.train.batch([tf.constant(1)], 2)
    check_queue_runners(v1.get_default_graph())
