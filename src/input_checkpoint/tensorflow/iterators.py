"""Saves and restores the state of TensorFlow iterators in a session graph.

A snapshot is staged in memory by a ``MapStage`` container inside the session, and encoded slice by slice from
another thread. `RestoreOps` restores it.

This relies on facts that were measured with TensorFlow 2.15.1 and 2.21:

* ``SerializeIterator`` returns a vector of variants, about one per buffered element
  (tensorflow/core/kernels/data/iterator_ops.cc).
* Encoding more than 2 GB of variants into one tensor crashes the process. So the loop below encodes a few
  elements at a time and stops at a size limit (docs/decisions/2026-11-22-encode-in-small-blocks.md).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import tensorflow as tf

from input_checkpoint.backends.causes import raise_from
from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import (
    PipelineMismatchError,
    SnapshotLostError,
    UnsupportedPipelineError,
)
from input_checkpoint.parallel import prefetch_one
from input_checkpoint.state import Element, IteratorState, StoredState
from input_checkpoint.tensorflow.batch_digest import SCOPE
from input_checkpoint.tensorflow.checked_batches import check_batches
from input_checkpoint.tensorflow.dataset_graph import Pipeline, is_alias, read_pipelines
from input_checkpoint.tensorflow.discarded_draws import DiscardedDraws
from input_checkpoint.tensorflow.distributed_input import initialize
from input_checkpoint.tensorflow.external_state import is_saved_with_iterator
from input_checkpoint.tensorflow.fingerprint import fingerprint_iterators
from input_checkpoint.tensorflow.known_faults import check_known_faults, warn_of_locked_caches
from input_checkpoint.tensorflow.restore_ops import RestoreOps
from input_checkpoint.tensorflow.unserializable import check_serializable
from input_checkpoint.tensorflow.variants import split_payload, split_variants

v1 = tf.compat.v1

# TensorFlow adds every iterator of a graph to this collection: tensorflow/python/data/ops/iterator_ops.py.
_GLOBAL_ITERATORS = "iterators"

# tensorflow/core/framework/dataset_options.proto, ExternalStatePolicy.
_POLICIES = {"warn": 0, "ignore": 1, "fail": 2}

# From tensorflow/core/kernels/data/iterator_ops.cc and the messages of its readers.
_NOT_INITIALIZED = "not been initialized"
_MISSING_FILE = re.compile(r"(?:checkpoint: )?(\S[^;]*); No such file")
_MISSING_KEY = re.compile(r"Iterator::[^\s.,]+")

_SLICE_BYTES = 8 << 20
_BLOCK_ELEMENTS = 4
# tensorflow/core/protobuf/config.proto, RunOptions.inter_op_thread_pool. TensorFlow's own threads have the
# priority of training, those that save have a lower one.
_IN_THIS_THREAD = v1.RunOptions(inter_op_thread_pool=-1)
_LARGE_ELEMENT_BYTES = 64 << 20

_SERIALIZE_ERRORS = (tf.errors.UnimplementedError, tf.errors.FailedPreconditionError)
# Raised when a machine fails or runs out of memory. They say nothing about the state. TensorFlow recovers
# from some of them with a new session.
TRANSIENT_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.UnavailableError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.ResourceExhaustedError,
)
# A closed session raises RuntimeError, a session that is being closed CancelledError.
_SESSION_CLOSED_ERRORS = (
    RuntimeError,
    tf.errors.CancelledError,
    tf.errors.AbortedError,
    tf.errors.UnavailableError,
)


def external_state_policy_number(policy: Optional[Union[str, Any]]) -> int:
    """Return TensorFlow's number for an external state policy.

    Args:
        policy: ``'fail'``, ``'warn'``, ``'ignore'``, or TensorFlow's own enum value. None means ``'fail'``.

    Raises:
        ValueError: ``policy`` is anything else.
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

    Create it before the graph is finalized. Use it with any session on that graph.

    Args:
        graph: the graph with the iterators.
        policy: a number from `external_state_policy_number`.

    Raises:
        ValueError: the graph has no iterators.
        UnsupportedPipelineError: TensorFlow cannot serialize one of the pipelines, or would lose data when it
            restores it.
    """

    def __init__(self, graph: Any, policy: int) -> None:
        in_collection = graph.get_collection(_GLOBAL_ITERATORS)
        # A handle from Iterator.from_string_handle names an iterator that is in the collection itself, and
        # has no value before it is fed.
        resources = [resource for resource in in_collection if not is_alias(resource)]
        if not resources:
            raise ValueError(
                "There is no iterator in the graph, so there is no input pipeline to checkpoint. "
                "Return a tf.data.Dataset from input_fn, or create the iterator inside it."
            )
        self.pipelines = pipelines = read_pipelines(graph, resources)
        check_serializable(pipelines.values())
        self._graph = graph
        check_known_faults(pipelines.values(), policy)
        warn_of_locked_caches(pipelines.values())
        self.fingerprints = fingerprint_iterators(pipelines)
        self._new_key = itertools.count(1).__next__
        # A separate container each, so that two hooks on one graph do not mix up their snapshots.
        container = f"input_checkpoint/{uuid.uuid4().hex}"
        with graph.as_default(), graph.name_scope(SCOPE):
            self._ops = [
                _IteratorOps(
                    graph,
                    resource,
                    _policy_for(pipelines.get(resource.op.name), policy),
                    container,
                    self._new_key,
                )
                for resource in resources
            ]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the iterators in the graph."""
        return tuple(ops.name for ops in self._ops)

    def draws_from(self, name: str) -> DiscardedDraws:
        """Return the operations that draw from an iterator without training.

        Raises:
            PipelineMismatchError: the graph has no such iterator.
        """
        return self._ops_for(name).draws

    def bind(self, session: Any) -> SessionIterators:
        """Return the iterators as they are in one session."""
        return SessionIterators(self, session)

    def initialize(self, session: Any) -> None:
        """Initialize the iterators of `checkpointable_input_fn`, unless TensorFlow has done so."""
        initialize(self._graph, session)

    def snapshot(self, session: Any) -> SessionSnapshot:
        """Capture the state of all iterators in memory. Takes microseconds per element, whatever its size.

        Returns:
            The snapshot. The caller must release it.

        Raises:
            UnsupportedPipelineError: TensorFlow cannot serialize one of the pipelines.
        """
        key = self._new_key()
        try:
            session.run([ops.stage_state for ops in self._ops], {ops.key: key for ops in self._ops})
        except _SERIALIZE_ERRORS as error:
            raise_from(UnsupportedPipelineError(_unsupported_message(error)), error)
        return SessionSnapshot(session, self._ops, key)

    def restore(self, session: Any, states: Iterable[StoredState]) -> None:
        """Restore the iterators to a stored state. No iterator changes before all states have been read.

        Raises:
            PipelineMismatchError: the state does not belong to these iterators.
            CorruptCheckpointError: the state is damaged.
        """
        try:
            with self._clearing_on_error(session):
                restores, feeds = self._prepare_all(session, states)
                session.run(restores, feeds)
        except TRANSIENT_ERRORS:
            raise
        except tf.errors.OpError as error:
            if _NOT_INITIALIZED in _reason(error):
                raise_from(UnsupportedPipelineError(_not_initialized_message(error)), error)
            raise_from(PipelineMismatchError(_mismatch_message(error)), error)

    @contextlib.contextmanager
    def _clearing_on_error(self, session: Any) -> Iterator[None]:
        """Free what was staged for a restore that fails."""
        try:
            yield
        except BaseException:
            # A broken session has already freed it.
            with contextlib.suppress(*_SESSION_CLOSED_ERRORS):
                session.run([ops.restoring.clear for ops in self._ops])
            raise

    def _prepare_all(self, session: Any, states: Iterable[StoredState]) -> tuple[list[Any], dict[Any, Any]]:
        """Parse all states. Return the operations that restore the iterators from them, and their feeds."""
        restores: dict[str, Any] = {}
        feeds: dict[Any, Any] = {}
        for state in states:
            ops = self._ops_for(state.name)
            if ops.name in restores:
                raise PipelineMismatchError(
                    f"the checkpoint holds several iterators, among them {state.name!r}, but this graph has "
                    f"only {', '.join(self.names)}."
                )
            restores[ops.name], fed = ops.restoring.prepare(
                session, check_batches(state.batches), state.count
            )
            feeds.update(fed)
        missing = {ops.name for ops in self._ops} - restores.keys()
        if missing:
            raise PipelineMismatchError(
                f"the checkpoint has no state for iterator {', '.join(sorted(missing))}."
            )
        return list(restores.values()), feeds

    def _ops_for(self, name: str) -> _IteratorOps:
        by_name = {ops.name: ops for ops in self._ops}
        if name in by_name:
            return by_name[name]
        if len(by_name) == 1:
            # A single iterator needs no name to be identified.
            return self._ops[0]
        raise PipelineMismatchError(
            f"the checkpoint holds an iterator named {name!r}, but this graph has {', '.join(by_name)}."
        )


