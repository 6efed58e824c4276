"""Reads a checkpoint ahead of its restore, while the session is created and the model is restored."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Optional, Union

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.parallel import run_into
from input_checkpoint.state import ElementBatch, StoredState
from input_checkpoint.store.store import CheckpointStore, StoredCheckpoint

logger = logging.getLogger(__name__)

MAX_BYTES = 256 << 20
"""How much memory the batches that are read ahead may use. The last of them may exceed it."""

_Item = Union[StoredState, ElementBatch]
"""An iterator, whose batches follow."""
_Read = Callable[[CheckpointRef], StoredCheckpoint]
_Prepare = Callable[[Iterator[ElementBatch]], Iterator[ElementBatch]]


class ReadAhead:
    """Reads checkpoints from a store, and begins early with the one that is expected.

    An error of the early read is not raised. The checkpoint is then read again when it is asked for.

    Args:
        store: where the checkpoints are.
        max_bytes: how much memory the early read may use. It stops there, and the rest is read by whoever
            restores the checkpoint.

    Example:
        >>> from input_checkpoint import IteratorState
        >>> store = CheckpointStore.open("memory://ahead", create=True)
        >>> ref = store.begin_run("main").save(100, [IteratorState("Iterator", [(b"key", b"payload")])]).ref
        >>> read_ahead = ReadAhead(store)
        >>> read_ahead.expect(ref)
        >>> [state.in_order() for state in read_ahead.read(ref).states]
        [[(b'key', b'payload')]]
    """

    def __init__(self, store: CheckpointStore, max_bytes: int = MAX_BYTES) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._expected: Optional[CheckpointRef] = None
        self._early: Optional[_EarlyRead] = None

    def expect(self, ref: Optional[CheckpointRef], prepare: _Prepare = iter) -> None:
        """Begin to read a checkpoint in a thread, in place of the one that was expected before.

        Args:
            ref: which checkpoint. None: no checkpoint is expected.
            prepare: returns the same elements in a form that is restored faster. Called in the thread.
        """
        self.cancel()
        if ref is not None:
            self._expected = ref
            self._early = _EarlyRead(self._store.read, ref, self._max_bytes, prepare)

    def read(self, ref: CheckpointRef) -> StoredCheckpoint:
        """Return a checkpoint, as `CheckpointStore.read` does. Nothing is expected any more after that."""
        expected, early = self._expected, self._early
        if early is None or ref != expected:
            self.cancel()
            return self._store.read(ref)
        self._expected = self._early = None
        return early.take() or self._store.read(ref)

    def cancel(self) -> None:
        """Free the memory, and end the thread after the request that it is waiting for. Returns at once."""
        early, self._expected, self._early = self._early, None, None
        if early is not None:
            early.cancel()


class _EarlyRead:
    """One checkpoint, of which a thread reads as much as may be held in memory.

    Only the thread holds what it has read. The thread ends when this object is deleted, or earlier.
    """

    def __init__(self, read: _Read, ref: CheckpointRef, max_bytes: int, prepare: _Prepare) -> None:
        orders: SimpleQueue[bool] = SimpleQueue()
        result: Future[Optional[StoredCheckpoint]] = Future()
        self._orders = orders
        self._result = result
        # The thread has no reference to this object, so this object can be deleted before the thread ends.
        threading.Thread(
            target=lambda: run_into(result, lambda: _read_ahead(read, ref, max_bytes, prepare, orders)),
            name="input-checkpoint-read-ahead",
            daemon=True,
        ).start()
        # If TensorFlow cannot create the session, it calls no method of the hook any more. The garbage
        # collector may call `SimpleQueue.put` at any time.
        self.cancel = weakref.finalize(self, orders.put, False)
        """Has the thread end without a result."""

    def take(self) -> Optional[StoredCheckpoint]:
        """Return the checkpoint, or None if reading it has failed. Its iterator reads what is left."""
        self._orders.put(True)
        return self._result.result()


def _read_ahead(
    read: _Read, ref: CheckpointRef, max_bytes: int, prepare: _Prepare, orders: SimpleQueue[bool]
) -> Optional[StoredCheckpoint]:
    """Read a checkpoint until an order comes, then hand it over.

    Args:
        read: reads a checkpoint.
        ref: which one.
        max_bytes: how much memory may be used.
        prepare: see `ReadAhead.expect`.
        orders: True: the checkpoint is wanted now. False: it is not wanted.

    Returns:
        The checkpoint; None if it is not wanted, or reading it has failed.
    """
    try:
        checkpoint = read(ref)
        items = _flattened(checkpoint.states, prepare)
        with contextlib.ExitStack() as unless_wanted:
            unless_wanted.enter_context(contextlib.closing(items))
            ahead = _read_some(items, max_bytes, orders)
            if not orders.get():
                return None
            unless_wanted.pop_all()
        return StoredCheckpoint(checkpoint.info, _grouped(_continued(ahead, items)))
    except Exception as error:
        logger.debug("Reading %s ahead has failed: %s", ref, error)
        return None


def _read_some(items: Iterator[_Item], max_bytes: int, orders: SimpleQueue[bool]) -> deque[_Item]:
    """Read until an order comes, everything has been read, or the memory is used up."""
    ahead: deque[_Item] = deque()
    used = 0
    while used < max_bytes and orders.empty():
        item = next(items, None)
        if item is None:
            break
        ahead.append(item)
        used += _memory_of(item)
    return ahead


def _memory_of(item: _Item) -> int:
    return 0 if isinstance(item, StoredState) else item.memory_bytes


def _flattened(states: Iterator[StoredState], prepare: _Prepare) -> Generator[_Item, None, None]:
    """Yield each state, and its prepared batches after it."""
    for state in states:
        yield state
        yield from prepare(state.batches)


def _continued(ahead: deque[_Item], items: Generator[_Item, None, None]) -> Iterator[_Item]:
    """Yield and forget what was read ahead, then the rest."""
    with contextlib.closing(items):
        while ahead:
            yield ahead.popleft()
        yield from items


def _grouped(items: Iterator[_Item]) -> Iterator[StoredState]:
    """Undo `_flattened`."""
    following = next(items, None)
    while isinstance(following, StoredState):
        state, ended = following, deque[_Item](maxlen=1)
        yield StoredState(state.name, state.count, _batches(items, ended))
        following = ended.pop() if ended else None


def _batches(items: Iterator[_Item], ended: deque[_Item]) -> Iterator[ElementBatch]:
    """Yield the batches of one state. Leave the state that follows it, if there is one, in ``ended``."""
    for item in items:
        if isinstance(item, StoredState):
            ended.append(item)
            return
        yield item
