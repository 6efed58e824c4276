"""Recognizes that a shuffle without a seed has begun another pass, from the seeds in the saved states.

The state of a ``shuffle`` holds the seeds of its present pass, so that another process repeats this pass. The
seeds of the next one are drawn when it begins, by each process for itself.

The iterator of a shuffle may be missing from a state: transformations such as ``batch`` give up their input
once it has ended. Then what may have created it again is compared too: which iterators there are, in which
pass of a ``repeat``, and how far the input of an ``interleave`` has been read.

This relies on facts that were measured with TensorFlow 2.15.1: the key of an element contains the path of its
iterator and the names of its values, the values are compressed, and a path contains the number of the pass of
a ``repeat`` and of the input of an ``interleave``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from blake3 import blake3
from google.protobuf.message import DecodeError
from tensorflow.core.framework import dataset_pb2, tensor_pb2

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.state import Element, ElementBatch, IteratorState, Payload, StoredState
from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.element_check import ElementChecker
from input_checkpoint.tensorflow.random_datasets import (
    callers_of_random_functions,
    count_random_iterators,
    restarts_at_random,
)

v1 = tf.compat.v1

Seeds = Mapping[str, Optional[tuple[int, int]]]
"""Two numbers by the path of a shuffle: its seeds. None if they are not known.

