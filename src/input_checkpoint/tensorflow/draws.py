"""Which runs of a session draw from the input: read from the graph alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

import tensorflow as tf

from input_checkpoint.errors import UnsupportedPipelineError
from input_checkpoint.tensorflow.dataset_graph import ALIAS_TYPES

_ITERATOR_TYPES = ALIAS_TYPES | {
    "AnonymousIterator",
    "AnonymousIteratorV2",
    "AnonymousIteratorV3",
    "AnonymousMultiDeviceIterator",
    "AnonymousMultiDeviceIteratorV3",
    "Iterator",
    "IteratorV2",
    "MultiDeviceIterator",
    "MultiDeviceIteratorFromStringHandle",
    "OneShotIterator",
}
# They pass a handle on. The control flow of TensorFlow 1 is among them.
_TRANSPARENT = frozenset(
    ("Enter", "Exit", "Identity", "IdentityN", "Merge", "NextIteration", "RefSwitch", "Switch")
)
_INITIALIZERS = frozenset(("MakeIterator", "MultiDeviceIteratorInit"))
# Everything else that reads a handle may draw, such as a conditional or a function that it is passed to.
_NOT_DRAWING = (
    _INITIALIZERS
    | _TRANSPARENT
    | {
        "DeleteIterator",
        "DeleteMultiDeviceIterator",
        "DeserializeIterator",
        "IteratorGetModelProto",
        "IteratorToStringHandle",
        "MultiDeviceIteratorToStringHandle",
        "SerializeIterator",
    }
)
_TO_HANDLE = frozenset(("IteratorToStringHandle", "MultiDeviceIteratorToStringHandle"))
GET_NEXT_TYPES = frozenset(("IteratorGetNext", "IteratorGetNextSync"))
"""Operations that draw once whenever they run."""
# Some of their outputs may be dead: what depends on them may not run, or run several times.
_BRANCHING = frozenset(
    ("Enter", "LoopCond", "NextIteration", "RefEnter", "RefNextIteration", "RefSwitch", "Switch")
)
_JOINING = frozenset(("Exit", "Merge", "RefExit", "RefMerge"))


@dataclass(frozen=True)
class Draw:
    """An iterator that a run draws from, and the fetch that makes it draw."""

    iterator: Union[str, bytes]
    """Name of the iterator in the graph, or the handle that was fed if the name is unknown."""
    fetch: str

    def may_be(self, other: Draw) -> bool:
        """Whether both may draw from the same iterator."""
        if isinstance(self.iterator, bytes) != isinstance(other.iterator, bytes):
            return True
        return self.iterator == other.iterator


@dataclass(frozen=True)
class DrawOperation:
    """An operation of a run that draws from an iterator."""

    name: str
    iterator: Union[str, bytes]
    """As in `Draw`. An operation whose iterator cannot be found has its own name here."""
    uncertain: Optional[str] = None
    """Why it may draw never or several times in one run. None: it draws exactly once if it runs at all."""
    after: frozenset[str] = frozenset()
    """Names of the operations that always run before it: its control inputs."""


@dataclass(frozen=True)
class InputUse:
    """What a run does to the iterators of its graph."""

    draws: tuple[Draw, ...] = ()
    initializes: bool = False
    operations: tuple[DrawOperation, ...] = ()
    """What draws, each operation once. TensorFlow may leave out one whose result it does not need."""

    @property
    def changes_input(self) -> bool:
        """Whether an iterator is in another state after the run."""
        return bool(self.draws) or self.initializes


@dataclass(frozen=True)
class _Reached:
    """The operations on iterators that one fetch makes TensorFlow run."""

    readers: tuple[tuple[Any, tuple[Any, ...]], ...] = ()
    """The operations that draw, each with the iterators that it may draw from."""
    initializes: bool = False


_NOTHING = _Reached()
_NO_USE = InputUse()


class InputUseReader:
    """Tells what a run does to the input. Looks at each fetch once.

    Args:
        graph: of the session.
    """

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._reached: dict[tuple[str, frozenset[str]], _Reached] = {}
        self._order: dict[str, tuple[Optional[str], frozenset[str]]] = {}
        # By identity, which is much faster than by name. Holding the objects keeps their identities.
        self._harmless: dict[int, Any] = {}

    def read(self, fetches: Any, feed_dict: Optional[Mapping[Any, Any]] = None) -> InputUse:
        """Return what ``session.run(fetches, feed_dict)`` does to the input."""
        reached = [(fetch, self._reached_by(fetch, frozenset())) for fetch in self._suspects(fetches)]
        if not reached:
            return _NO_USE
        if feed_dict:
            # A value that is fed need not be computed.
            fed = self._fed(feed_dict)
            reached = [(fetch, self._reached_by(fetch, frozenset(fed))) for fetch, _ in reached]
        else:
            fed = {}
        draws = {
            Draw(_identity(source, fed), fetch.name)
            for fetch, found in reached
            for _, sources in found.readers
            for source in sources
        }
        readers = dict(reader for _, found in reached for reader in found.readers)
        operations = [
            operation
            for reader, sources in readers.items()
            for operation in self._operations(reader, sources, fed)
        ]
        return InputUse(tuple(draws), any(found.initializes for _, found in reached), tuple(operations))

    def fed_names(self, feed_dict: Mapping[Any, Any]) -> frozenset[str]:
        """Return the names of the tensors that are fed."""
        return frozenset(self._fed(feed_dict))

    def _operations(
        self, reader: Any, sources: tuple[Any, ...], fed: Mapping[str, Any]
    ) -> Iterator[DrawOperation]:
        if reader.name not in self._order:
            names = (str(operation.name) for operation in reader.control_inputs)
            self._order[reader.name] = why_uncertain(reader), frozenset(names)
        uncertain, after = self._order[reader.name]
        if len(sources) > 1:
            uncertain = uncertain or f"operation {reader.name!r} draws from one of several iterators"
        identities: list[Union[str, bytes]] = [_identity(source, fed) for source in sources]
        for identity in identities or [str(reader.name)]:
            yield DrawOperation(str(reader.name), identity, uncertain, after)

    def _suspects(self, fetches: Any) -> Iterator[Any]:
        """Yield the tensors and operations of a structure that change the input unless something is fed."""
        for element in flatten(fetches):
            if id(element) in self._harmless:
                continue
            found = list(self._elements([element]))
            suspects = [fetch for fetch in found if self._reached_by(fetch, frozenset()) != _NOTHING]
            if not suspects and isinstance(element, (tf.Tensor, tf.Operation)):
                self._harmless[id(element)] = element
            yield from suspects

    def _elements(self, fetches: Any) -> Iterator[Any]:
        """Yield the tensors and operations of a structure, without what TensorFlow itself would refuse."""
        for fetch in flatten(fetches):
            try:
                yield self._graph.as_graph_element(fetch)
            except (TypeError, ValueError, KeyError):
                continue

    def _fed(self, feed_dict: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the fed values by the names of their tensors."""
        fed: dict[str, Any] = {}
        for key, value in feed_dict.items():
            fed.update((tensor.name, value) for tensor in self._elements([key]))
        return fed

    def _reached_by(self, fetch: Any, fed: frozenset[str]) -> _Reached:
        known = self._reached.get((fetch.name, fed))
        if known is None:
            known = self._reached[fetch.name, fed] = _reach(fetch, fed)
        return known


