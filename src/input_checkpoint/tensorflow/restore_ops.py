"""The operations that put a stored state into an iterator.

A small state is restored by one operation. The parts of a larger one are staged in memory by a ``MapStage``
container inside the session, and joined only if there are many. A join copies the elements without their
tensors, which takes about a microsecond per element.

There are few different runs, because TensorFlow prepares each of them when it comes first: it takes 10 to 30
ms, and longer in larger graphs.

Among the operations that concatenate tensors, only ``DynamicStitch`` and ``ParallelDynamicStitch`` accept
variants in a graph, as measured with TensorFlow 2.15.1 and 2.21.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, Optional

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.parallel import map_ordered
from input_checkpoint.tensorflow.checked_batches import CheckedBatch
from input_checkpoint.tensorflow.variants import join_variants

v1 = tf.compat.v1

WIDTH = 8
"""How many strings are parsed, and how many parts are joined, by one run."""
_GROUP_BYTES = 32 << 20
"""A run parses fewer strings if they are large, so that few large elements are in memory at once."""
_PARSERS = 2
"""How many runs parse strings at once, while the next strings are being read."""
_EMPTY = join_variants([])
_NOWHERE = np.zeros(0, np.int32)

_Positions = npt.NDArray[np.int32]
_Part = tuple[int, int]
"""A staged vector: its key and its number of elements."""


class RestoreOps:
    """The operations that restore one iterator.

    Args:
        resource: the iterator.
        name: of the iterator.
        shared_name: of the container for staged vectors.
        new_key: returns a key that is not in use there.
    """

    def __init__(self, resource: Any, name: str, shared_name: str, new_key: Callable[[], int]) -> None:
        self._name = name
        self._new_key = new_key
        self._container = {"dtypes": [tf.variant], "shared_name": shared_name}
        self._key = v1.placeholder(tf.int64, [], name="part")
        # Creating an operation takes 0.2 ms, so there are few: one for all positions, and one for all keys.
        self._positions = v1.placeholder(tf.int32, [None], name="positions")
        self._sizes = v1.placeholder(tf.int32, [WIDTH], name="sizes")
        self._strings = [v1.placeholder(tf.string, [], name="encoded") for _ in range(WIDTH)]
        self._keys = v1.placeholder(tf.int64, [WIDTH], name="parts")
        positions = tf.raw_ops.SplitV(value=self._positions, size_splits=self._sizes, axis=0, num_split=WIDTH)
        parsed = tf.raw_ops.ParallelDynamicStitch(
            indices=positions,
            data=[tf.raw_ops.ParseTensor(serialized=string, out_type=tf.variant) for string in self._strings],
        )
        joined = tf.raw_ops.ParallelDynamicStitch(
            indices=positions,
            data=[
                tf.raw_ops.MapUnstage(key=key, indices=[0], **self._container)[0]
                for key in tf.raw_ops.Unpack(value=self._keys, num=WIDTH, axis=0)
            ],
        )
        self._stage_parsed = self._stage(parsed)
        self._stage_joined = self._stage(joined)
        self._restore_parsed = tf.raw_ops.DeserializeIterator(resource_handle=resource, serialized=parsed)
        self._restore_joined = tf.raw_ops.DeserializeIterator(resource_handle=resource, serialized=joined)
        self.clear = tf.raw_ops.MapClear(**self._container)
        """Frees what is staged."""

    def prepare(
        self, session: Any, batches: Iterable[CheckedBatch], count: int
    ) -> tuple[Any, dict[Any, Any]]:
        """Parse a state. The iterator does not change yet.

        Args:
            session: with the iterator.
            batches: the elements of the state.
            count: how many elements it has.

        Returns:
            The operation that restores the iterator, and what to feed to it.

        Raises:
            CorruptCheckpointError: the state does not have each of its elements once.
        """
        iterator = iter(batches)
        first, following = next(_groups(iterator), []), next(iterator, None)
        if following is None:
            positions = np.concatenate([_NOWHERE, *(batch.positions for batch in first)], dtype=np.int32)
            self._check_complete(positions, count)
            return self._restore_parsed, self._feeds_of(first, positions)
        others = _groups(itertools.chain([following], iterator))
        parts, positions = self._stage_all(session, itertools.chain([first], others))
        self._check_complete(positions, count)
        parts += [(self._parse(session, []), 0) for _ in range(WIDTH - len(parts))]
        return self._restore_joined, self._feeds(parts, positions)

    def _check_complete(self, positions: _Positions, count: int) -> None:
        """Check that ``positions`` contain each number from 0 to ``count`` - 1 once."""
        # TensorFlow saves no iterator without elements.
        if not count or len(positions) != count or not np.array_equal(np.sort(positions), np.arange(count)):
            raise CorruptCheckpointError(f"the state of iterator {self._name!r} is incomplete")

    def _stage_all(
        self, session: Any, groups: Iterable[Sequence[CheckedBatch]]
    ) -> tuple[list[_Part], _Positions]:
        """Parse all strings. Join parts of about equal size, so that elements are copied only a few times.

        Returns:
            At most `WIDTH` parts, and the position of each of their elements in the state.
        """

        def parse(group: Sequence[CheckedBatch]) -> tuple[int, Sequence[CheckedBatch]]:
            return self._parse(session, group), group

        positions = array("i")
        levels: list[list[_Part]] = []
        for key, group in map_ordered(parse, groups, _PARSERS):
            for batch in group:
                positions.extend(batch.positions)
            self._add(session, levels, (key, sum(len(batch.positions) for batch in group)))
        parts = [part for level in reversed(levels) for part in level]
        while len(parts) > WIDTH:
            parts = [*parts[:-WIDTH], self._join(session, parts[-WIDTH:])]
        return parts, np.frombuffer(positions, np.int32)

    def _add(self, session: Any, levels: list[list[_Part]], part: _Part) -> None:
        """Add a part to the first level. `WIDTH` parts of a level are joined to one of the next level."""
        for level in itertools.count():
            if level == len(levels):
                levels.append([])
            levels[level].append(part)
            if len(levels[level]) < WIDTH:
                return
            part = self._join(session, levels[level])
            levels[level] = []

    def _parse(self, session: Any, batches: Sequence[CheckedBatch]) -> int:
        """Parse strings into one staged vector, and return its key."""
        key = self._new_key()
        session.run(self._stage_parsed, {self._key: key, **self._feeds_of(batches)})
        return key

    def _join(self, session: Any, parts: Sequence[_Part]) -> _Part:
        """Join `WIDTH` staged vectors."""
        key = self._new_key()
        session.run(self._stage_joined, {self._key: key, **self._feeds(parts)})
        return key, sum(size for _, size in parts)

    def _feeds_of(
        self, batches: Sequence[CheckedBatch], positions: Optional[_Positions] = None
    ) -> dict[Any, Any]:
        """Return what to feed for at most `WIDTH` batches.

        Args:
            batches: whose elements are parsed.
            positions: of the elements in the result. None: one after another.
        """
        missing = WIDTH - len(batches)
        strings = [*(batch.encode() for batch in batches), *[_EMPTY] * missing]
        sizes = [*(len(batch.positions) for batch in batches), *[0] * missing]
        return {**dict(zip(self._strings, strings)), **self._order(sizes, positions)}

    def _feeds(self, parts: Sequence[_Part], positions: Optional[_Positions] = None) -> dict[Any, Any]:
        """Return what to feed for `WIDTH` parts. See `_feeds_of`."""
        keys, sizes = zip(*parts)
        return {self._keys: keys, **self._order(sizes, positions)}

    def _order(self, sizes: Sequence[int], positions: Optional[_Positions]) -> dict[Any, Any]:
        if positions is None:
            positions = np.arange(sum(sizes), dtype=np.int32)
        return {self._positions: positions, self._sizes: sizes}

    def _stage(self, vector: Any) -> Any:
        return tf.raw_ops.MapStage(key=self._key, indices=[0], values=[vector], **self._container)


def _groups(batches: Iterable[CheckedBatch]) -> Iterator[Sequence[CheckedBatch]]:
    """Yield `WIDTH` batches at a time, and fewer at the end or if they are large."""
    group: list[CheckedBatch] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += batch.memory_bytes
        if len(group) == WIDTH or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
