"""Batches of stored elements that have been checked, and are encoded as TensorFlow parses them.

This is most of what Python does during a restore. It needs no session, so it can be done while TensorFlow
creates one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

from input_checkpoint.state import Element, ElementBatch
from input_checkpoint.tensorflow.element_check import ElementChecker
from input_checkpoint.tensorflow.variants import join_variants, split_payload, split_variants

BATCH_BYTES = 1 << 20
"""A batch is complete once its elements have this many bytes. TensorFlow copies each several times. Copies of
larger ones do not fit into the cache of a processor, and use memory that is new to the process each time."""
_MAX_KEY_SHARE = 8
"""A batch is also complete once its keys have this many times that size. Payloads may be empty, and
TensorFlow ends the process if it parses more than 2 GB as one tensor."""
_POSITION_BYTES = 36
"""Memory that Python uses for a number in a list."""
_LARGE_ELEMENT_BYTES = 4 << 10
"""From this average size on, a batch stays as it is until it is needed, and is then encoded in no time. Its
encoded form would only be another copy."""


class CheckedBatch(ElementBatch):
    """Some elements of a stored state that TensorFlow may see."""

    def encode(self) -> bytes:
        """Return the elements as a string that ``tf.io.parse_tensor`` accepts."""
        return join_variants(self.elements)


class EncodedBatch(CheckedBatch):
    """Some elements of a stored state that TensorFlow may see, as one string.

    Args:
        positions: of the elements in the state.
        data: what `join_variants` returned for them.
    """

    def __init__(self, positions: Sequence[int], data: bytes) -> None:
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "_data", data)

    _data: bytes

    @property
    def elements(self) -> Sequence[Element]:
        """The elements, decoded again."""
        return list(map(split_payload, split_variants(self._data)))

    @property
    def memory_bytes(self) -> int:
        """See `ElementBatch.memory_bytes`."""
        return len(self._data) + _POSITION_BYTES * len(self.positions)

    def encode(self) -> bytes:
        """See `CheckedBatch.encode`."""
        return self._data


def check_batches(
    batches: Iterable[ElementBatch], checker: Optional[ElementChecker] = None, batch_bytes: int = BATCH_BYTES
) -> Iterator[CheckedBatch]:
    """Yield the same elements, checked, in batches of about ``batch_bytes``. Small elements are encoded.

    Batches that were checked before stay as they are.

    Args:
        batches: of one state.
        checker: checks the elements. None: a new one.
        batch_bytes: size of the payloads of a batch. An element that is larger is alone or the last of its
            batch.

    Raises:
        CorruptCheckpointError: TensorFlow must not see one of the elements.
    """
    checker = checker or ElementChecker()
    for batch in _of_size(batches, batch_bytes):
        if isinstance(batch, CheckedBatch):
            yield batch
            continue
        checker.check(batch.elements)
        checked = CheckedBatch(batch.positions, batch.elements)
        if batch_bytes < len(batch.elements) * _LARGE_ELEMENT_BYTES:
            checked = EncodedBatch(batch.positions, checked.encode())
        yield checked


def _of_size(batches: Iterable[ElementBatch], batch_bytes: int) -> Iterator[ElementBatch]:
    """Yield the same elements in batches of about ``batch_bytes``. Checked batches stay as they are."""
    positions: list[int] = []
    elements: list[Element] = []
    size = key_size = 0
    for batch in batches:
        if isinstance(batch, CheckedBatch):
            if elements:
                yield ElementBatch(positions, elements)
                positions, elements, size, key_size = [], [], 0, 0
            yield batch
            continue
        for position, element in zip(batch.positions, batch.elements):
            positions.append(position)
            elements.append(element)
            key_size += len(element[0])
            size += len(element[1])
            if size >= batch_bytes or key_size >= _MAX_KEY_SHARE * batch_bytes:
                yield ElementBatch(positions, elements)
                positions, elements, size, key_size = [], [], 0, 0
    if elements:
        yield ElementBatch(positions, elements)