Where a shuffle is missing from the state, there are more paths, with numbers that differ when one of them has
created a shuffle again.
"""

_COMPRESSED_ELEMENT = "tensorflow.data.CompressedElement"
_NAME_SEPARATOR = b"@@"
_PATH = re.compile(rb"Iterator::(.*?)(?=@@)", re.DOTALL)
_IS_RANDOM = re.compile(rb"::(Random|Shuffle|ShuffleAndRepeat)(V\d+)?$")
_HAS_SEEDS = re.compile(rb"[@:]seed@@(.*[@:])?seed2(@@|$)", re.DOTALL)
# Slots of buffers, and results that were computed ahead.
_IS_SLOT = re.compile(rb"(::\d+|:buffer|:buffer::\d+|_results\[\d+\])$")
_CALLER = re.compile(
    rb"::(FlatMap|Interleave|ParallelInterleave(V\d+)?)(?=::(?!current_elements::|future_elements::))"
)
_WORD_BITS = 64
_DIGEST_BYTES = 16


def began_another_pass(before: Seeds, after: Seeds) -> bool:
    """Whether a shuffle may have begun another pass between two states of the same iterators.

    Args:
        before: the seeds in the earlier state.
        after: the seeds in the later state.

    Example:
        >>> began_another_pass({"Shuffle": (1, 2)}, {"Shuffle": (1, 2)})
        False
        >>> began_another_pass({"Shuffle": (1, 2)}, {"Shuffle": (3, 4)})
        True
    """
    return dict(before) != dict(after) or None in before.values()


class ShuffleSeeds:
    """Reads the seeds of all shuffles from the states of some iterators.

    Iterators that do not restart at random are not looked at.

    Args:
        pipelines: as `read_pipelines` returns them.

    Example:
        seeds = ShuffleSeeds(pipelines)
        iterators.restore(session, seeds.tap(states))
        # ... draw some batches ...
        is_exact = not began_another_pass(seeds.restored, seeds.seeds_in(snapshot.states()))
    """

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._pipelines = dict(pipelines)
        self._restored: dict[str, _SeedReader] = {}

    def tap(self, states: Iterable[StoredState]) -> Iterator[StoredState]:
        """Yield the same states, and note their seeds while they are read. They are then in `restored`."""
        self._restored = {}
        for state in states:
            reader = self._reader(state.name)
            if reader is None:
                yield state
            else:
                self._restored[self._prefix(state.name)] = reader
                yield replace(state, batches=_noted(state.batches, reader))

    @property
    def restored(self) -> Seeds:
        """The seeds in the states that `tap` was last called with."""
        return _joined(self._restored)

    def seeds_in(self, states: Iterable[IteratorState]) -> Seeds:
        """Return the seeds in the states of a snapshot. Reads no more of each state than it needs."""
        readers = {}
        for state in states:
            reader = self._reader(state.name)
            if reader is not None:
                readers[self._prefix(state.name)] = reader
                reader.read(state.elements)
        return _joined(readers)

    def _prefix(self, name: str) -> str:
        # As in a restore, a single iterator needs no name to be identified.
        return name if len(self._pipelines) > 1 else ""

    def _reader(self, name: str) -> Optional[_SeedReader]:
        pipeline = self._pipelines.get(name)
        if pipeline is None and len(self._pipelines) == 1:
            (pipeline,) = self._pipelines.values()
        if pipeline is None or not restarts_at_random(pipeline):
            return None
        is_called = any(True for _ in callers_of_random_functions(pipeline.operations))
        return _SeedReader(count_random_iterators(pipeline), is_called)


class _SeedReader:
    """Reads the elements of one state.

    Args:
        expected: how many iterators with seeds there are if all are in the state. None if it is not known.
        reads_inputs: whether functions create shuffles. Then the inputs of the functions are compared.
    """

    def __init__(self, expected: Optional[int], reads_inputs: bool) -> None:
        self._expected = expected
        self._reads_inputs = reads_inputs
        self._with_seeds: dict[str, Element] = {}
        self._paths: set[str] = set()
        self._inputs: dict[str, int] = {}

    @property
    def is_complete(self) -> bool:
        """Whether all iterators with seeds have been found."""
        return len(self._with_seeds) == self._expected

    def read(self, elements: Iterable[Element]) -> None:
        """Read elements until all seeds are found."""
        iterator = iter(elements)
        for element in iterator:
            self.note(element)
            if self.is_complete:
                break
        # What encodes the rest of a snapshot must not wait for a reader.
        close = getattr(iterator, "close", None)
        if close is not None:
            close()

    def note(self, element: Element) -> None:
        """Note what matters of an element. Nearly all are slots of buffers, of which nothing does."""
        key, payload = element
        match = _PATH.search(key)
        if match is None:
            self._with_seeds["an element without a path"] = element
            return
        path = match.group()
        if self._reads_inputs:
            self._note_input(path, key, payload)
        if _IS_SLOT.search(path):
            return
        name = path.decode(errors="backslashreplace")
        self._paths.add(name)
        if _IS_RANDOM.search(path) or _HAS_SEEDS.search(key):
            self._with_seeds[name] = element

    def _note_input(self, path: bytes, key: bytes, payload: Payload) -> None:
        for caller in _CALLER.finditer(path):
            digest = blake3(key).update(payload).digest(_DIGEST_BYTES)
            name = path[: caller.end()].decode(errors="backslashreplace")
            # A sum, because a restore reads the elements in another order.
            self._inputs[name] = self._inputs.get(name, 0) + int.from_bytes(digest, "big")

    def seeds(self) -> Seeds:
        """Return the seeds of what has been noted."""
        decoder = _Decoder()
        values = {path: decoder.values(element) for path, element in self._with_seeds.items()}
        found: dict[str, Optional[tuple[int, int]]] = {
            path: _pair(each, "seed", "seed2") for path, each in values.items()
        }
        if self.is_complete:
            return found
        found.update((f"{path} exists", (1, 0)) for path in self._paths)
        found.update(
            (f"{path} has ended", (each["epoch"], 0)) for path, each in values.items() if "epoch" in each
        )
        for path, total in self._inputs.items():
            found[f"{path} has been read"] = divmod(total % (1 << 2 * _WORD_BITS), 1 << _WORD_BITS)
        return found


def _noted(batches: Iterable[ElementBatch], reader: _SeedReader) -> Iterator[ElementBatch]:
    for batch in batches:
        for element in batch.elements:
            reader.note(element)
        yield batch


def _joined(readers: Mapping[str, _SeedReader]) -> Seeds:
    return {
        f"{name} {path}": pair for name, reader in readers.items() for path, pair in reader.seeds().items()
    }


def _pair(values: Mapping[str, int], first: str, second: str) -> Optional[tuple[int, int]]:
    return (values[first], values[second]) if first in values and second in values else None


class _Decoder:
    """Decodes the values of an element, in a graph of its own, because that of the training is final."""

    def __init__(self) -> None:
        self._checker = ElementChecker()

    def values(self, element: Element) -> dict[str, int]:
        """Return the numbers in an element by their names. Empty if they cannot be decoded."""
        with contextlib.suppress(CorruptCheckpointError, DecodeError, tf.errors.OpError):
            self._checker.check([element])
            variant = tensor_pb2.VariantTensorDataProto.FromString(b"".join(element))
            _, *names = variant.metadata.decode(errors="backslashreplace").split(_NAME_SEPARATOR.decode())
            numbers = _numbers(variant.tensors)
            if len(numbers) == len(names):
                # Some iterators add their path to the names.
                found = {name.rpartition(":")[2]: number for name, number in zip(names, numbers)}
                return {name: number for name, number in found.items() if number is not None}
        return {}


def _numbers(tensors: Any) -> list[Optional[int]]:
    """Return the numbers in the tensors of an element, which TensorFlow may have compressed.

    None takes the place of a tensor that is not one number.
    """
    if len(tensors) == 1 and [each.type_name for each in tensors[0].variant_val] == [_COMPRESSED_ELEMENT]:
        return [_number(value) for value in _uncompressed(tensors[0])]
    return [None if each.variant_val else _number(tf.make_ndarray(each)) for each in tensors]


def _number(value: Any) -> Optional[int]:
    array = np.asarray(value)
    return int(array) if array.shape == () and array.dtype == np.int64 else None


def _uncompressed(tensor: Any) -> list[Any]:
    element = dataset_pb2.CompressedElement.FromString(tensor.variant_val[0].metadata)
    with tf.Graph().as_default() as graph, tf.device("/cpu:0"):
        values = tf.raw_ops.UncompressElement(
            compressed=tf.io.parse_tensor(tensor.SerializeToString(), tf.variant),
            output_types=[each.dtype for each in element.component_metadata],
            output_shapes=[None] * len(element.component_metadata),
        )
        with v1.Session(graph=graph, config=v1.ConfigProto(device_count={"GPU": 0})) as session:
            return list(session.run(values))