def handles(graph: Any) -> dict[str, Any]:
    """Return the tensor that holds the handle of each iterator, by the iterator's name.

    TensorFlow adds such a tensor for every iterator of a graph.
    """
    found: dict[str, Any] = {}
    for operation in graph.get_operations():
        if operation.type in _TO_HANDLE:
            sources = [source for source in _sources(operation.inputs) if source.type not in ALIAS_TYPES]
            found.update((str(source.name), operation.outputs[0]) for source in sources)
    return found


def readers_of(graph: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield the operations of a graph that draw, each with the iterators or aliases that it may draw from."""
    for operation in graph.get_operations():
        if operation.type not in _NOT_DRAWING:
            sources = tuple(_sources(operation.inputs))
            if sources or operation.type in GET_NEXT_TYPES:
                yield operation, sources


def why_uncertain(reader: Any) -> Optional[str]:
    """Return why an operation may draw never or several times in one run, or None if it draws once.

    Args:
        reader: an operation that reads the handle of an iterator.
    """
    if reader.type not in GET_NEXT_TYPES:
        return f"operation {reader.name!r} ({reader.type}) decides by itself how often it draws"
    waiting, seen = [reader], {reader}
    while waiting:
        operation = waiting.pop()
        if operation.type in _BRANCHING:
            return f"operation {reader.name!r} draws inside a conditional or a loop"
        if operation.type in _JOINING:
            continue
        before = {*operation.control_inputs, *(tensor.op for tensor in operation.inputs)} - seen
        seen |= before
        waiting.extend(before)
    return None


def check_queue_runners(graph: Any) -> None:
    """Raise UnsupportedPipelineError if a queue runner draws from an iterator."""
    reader = InputUseReader(graph)
    for runner in graph.get_collection(tf.compat.v1.GraphKeys.QUEUE_RUNNERS):
        for draw in reader.read(list(runner.enqueue_ops)).draws:
            raise UnsupportedPipelineError(
                f"The queue runner {runner.name!r} draws from iterator {draw.iterator!r} in a thread of its "
                "own, and what is in its queue cannot be saved. Use Dataset.batch, shuffle and prefetch "
                "instead of queues."
            )


def _reach(fetch: Any, fed: frozenset[str]) -> _Reached:
    """Walk from a fetch to everything that it depends on."""
    readers: dict[Any, tuple[Any, ...]] = {}
    initializes = False
    seen = set()
    waiting = [] if fetch.name in fed else [_operation(fetch)]
    while waiting:
        operation = waiting.pop()
        if operation in seen:
            continue
        seen.add(operation)
        inputs = list(operation.inputs)
        initializes = initializes or operation.type in _INITIALIZERS
        if operation.type not in _NOT_DRAWING:
            sources = tuple(_sources(inputs))
            if sources or operation.type in GET_NEXT_TYPES:
                readers[operation] = sources
        waiting.extend(operation.control_inputs)
        waiting.extend(tensor.op for tensor in inputs if tensor.name not in fed)
    return _Reached(tuple(readers.items()), initializes)


def flatten(fetches: Any) -> Iterator[Any]:
    """Yield the parts of a structure of fetches."""
    if isinstance(fetches, (tf.Tensor, tf.Operation)):
        yield fetches
        return
    if type(fetches) in (list, tuple):
        for value in fetches:
            yield from flatten(value)
        return
    if isinstance(fetches, Mapping):
        # TensorFlow's own function sorts the keys, which a session does not require.
        for value in fetches.values():
            yield from flatten(value)
        return
    yield from tf.nest.flatten(fetches, expand_composites=True)


def _operation(fetch: Any) -> Any:
    return fetch if isinstance(fetch, tf.Operation) else fetch.op


def _sources(inputs: Iterable[Any]) -> Iterator[Any]:
    """Yield the iterators whose handles are among the inputs of an operation."""
    waiting = [tensor.op for tensor in inputs if tensor.dtype == tf.resource]
    seen = set()
    while waiting:
        operation = waiting.pop()
        if operation in seen:
            continue
        seen.add(operation)
        if operation.type in _ITERATOR_TYPES:
            yield operation
        elif operation.type in _TRANSPARENT:
            waiting.extend(tensor.op for tensor in operation.inputs if tensor.dtype == tf.resource)


def _identity(source: Any, fed: Mapping[str, Any]) -> Union[str, bytes]:
    """Return what identifies an iterator: its name, or the handle that was fed in its place."""
    if source.type not in ALIAS_TYPES:
        return str(source.name)
    handle = source.inputs[0]
    if handle.name in fed:
        value = fed[handle.name]
        return value if isinstance(value, bytes) else str(value).encode()
    if handle.op.type in _TO_HANDLE:
        for real in _sources(handle.op.inputs):
            return str(real.name)
    return str(source.name)