@dataclass(frozen=True)
class SessionIterators:
    """The iterators of a graph in one session: an `InputSource`."""

    iterators: GraphIterators
    session: Any

    @property
    def names(self) -> tuple[str, ...]:
        """See `InputSource.names`."""
        return self.iterators.names

    def snapshot(self) -> SessionSnapshot:
        """See `InputSource.snapshot`."""
        return self.iterators.snapshot(self.session)

    def restore(self, states: Iterable[StoredState]) -> None:
        """See `InputSource.restore`."""
        self.iterators.restore(self.session, states)

    def skip(self, name: str, count: int) -> None:
        """Draw ``count`` elements from the iterator ``name`` and discard them. See `DiscardedDraws.skip`."""
        self.iterators.draws_from(name).skip(self.session, count)

    def draw(self, name: str) -> str:
        """Draw one element from the iterator ``name``, and return its digest. See `DiscardedDraws.draw`."""
        return self.iterators.draws_from(name).draw(self.session)

    def hold(self) -> HeldIterators:
        """Take a snapshot now, to save it later if it turns out to be needed."""
        return HeldIterators(self.iterators, self.session, self.snapshot())


@dataclass(frozen=True)
class HeldIterators(SessionIterators):
    """The iterators as they were when a snapshot was taken: an `InputSource` for one save."""

    taken: SessionSnapshot

    def snapshot(self) -> SessionSnapshot:
        """See `InputSource.snapshot`."""
        return self.taken


