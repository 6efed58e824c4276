"""Counts the draws of runs with hooks, and takes digests of what they draw.

The graph alone does not tell what a run draws: TensorFlow leaves out an operation whose result it does not
need, such as a batch of which only the static shape is used. So the first run of each kind is traced. After
that, an operation outside of conditionals and loops runs every time or never, because TensorFlow keeps what
it has made of the graph as long as the fetches and the fed tensors are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import tensorflow as tf

from input_checkpoint.tensorflow.batch_digest import BatchDigests, digest_text
from input_checkpoint.tensorflow.draw_counter import DrawCounter
from input_checkpoint.tensorflow.draws import DrawOperation, InputUse, InputUseReader, flatten

v1 = tf.compat.v1

_MOST_KINDS = 256
"""A program that makes new fetches for every run must not fill the memory."""

_Key = tuple[frozenset[Any], frozenset[Any]]


@dataclass(frozen=True)
class _Draws:
    """What the runs of a kind draw."""

    use: InputUse
    """With the operations that TensorFlow runs."""
    iterators: frozenset[str]
    last: Mapping[str, str]
    """The operation that draws the last batch of each iterator, if that is certain."""

    @classmethod
    def of(cls, use: InputUse) -> _Draws:
        """Return the draws of a run with these operations."""
        readers: dict[str, list[DrawOperation]] = {}
        for operation in use.operations:
            readers.setdefault(str(operation.iterator), []).append(operation)
        found = {name: _last_of(operations) for name, operations in readers.items()}
        return cls(use, frozenset(readers), {name: last for name, last in found.items() if last is not None})


@dataclass
class _Kind:
    """All runs with the same fetches and the same fed tensors."""

    use: InputUse
    """What such a run may draw."""
    parts: list[Any]
    """What the key was made from. Holding the objects keeps their identities."""
    by_handle: bool
    """Whether the values of fed handles say which iterators are drawn from."""
    executed: Optional[frozenset[str]] = None
    """The operations that TensorFlow runs. None: that is unknown."""
    draws: Optional[_Draws] = None
    """None: no run of this kind has been traced yet."""

    def note(self, executed: Optional[frozenset[str]]) -> None:
        """Note which operations TensorFlow runs."""
        self.executed = executed
        self.draws = _Draws.of(_only_executed(self.use, executed))


class CountedRuns:
    """Runs a session for `DrawWatch`, and counts.

    Args:
        session: the raw session.
        reader: says what a run may draw.
        named: replaces handles by the names of their iterators.
        counter: where draws are counted.
        digests: of the operations that draw.
    """

    def __init__(
        self,
        session: Any,
        reader: InputUseReader,
        named: Callable[[InputUse], InputUse],
        counter: DrawCounter,
        digests: BatchDigests,
    ) -> None:
        self.counter = counter
        self._reader = reader
        self._named = named
        self._digests = digests
        # A remote session knows one kind of trace, and a local one would trace the devices as well.
        self._trace = v1.RunOptions.FULL_TRACE if session.sess_str else v1.RunOptions.SOFTWARE_TRACE
        self._kinds: dict[_Key, _Kind] = {}
        self._drawn: frozenset[str] = frozenset()
        self._rare: frozenset[str] = frozenset()
        # Another hook may add digests of its own to the same run.
        self._key_of_digests = object()

    def run(
        self,
        run: Callable[..., Any],
        fetches: dict[Any, Any],
        feed_dict: Optional[Mapping[Any, Any]],
        with_digests: bool,
        options: Optional[Any] = None,
        run_metadata: Optional[Any] = None,
    ) -> Any:
        """Run the session once, and count what it draws.

        Args:
            run: ``Session.run``.
            fetches: of the caller and of all hooks.
            feed_dict: of the caller and of all hooks.
            with_digests: whether to take digests of what is drawn.
            options: for ``run``.
            run_metadata: for ``run``.
        """
        kind = self._kind(fetches, feed_dict)
        if not kind.use.changes_input:
            return run(fetches, feed_dict, options, run_metadata)
        tensors: dict[str, Any] = {}
        try:
            if kind.draws is None:
                result = self._traced(kind, run, fetches, feed_dict, options, run_metadata)
                draws = self._draws(kind, fetches, feed_dict)
            else:
                draws = self._draws(kind, fetches, feed_dict)
                tensors = self._tensors(draws, feed_dict, with_digests)
                if tensors:
                    fetches = {**fetches, self._key_of_digests: tensors}
                result = run(fetches, feed_dict, options, run_metadata)
        except BaseException:
            self.counter.failed(kind.use)
            raise
        self.counter.observed(draws.use)
        if with_digests and draws.iterators:
            self._rare |= self._drawn - draws.iterators
        self._drawn |= draws.iterators
        if tensors:
            for name, value in result.pop(self._key_of_digests).items():
                self.counter.digested(name, digest_text(value))
        return result

    def _kind(self, fetches: dict[Any, Any], feed_dict: Optional[Mapping[Any, Any]]) -> _Kind:
        parts = list(flatten(fetches))
        fed = list(feed_dict or ())
        key = frozenset(map(_identity, parts)), frozenset(map(_identity, fed))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            use = self._reader.read(fetches, feed_dict)
            by_handle = any(isinstance(operation.iterator, bytes) for operation in use.operations)
            # The use of a run by handle is not named, because the next run may have another one.
            kind = _Kind(use if by_handle else self._named(use), [*parts, *fed], by_handle)
            executed = self._known(key, use)
            if executed is not None:
                kind.note(executed)
            self._kinds[key] = kind
        return kind

    def _draws(self, kind: _Kind, fetches: Any, feed_dict: Optional[Mapping[Any, Any]]) -> _Draws:
        assert kind.draws is not None, "the kind is known or traced"
        if not kind.by_handle:
            return kind.draws
        use = self._named(self._reader.read(fetches, feed_dict))
        return _Draws.of(_only_executed(use, kind.executed))

    def _known(self, key: _Key, use: InputUse) -> Optional[frozenset[str]]:
        """Return what runs of a kind execute, if the traced runs with some of its fetches say so."""
        fetches, fed = key
        executed = frozenset(
            name
            for (others, other_fed), kind in self._kinds.items()
            if other_fed == fed and others <= fetches
            for name in kind.executed or ()
        )
        certain = {operation.name for operation in use.operations if operation.uncertain is None}
        return executed & certain if certain <= executed else None

    def _traced(
        self,
        kind: _Kind,
        run: Callable[..., Any],
        fetches: Any,
        feed_dict: Any,
        options: Optional[Any],
        run_metadata: Optional[Any],
    ) -> Any:
        tracing = v1.RunOptions()
        if options is not None:
            tracing.CopyFrom(options)
        is_wanted = tracing.trace_level != v1.RunOptions.NO_TRACE
        tracing.trace_level = max(tracing.trace_level, self._trace)
        metadata = v1.RunMetadata() if run_metadata is None else run_metadata
        result = run(fetches, feed_dict, tracing, metadata)
        kind.note(_executed(metadata.step_stats, kind.use))
        if not is_wanted:
            metadata.ClearField("step_stats")
        return result

    def _tensors(
        self, draws: _Draws, feed_dict: Optional[Mapping[Any, Any]], with_digests: bool
    ) -> dict[str, Any]:
        """Return the digests to take, by the names of the iterators.

        An iterator that only some runs draw from needs a digest each time, because its last batch before a
        mark may come many runs earlier.
        """
        if not with_digests and self._rare.isdisjoint(draws.iterators):
            return {}
        fed = self._reader.fed_names(feed_dict or {})
        found = {
            name: self._digests.tensor(operation)
            for name, operation in draws.last.items()
            # If one output is fed, the operation may run only for the others, which the digest needs.
            if (with_digests or name in self._rare) and fed.isdisjoint(self._digests.outputs(operation))
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def _last_of(operations: Sequence[DrawOperation]) -> Optional[str]:
    """Return which of the operations that draw from an iterator runs last, or None if that is not certain."""
    names = {operation.name for operation in operations}
    if any(operation.uncertain is not None for operation in operations):
        return None
    return next(
        (operation.name for operation in operations if names - {operation.name} <= operation.after), None
    )


def _identity(part: Any) -> Any:
    return part if isinstance(part, (str, bytes)) else id(part)


def _executed(step_stats: Any, use: InputUse) -> Optional[frozenset[str]]:
    """Return which of the operations of a traced run have run. None: there is no trace."""
    if not step_stats.dev_stats:
        return None
    wanted = {operation.name for operation in use.operations}
    nodes = (node.node_name for device in step_stats.dev_stats for node in device.node_stats)
    return frozenset(wanted.intersection(nodes))


def _only_executed(use: InputUse, executed: Optional[frozenset[str]]) -> InputUse:
    """Return the use of a run without the operations that TensorFlow leaves out."""
    if executed is None:
        reason = "the session does not say which operations run"
        operations = tuple(replace(operation, uncertain=reason) for operation in use.operations)
    else:
        operations = tuple(
            operation
            for operation in use.operations
            if operation.name in executed or operation.uncertain is not None
        )
    return replace(use, operations=operations)
