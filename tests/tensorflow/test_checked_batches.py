"""Stored elements are checked, and encoded as TensorFlow parses them, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import dataset_pb2, tensor_pb2, types_pb2

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.state import Element, ElementBatch
from input_checkpoint.tensorflow.checked_batches import CheckedBatch, EncodedBatch, check_batches
from input_checkpoint.tensorflow.variants import split_payload, split_variants

NAME = b"Iterator::Root@@x"


def element_of(size: int, number: int = 0) -> Element:
    """An element with a text of ``size`` bytes."""
    text = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[bytes([number % 256]) * size])
    text.tensor_shape.SetInParent()
    variant = tensor_pb2.VariantTensorDataProto(
        type_name="tensorflow::Iterator", metadata=NAME, tensors=[text]
    )
    return split_payload(variant.SerializeToString())


def hostile() -> Element:
    """An element whose shape does not fit its values."""
    key, _ = element_of(1)
    wrong = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64)
    wrong.tensor_shape.dim.add().size = 1 << 40
    variant = tensor_pb2.VariantTensorDataProto(tensors=[wrong])
    return key, variant.SerializeToString()


def batches_of(sizes: Sequence[int], per_batch: int = 3) -> list[ElementBatch]:
    elements = [element_of(size, number) for number, size in enumerate(sizes)]
    return [
        ElementBatch(
            list(range(len(elements)))[start : start + per_batch], elements[start : start + per_batch]
        )
        for start in range(0, len(elements), per_batch)
    ]


def flattened(batches: Sequence[ElementBatch]) -> list[tuple[int, bytes]]:
    """Positions, and the whole of each element."""
    return [
        (position, b"".join(element))
        for batch in batches
        for position, element in zip(batch.positions, batch.elements)
    ]


@given(
    st.lists(st.integers(0, 300) | st.integers(4000, 9000), max_size=40),
    st.integers(1, 7),
    st.integers(1, 20_000),
)
def test_every_element_keeps_its_content_and_its_position(
    sizes: list[int], per_batch: int, batch_bytes: int
) -> None:
    given_batches = batches_of(sizes, per_batch)
    checked = list(check_batches(given_batches, batch_bytes=batch_bytes))
    assert flattened(checked) == flattened(given_batches)


@given(
    st.lists(st.integers(0, 300) | st.integers(4000, 9000), min_size=1, max_size=40),
    st.integers(1, 20_000),
)
def test_only_the_last_element_of_a_batch_exceeds_its_size(sizes: list[int], batch_bytes: int) -> None:
    checked = list(check_batches(batches_of(sizes), batch_bytes=batch_bytes))
    for number, batch in enumerate(checked):
        payloads = [len(payload) for _, payload in batch.elements]
        assert sum(payloads[:-1]) < batch_bytes
        assert sum(payloads) >= batch_bytes or number == len(checked) - 1


def test_elements_without_a_payload_do_not_share_one_endless_batch() -> None:
    """TensorFlow would end the process if they had 2 GB together."""
    key, _ = element_of(1)
    batch = ElementBatch(range(1000), [(key.replace(b"@@", b"::"), b"")] * 1000)
    assert max(len(batch.encode()) for batch in check_batches([batch], batch_bytes=200)) < 20 * 200


@pytest.mark.parametrize(("size", "kind"), [(50, EncodedBatch), (9000, CheckedBatch)])
def test_only_small_elements_are_encoded_before_they_are_needed(size: int, kind: type) -> None:
    """The encoded form of large ones would be another copy."""
    checked = list(check_batches(batches_of([size] * 40), batch_bytes=20_000))
    assert {type(batch) for batch in checked[:1]} == {kind}


def test_the_payload_of_a_large_element_is_not_copied_before_it_is_needed() -> None:
    key, payload = element_of(9000)
    view = memoryview(payload)
    (batch,) = check_batches([ElementBatch([0], [(key, view)])])
    assert batch.elements[0][1] is view


@pytest.mark.parametrize("size", [50, 9000])
def test_tensorflow_parses_an_encoded_batch(size: int) -> None:
    (given_batch,) = batches_of([size] * 5, per_batch=5)
    (batch,) = check_batches([given_batch], batch_bytes=10 * 9000)
    parsed = tf.io.parse_tensor(batch.encode(), tf.variant)
    assert parsed.shape == [5]
    # TensorFlow compresses the tensors of an element that were not compressed.
    encoded = tf.io.serialize_tensor(parsed).numpy()
    keys = [split_payload(element)[0] for element in split_variants(encoded)]
    assert keys == [key for key, _ in given_batch.elements]


def test_views_are_encoded_as_bytes_are() -> None:
    (given_batch,) = batches_of([9000, 50, 9000], per_batch=3)
    views = [(key, memoryview(payload)) for key, payload in given_batch.elements]
    encoded = [
        [batch.encode() for batch in check_batches([each], batch_bytes=batch_bytes)]
        for each in (given_batch, ElementBatch(given_batch.positions, views))
        for batch_bytes in (1000, 10**6)
    ]
    assert encoded[:2] == encoded[2:]


def test_batches_that_were_checked_before_stay_as_they_are() -> None:
    once = list(check_batches(batches_of([50] * 20), batch_bytes=500))
    mixed = [*once[:2], *batches_of([50] * 4), *once[2:]]
    again = list(check_batches(mixed, batch_bytes=10**6))
    assert again[:2] == once[:2]
    assert all(one is other for one, other in zip(again[:2] + again[3:], once))
    assert flattened(again) == flattened(mixed)


class Reads:
    """Batches that count how many of them were asked for."""

    def __init__(self, batches: Sequence[ElementBatch]) -> None:
        self._iterator = iter(batches)
        self.count = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> ElementBatch:
        self.count += 1
        return next(self._iterator)


def test_no_more_is_read_than_the_next_batch_needs() -> None:
    reads = Reads(batches_of([1000] * 30))
    checked = check_batches(reads, batch_bytes=5000)
    for number in range(1, 5):
        next(checked)
        assert reads.count <= 2 * number


@pytest.mark.parametrize("others", [0, 1, 100])
def test_a_hostile_element_is_refused_wherever_it_is(others: int) -> None:
    good = [element_of(50) for _ in range(others)]
    for elements in ([hostile(), *good], [*good, hostile()]):
        with pytest.raises(CorruptCheckpointError, match="claims"):
            list(check_batches([ElementBatch(range(len(elements)), elements)], batch_bytes=500))


def test_what_comes_before_a_hostile_element_is_yielded() -> None:
    checked = check_batches([*batches_of([600] * 2), ElementBatch([2], [hostile()])], batch_bytes=500)
    assert [batch.positions for batch in (next(checked), next(checked))] == [[0], [1]]
    with pytest.raises(CorruptCheckpointError):
        next(checked)


def test_an_encoded_batch_counts_with_the_memory_that_it_uses() -> None:
    positions = list(range(10**6, 10**6 + 1000))
    (batch,) = check_batches([ElementBatch(positions, [element_of(50)] * 1000)])
    assert isinstance(batch, EncodedBatch)
    assert batch.memory_bytes >= len(batch.encode()) + 36 * 1000
    assert batch.memory_bytes < ElementBatch(positions, batch.elements).memory_bytes


def test_payloads_count_with_their_bytes_whether_they_are_views_or_not() -> None:
    key, payload = element_of(9000)
    assert (
        ElementBatch([0], [(key, memoryview(payload))]).memory_bytes
        == ElementBatch([0], [(key, payload)]).memory_bytes
        > len(key) + 9000
    )


def test_a_compressed_element_may_be_a_view() -> None:
    data = np.random.default_rng(0).bytes(9000)
    component = dataset_pb2.CompressedComponentMetadata(dtype=types_pb2.DT_UINT8, uncompressed_bytes=[9000])
    component.tensor_shape.dim.add().size = 9000
    inner = dataset_pb2.CompressedElement(data=data, component_metadata=[component]).SerializeToString()
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_VARIANT)
    tensor.tensor_shape.SetInParent()
    tensor.variant_val.add(type_name="tensorflow.data.CompressedElement", metadata=inner)
    payload = tensor_pb2.VariantTensorDataProto(tensors=[tensor]).SerializeToString()
    key, _ = element_of(1)
    elements: list[Element] = [(key, payload), (key, memoryview(payload)), (key, payload)]
    (batch,) = check_batches([ElementBatch(range(3), elements)])
    assert [bytes(found) for _, found in batch.elements] == [payload] * 3
