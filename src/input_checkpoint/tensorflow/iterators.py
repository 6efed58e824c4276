"""TensorFlow iterators in a session graph: their state out, and in again.

The only module that touches TensorFlow's serialize and deserialize operations. A snapshot is held in memory
by a ``MapStage`` container inside the session, encoded slice by slice from another thread, and restored
through the same container.

Facts this is built on, all measured with TensorFlow 2.15.1 and 2.21:

* ``SerializeIterator`` gives a vector of variants, about one for each buffered element
  (tensorflow/core/kernels/data/iterator_ops.cc).
* Encoding more than 2 GB of variants in one tensor kills the process, so the loop below encodes a few
  elements at a time and stops by bytes (docs/decisions/2026-11-22-encode-in-small-blocks.md).
* Of the joining operations, only ``DynamicStitch`` and ``ParallelDynamicStitch`` accept variants in a graph.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import uuid
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf

from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import (
    CorruptCheckpointError,
    PipelineMismatchError,
    SnapshotLostError,
    UnsupportedPipelineError,
)
from input_checkpoint.parallel import map_ordered, prefetch_one
from input_checkpoint.state import Element, ElementBatch, IteratorState, StoredState
from input_checkpoint.tensorflow.variants import join_variants, split_payload, split_variants

v1 = tf.compat.v1

# Every iterator of a graph is in this collection: tensorflow/python/data/ops/iterator_ops.py.
_GLOBAL_ITERATORS = "iterators"

# tensorflow/core/framework/dataset_options.proto, ExternalStatePolicy.
_POLICIES = {"warn": 0, "ignore": 1, "fail": 2}

_SLICE_BYTES = 8 << 20
_BLOCK_ELEMENTS = 4
_LARGE_ELEMENT_BYTES = 64 << 20
_DECODERS = 2
"""Slices decoded at once, while the next ones are being read."""

_SERIALIZE_ERRORS = (tf.errors.UnimplementedError, tf.errors.FailedPreconditionError)
# What a machine that goes away or is short of memory brings about. TensorFlow answers some of them with a
# new session; they say nothing about the state.
_PASSING_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.UnavailableError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
)
# A session that was closed raises RuntimeError, one that is being closed CancelledError.
_SESSION_GONE = (
    RuntimeError,
    tf.errors.CancelledError,
    tf.errors.AbortedError,
    tf.errors.UnavailableError,
)


def external_state_policy_number(policy: Optional[Union[str, Any]]) -> int:
    """Return TensorFlow's number for an external state policy.

    Args:
        policy: ``'fail'`` (also None), ``'warn'``, ``'ignore'``, or TensorFlow's own enum value.

    Raises:
        ValueError: anything else.
    """
    if isinstance(policy, tf.data.experimental.ExternalStatePolicy):
        policy = policy.name.lower()
    policy = "fail" if policy is None else policy
    if policy not in _POLICIES:
        advice = " For the URI of a backend, pass backend=." if isinstance(policy, (str, os.PathLike)) else ""
        raise ValueError(
            "Invalid `ExternalStatePolicy.` Supported values include 'warn', 'ignore', and 'fail.' "
            f"Received {redact(str(policy))}.{advice}"
        )
    return _POLICIES[policy]


class GraphIterators:
    """All iterators of one graph, with the operations that save and restore them.

    Build it before the graph is finalised; use it with any session on that graph.

    Args:
        graph: the graph with the iterators.
        policy: a number from `external_state_policy_number`.

    Raises:
        ValueError: the graph has no iterator.
    """

    def __init__(self, graph: Any, policy: int) -> None:
        resources = graph.get_collection(_GLOBAL_ITERATORS)
        if not resources:
            raise ValueError(
                "There is no iterator in the graph, so there is no input pipeline to checkpoint. "
                "Return a tf.data.Dataset from input_fn, or build the iterator inside it."
            )
        self._keys = itertools.count(1)
        # Its own, so that two hooks on one graph do not take each other's snapshots.
        container = f"input_checkpoint/{uuid.uuid4().hex}"
        with graph.as_default(), graph.name_scope("input_checkpoint"):
            self._ops = [_IteratorOps(graph, resource, policy, container) for resource in resources]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the iterators in the graph."""
        return tuple(ops.name for ops in self._ops)

    def bind(self, session: Any) -> SessionIterators:
        """Return the iterators as they are in one session."""
        return SessionIterators(self, session)

    def snapshot(self, session: Any) -> HeldSnapshot:
        """Hold the state of all iterators in memory. Costs microseconds an element, whatever its size.

        Raises:
            UnsupportedPipelineError: TensorFlow cannot serialise one of the pipelines.
        """
        key = next(self._keys)
        try:
            session.run([ops.hold for ops in self._ops], {ops.key: key for ops in self._ops})
        except _SERIALIZE_ERRORS as error:
            raise UnsupportedPipelineError(_unsupported(error)) from error
        return HeldSnapshot(session, self._ops, key)

    def restore(self, session: Any, states: Iterable[StoredState]) -> None:
        """Put iterators back into a stored state. They change only after all of it has been read.

        Raises:
            PipelineMismatchError: the state is not that of these iterators.
            CorruptCheckpointError: raised by the stream of states.
        """
        try:
            feeds = self._hold_all(session, states)
            session.run([ops.restore for ops in self._ops], feeds)
        except _PASSING_ERRORS:
            raise
        except tf.errors.NotFoundError as error:
            raise PipelineMismatchError(
                f"the pipeline needs something that is not there any more: {_reason(error)}. Put it back."
            ) from error
        except tf.errors.OpError as error:
            raise PipelineMismatchError(
                f"TensorFlow cannot restore this state into this input pipeline: {_reason(error)}. "
                "A state fits only the pipeline that it was taken from: same datasets, same order of "
                "transformations."
            ) from error
        finally:
            # In a session that is broken nothing is left to drop.
            with contextlib.suppress(*_SESSION_GONE):
                session.run([ops.drop_all for ops in self._ops])

    def _hold_all(self, session: Any, states: Iterable[StoredState]) -> dict[Any, Any]:
        """Decode all states into held vectors; return the feeds that restore them."""
        feeds: dict[Any, Any] = {}
        for state in states:
            ops = self._counterpart(state.name)
            if ops.key in feeds:
                raise PipelineMismatchError(
                    f"the checkpoint was taken of several iterators, {state.name!r} among them; this graph "
                    f"has {', '.join(self.names)}"
                )
            feeds[ops.key], feeds[ops.positions] = self._hold_encoded(session, ops, state)
        missing = {ops.name for ops in self._ops if ops.key not in feeds}
        if missing:
            raise PipelineMismatchError(
                f"the checkpoint has no state for iterator {', '.join(sorted(missing))}"
            )
        return feeds

    def _counterpart(self, name: str) -> _IteratorOps:
        by_name = {ops.name: ops for ops in self._ops}
        if name in by_name:
            return by_name[name]
        if len(by_name) == 1:
            # With a single iterator there is no doubt which one is meant, even if the graph names it
            # otherwise.
            return self._ops[0]
        raise PipelineMismatchError(
            f"the checkpoint was taken of an iterator named {name!r}; this graph has {', '.join(by_name)}"
        )

    def _hold_encoded(self, session: Any, ops: _IteratorOps, state: StoredState) -> tuple[int, Sequence[int]]:
        """Decode a stored state into one held vector, joining neighbours of equal weight in pairs.

        Returns its key, and the positions at which its elements belong.
        """

        def hold(piece: ElementBatch) -> tuple[int, Sequence[int]]:
            key = next(self._keys)
            session.run(ops.hold_encoded, {ops.key: key, ops.encoded: join_variants(piece.elements)})
            return key, piece.positions

        held: list[tuple[int, int]] = []
        positions = array("i")
        for key, places in map_ordered(hold, _slices(state.batches), _DECODERS):
            positions.extend(places)
            weight = 1
            while held and held[-1][1] <= weight:
                left, left_weight = held.pop()
                key, weight = self._join(session, ops, left, key), weight + left_weight
            held.append((key, weight))
        if not held or not _is_permutation(positions, state.count):
            raise CorruptCheckpointError(f"the state of iterator {ops.name!r} is incomplete")
        key = held.pop()[0]
        while held:
            key = self._join(session, ops, held.pop()[0], key)
        return key, positions

    def _join(self, session: Any, ops: _IteratorOps, left: int, right: int) -> int:
        key = next(self._keys)
        session.run(ops.join, {ops.key: key, ops.left: left, ops.right: right})
        return key


