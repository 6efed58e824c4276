"""Encoded vectors of variants are split and joined without loss, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import CorruptCheckpointError
from input_checkpoint.state import Element
from input_checkpoint.tensorflow.variants import join_variants, split_payload, split_variants

payloads = st.lists(st.binary(max_size=300), max_size=50)


def without_keys(items: list[bytes]) -> list[Element]:
    """Elements that consist only of a payload."""
    return [(b"", item) for item in items]


def variants_or_refusal(tensor: bytes) -> object:
    try:
        return list(split_variants(tensor))
    except CorruptCheckpointError as error:
        return error


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_an_element_is_split_into_key_and_payload(metadata, tensors):
    key = b"\x0a\x01t\x12" + bytes([len(metadata)]) + metadata
    payload = b"\x1a" + bytes([len(tensors)]) + tensors
    assert split_payload(key + payload) == (key, payload)


@given(payloads)
def test_a_vector_of_variants_returns_its_elements(items):
    assert list(split_variants(join_variants(without_keys(items)))) == items


def test_a_vector_whose_length_needs_several_varint_bytes_returns_its_elements():
    items = [b"x" * (number % 300) for number in range(20_000)]
    assert list(split_variants(join_variants(without_keys(items)))) == items


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_vector_of_variants_or_are_refused_as_corrupt(data):
    assert isinstance(variants_or_refusal(data), (list, CorruptCheckpointError))


@given(payloads.filter(len), st.data())
def test_a_damaged_vector_of_variants_is_split_or_refused_as_corrupt(items, data):
    whole = bytearray(join_variants(without_keys(items)))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    assert isinstance(variants_or_refusal(bytes(whole)), (list, CorruptCheckpointError))


@given(payloads.filter(any), st.data())
def test_a_truncated_vector_of_variants_is_refused(items, data):
    whole = join_variants(without_keys(items))
    end = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(CorruptCheckpointError):
        list(split_variants(whole[:end]))


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(b"\x08\x01" + join_variants(without_keys([b"a"]))[2:], id="floats"),
        pytest.param(b"\x08\x15\x12\x00\x22\x02\x01a", id="a scalar"),
        pytest.param(b"\x08\x15\x12\x08\x12\x02\x08\x01\x12\x02\x08\x01\x22\x02\x01a", id="a matrix"),
        pytest.param(join_variants(without_keys([b"a"])) + b"\x2a\x01a", id="an unknown field"),
        pytest.param(
            b"\x08\x15\x12\x0d\x12\x0b\x08" + b"\xff" * 9 + b"\x01\x22\x01\x00", id="2**63 elements"
        ),
    ],
)
def test_a_tensor_that_is_not_a_vector_of_variants_is_refused(tensor):
    with pytest.raises(CorruptCheckpointError):
        list(split_variants(tensor))