class SessionSnapshot:
    """The state of all iterators of a graph, in the memory of a session. Must be released."""

    def __init__(self, session: Any, ops: Sequence[_IteratorOps], key: int) -> None:
        self._session = session
        self._ops = ops
        self._key = key
        self._lock = threading.Lock()
        self._released = False

    def states(self) -> Iterator[IteratorState]:
        """Yield the encoded state of each iterator as a stream. May be called from any thread.

        Raises:
            SnapshotLostError: the snapshot was released, or the session was closed. Raised by the streams.
        """
        for ops in self._ops:
            yield IteratorState(ops.name, self._encode(ops))

    def release(self) -> None:
        """Free the memory. A thread that is still encoding the snapshot gets a `SnapshotLostError`."""
        # A closed session has already freed it.
        with self._lock, contextlib.suppress(*_SESSION_CLOSED_ERRORS):
            self._released = True
            self._session.run([ops.unstage for ops in self._ops], {ops.key: self._key for ops in self._ops})

    def _run(self, fetches: Any, feeds: dict[Any, Any]) -> Any:
        # TensorFlow would wait forever for a vector that is no longer staged.
        with self._lock:
            if self._released:
                raise SnapshotLostError("the snapshot was released before it was encoded")
            try:
                return self._session.run(fetches, feeds, options=_IN_THIS_THREAD)
            except _SESSION_CLOSED_ERRORS as error:
                raise_from(
                    SnapshotLostError(f"the session was closed before its snapshot was encoded: {error}"),
                    error,
                )

    def _encode(self, ops: _IteratorOps) -> Iterator[Element]:
        # TensorFlow encodes the next slice while the caller splits, hashes, compresses and stores this one.
        for encoded_blocks in prefetch_one(self._encoded_slices(ops)):
            for encoded in encoded_blocks:
                yield from map(split_payload, split_variants(encoded))

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
    """The operations of one iterator. They work on vectors of variants that are staged under integer keys."""

    def __init__(
        self, graph: Any, resource: Any, policy: int, container: str, new_key: Callable[[], int]
    ) -> None:
        self.name: str = resource.op.name
        self._shared_name = f"{container}/{self.name}"
        with graph.colocate_with(resource.op, ignore_existing=True):
            self.key = v1.placeholder(tf.int64, [], name="key")
            self.stage_state = self._stage(
                self.key,
                tf.raw_ops.SerializeIterator(resource_handle=resource, external_state_policy=policy),
            )
            self._build_encode()
            self.unstage = self._unstage(self.key).op
            # A container of its own: a restore that fails clears it, and must not clear snapshots.
            self.restoring = RestoreOps(resource, self.name, f"{self._shared_name}/restore", new_key)
            self.draws = DiscardedDraws(resource)

    def _build_encode(self) -> None:
        vector = tf.raw_ops.MapPeek(
            key=self.key, indices=[0], dtypes=[tf.variant], shared_name=self._shared_name
        )[0]
        self.count = tf.size(vector)
        self.start = v1.placeholder(tf.int32, [], name="start")
        self.block = v1.placeholder(tf.int32, [], name="block")
        self.slice_end, self.slice = _encode_slice(vector, self.count, self.start, self.block)

    def _stage(self, key: Any, vector: Any) -> Any:
        return tf.raw_ops.MapStage(
            key=key,
            indices=[0],
            values=[vector],
            dtypes=[tf.variant],
            shared_name=self._shared_name,
        )

    def _unstage(self, key: Any) -> Any:
        return tf.raw_ops.MapUnstage(
            key=key, indices=[0], dtypes=[tf.variant], shared_name=self._shared_name
        )[0]