@dataclass(frozen=True)
class SessionIterators:
    """The iterators of a graph in one session: an `InputSource`."""

    iterators: GraphIterators
    session: Any

    @property
    def names(self) -> tuple[str, ...]:
        """See `InputSource.names`."""
        return self.iterators.names

    def snapshot(self) -> HeldSnapshot:
        """See `InputSource.snapshot`."""
        return self.iterators.snapshot(self.session)

    def restore(self, states: Iterable[StoredState]) -> None:
        """See `InputSource.restore`."""
        self.iterators.restore(self.session, states)


class HeldSnapshot:
    """Iterator state held in memory by a session. Must be released."""

    def __init__(self, session: Any, ops: Sequence[_IteratorOps], key: int) -> None:
        self._session = session
        self._ops = ops
        self._key = key
        self._lock = threading.Lock()
        self._released = False

    def states(self) -> Iterator[IteratorState]:
        """Yield the encoded state of each iterator, as streams. May run in any thread."""
        for ops in self._ops:
            yield IteratorState(ops.name, self._encode(ops))

    def release(self) -> None:
        """Give the memory back. What is being encoded meanwhile ends with `SnapshotLostError`."""
        # A session that was closed in the meantime has given it back already.
        with self._lock, contextlib.suppress(*_SESSION_GONE):
            self._released = True
            self._session.run([ops.drop for ops in self._ops], {ops.key: self._key for ops in self._ops})

    def _run(self, fetches: Any, feeds: dict[Any, Any]) -> Any:
        # TensorFlow would wait for ever for a vector that is held no more.
        with self._lock:
            if self._released:
                raise SnapshotLostError("the snapshot was released before it was encoded")
            try:
                return self._session.run(fetches, feeds)
            except _SESSION_GONE as error:
                raise SnapshotLostError(
                    f"the session was closed before its snapshot was encoded: {error}"
                ) from error

    def _encode(self, ops: _IteratorOps) -> Iterator[Element]:
        # TensorFlow encodes a slice while the one before is taken apart, hashed, compressed and stored.
        for encoded in prefetch_one(self._encoded_slices(ops)):
            for text in encoded:
                yield from map(split_payload, split_variants(text))

    def _encoded_slices(self, ops: _IteratorOps) -> Iterator[Sequence[bytes]]:
        count = self._run(ops.count, {ops.key: self._key})
        start, block = 0, _BLOCK_ELEMENTS
        while start < count:
            start, encoded = self._run(
                [ops.slice_end, ops.slice],
                {ops.key: self._key, ops.start: start, ops.block: block},
            )
            if max(map(len, encoded)) > _LARGE_ELEMENT_BYTES:
                block = 1
            yield encoded