def _encode_slice(vector: Any, count: Any, start: Any, block: Any) -> tuple[Any, Any]:
    """Encode a slice of ``vector`` of about `_SLICE_BYTES`.

    Args:
        vector: a vector of variants.
        count: the size of ``vector``.
        start: the first element to encode.
        block: the number of elements to encode into each string.

    Returns:
        The end of the slice, and a vector of strings.
    """
    blocks = tf.TensorArray(tf.string, size=0, dynamic_size=True, element_shape=[])

    def has_more(position: Any, size: Any, index: Any, blocks: Any) -> Any:
        return tf.logical_and(position < count, size < _SLICE_BYTES)

    def encode(position: Any, size: Any, index: Any, blocks: Any) -> Any:
        end = tf.minimum(position + block, count)
        encoded = tf.io.serialize_tensor(vector[position:end])
        size += tf.cast(tf.strings.length(encoded), tf.int64)
        return end, size, index + 1, blocks.write(index, encoded)

    no_bytes = tf.constant(0, tf.int64)
    end, _, _, blocks = tf.while_loop(
        has_more, encode, [start, no_bytes, tf.constant(0), blocks], parallel_iterations=1
    )
    return end, blocks.stack()


def _policy_for(pipeline: Optional[Pipeline], policy: int) -> int:
    """Return the policy under which to serialize a pipeline."""
    if pipeline is not None and is_saved_with_iterator(pipeline):
        return _POLICIES["ignore"]
    return policy


def _mismatch_message(error: Any) -> str:
    """Return why TensorFlow cannot restore a state into a pipeline, and what to change."""
    reason = _reason(error)
    missing_file = _MISSING_FILE.search(reason)
    if missing_file:
        return f"the pipeline was reading a file that no longer exists: {missing_file.group(1)}. Put it back."
    missing_key = _MISSING_KEY.search(reason)
    if missing_key:
        reason = f"the state has nothing for {missing_key.group()}"
    return (
        f"TensorFlow cannot restore this state into this input pipeline: {reason}. A state fits only the "
        "pipeline that it was saved from: same datasets, same order of transformations, same tf.data options."
    )


def _not_initialized_message(error: Any) -> str:
    # The operation that failed, such as SerializeIterator, reads the iterator as its first input.
    name = error.op.inputs[0].op.name if error.op is not None and error.op.inputs else "of this graph"
    return (
        f"Iterator {name} is not initialized, so it cannot be checkpointed. Run its initializer before the "
        "first step (add it to tf.compat.v1.GraphKeys.TABLE_INITIALIZERS), or remove the iterator."
    )


def _unsupported_message(error: Any) -> str:
    """Return why TensorFlow cannot serialize a pipeline, and what to change."""
    reason = _reason(error)
    if _NOT_INITIALIZED in reason:
        return _not_initialized_message(error)
    if "PyFunc is stateful" in reason:
        advice = (
            "The pipeline calls Python code. Pass external_state_policy='ignore' if the function has no "
            "state that must be restored."
        )
    elif "is stateful" in reason:
        advice = (
            "The pipeline uses external state, such as a random number generator or a variable. Remove that "
            "state, or pass external_state_policy='ignore' if it need not be restored."
        )
    else:
        advice = "Build the pipeline from files or tensors, with other transformations."
    return f"TensorFlow cannot serialize this input pipeline: {reason}. {advice}"


_STACK_TRACE_PREFIXES = (
    " ",
    "\t",
    "Graph execution error",
    "Detected at",
    "Node:",
    "<stack",
    "Original stack",
)


def _reason(error: Any) -> str:
    """Return the message of a TensorFlow error without the stack trace of the graph."""
    lines = [
        line
        for line in str(error.message).splitlines()
        if line and not line.startswith(_STACK_TRACE_PREFIXES)
    ]
    return lines[0].rstrip(".") if lines else type(error).__name__


__all__ = [
    "TRANSIENT_ERRORS",
    "GraphIterators",
    "HeldIterators",
    "SessionIterators",
    "SessionSnapshot",
    "external_state_policy_number",
]