class _IteratorOps:
    """The operations of one iterator. All of them work on vectors held under an integer key."""

    def __init__(self, graph: Any, resource: Any, policy: int, container: str) -> None:
        self.name: str = resource.op.name
        self._shared_name = f"{container}/{self.name}"
        with graph.colocate_with(resource.op, ignore_existing=True):
            self.key = v1.placeholder(tf.int64, [], name="key")
            self.hold = self._put(
                self.key,
                tf.raw_ops.SerializeIterator(resource_handle=resource, external_state_policy=policy),
            )
            self._build_encode()
            self._build_decode()
            self.positions = v1.placeholder(tf.int32, [None], name="positions")
            in_order = tf.raw_ops.ParallelDynamicStitch(
                indices=[self.positions], data=[tf.reshape(self._take(self.key), [-1])]
            )
            self.restore = tf.raw_ops.DeserializeIterator(resource_handle=resource, serialized=in_order)
            self.drop = self._take(self.key).op
            self.drop_all = tf.raw_ops.MapClear(dtypes=[tf.variant], shared_name=self._shared_name)

    def _build_encode(self) -> None:
        vector = tf.raw_ops.MapPeek(
            key=self.key, indices=[0], dtypes=[tf.variant], shared_name=self._shared_name
        )[0]
        self.count = tf.size(vector)
        self.start = v1.placeholder(tf.int32, [], name="start")
        self.block = v1.placeholder(tf.int32, [], name="block")
        self.slice_end, self.slice = _encode_slice(vector, self.count, self.start, self.block)

    def _build_decode(self) -> None:
        self.encoded = v1.placeholder(tf.string, [], name="encoded")
        self.hold_encoded = self._put(self.key, tf.io.parse_tensor(self.encoded, tf.variant))
        self.left = v1.placeholder(tf.int64, [], name="left")
        self.right = v1.placeholder(tf.int64, [], name="right")
        left, right = (tf.reshape(self._take(key), [-1]) for key in (self.left, self.right))
        middle = tf.size(left)
        joined = tf.raw_ops.ParallelDynamicStitch(
            indices=[tf.range(middle), middle + tf.range(tf.size(right))], data=[left, right]
        )
        self.join = self._put(self.key, joined)

    def _put(self, key: Any, vector: Any) -> Any:
        return tf.raw_ops.MapStage(
            key=key,
            indices=[0],
            values=[vector],
            dtypes=[tf.variant],
            shared_name=self._shared_name,
        )

    def _take(self, key: Any) -> Any:
        return tf.raw_ops.MapUnstage(
            key=key, indices=[0], dtypes=[tf.variant], shared_name=self._shared_name
        )[0]


def _encode_slice(vector: Any, count: Any, start: Any, block: Any) -> tuple[Any, Any]:
    """Encode ``vector`` from ``start`` until the bytes suffice. Gives the end and a vector of strings."""
    blocks = tf.TensorArray(tf.string, size=0, dynamic_size=True, element_shape=[])

    def go_on(position: Any, size: Any, index: Any, blocks: Any) -> Any:
        return tf.logical_and(position < count, size < _SLICE_BYTES)

    def encode(position: Any, size: Any, index: Any, blocks: Any) -> Any:
        end = tf.minimum(position + block, count)
        text = tf.io.serialize_tensor(vector[position:end])
        size += tf.cast(tf.strings.length(text), tf.int64)
        return end, size, index + 1, blocks.write(index, text)

    nothing = tf.constant(0, tf.int64)
    end, _, _, blocks = tf.while_loop(
        go_on, encode, [start, nothing, tf.constant(0), blocks], parallel_iterations=1
    )
    return end, blocks.stack()


def _slices(pieces: Iterable[ElementBatch]) -> Iterator[ElementBatch]:
    """Cut and join pieces for decoding: few enough bytes for one tensor, enough to make few tensors."""
    positions: list[int] = []
    elements: list[Element] = []
    size = 0
    for piece in pieces:
        for position, element in zip(piece.positions, piece.elements):
            positions.append(position)
            elements.append(element)
            size += len(element[1])
            if size >= _SLICE_BYTES:
                yield ElementBatch(positions, elements)
                positions, elements, size = [], [], 0
    if elements:
        yield ElementBatch(positions, elements)


def _is_permutation(positions: Sequence[int], count: int) -> bool:
    """Whether each position from 0 to ``count`` - 1 is there once."""
    return len(positions) == count and np.array_equal(np.sort(positions), np.arange(count))


def _unsupported(error: Any) -> str:
    reason = _reason(error)
    if "PyFunc is stateful" in reason:
        advice = (
            "The pipeline calls Python. from_generator can never be saved; with py_function or "
            "numpy_function "
            "pass external_state_policy='ignore' if what the function remembers need not be restored."
        )
    elif "not been initialized" in reason:
        advice = (
            "An iterator of this graph is not in use: run its initializer (add it to "
            "tf.compat.v1.GraphKeys.TABLE_INITIALIZERS), or do not build it."
        )
    elif "is stateful" in reason:
        advice = (
            "The pipeline depends on state outside of it, such as random numbers or a variable. Remove it, "
            "or "
            "pass external_state_policy='ignore' if that state need not be restored."
        )
    else:
        advice = (
            "TensorFlow cannot save pipelines with from_generator, prefetch_to_device, tf.data service or "
            "distributed iterators. Build the pipeline from files or tensors instead."
        )
    return f"TensorFlow cannot serialise this input pipeline: {reason}. {advice}"


_FRAME = (" ", "\t", "Graph execution error", "Detected at", "Node:", "<stack", "Original stack")


def _reason(error: Any) -> str:
    """Return what a TensorFlow error says, without the graph's stack trace around it."""
    lines = [line for line in str(error.message).splitlines() if line and not line.startswith(_FRAME)]
    return lines[0].rstrip(".") if lines else type(error).__name__


__all__ = ["GraphIterators", "HeldSnapshot", "SessionIterators", "external_state_policy_number"]
