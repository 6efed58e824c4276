"""Splits and joins TensorFlow's encoding of a vector of variants, without TensorFlow.

``tf.io.serialize_tensor`` encodes a vector of variants as a ``TensorProto``. Its ``tensor_content`` is a
list: the sizes of the elements as varints, then the elements, each a ``VariantTensorDataProto``
(tensorflow/core/framework/variant_encode_decode.cc, ``EncodeVariantList``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.state import Element

# Protocol buffer tags: (field number << 3) | wire type. tensorflow/core/framework/tensor.proto, types.proto.
_DTYPE_TAG = 0x08
_SHAPE_TAG = 0x12
_DIM_TAG = 0x12
_DIM_SIZE_TAG = 0x08
_CONTENT_TAG = 0x22
_DT_VARIANT = 21
# VariantTensorDataProto: type_name = 1, metadata = 2, tensors = 3, all length-delimited.
_TENSORS_TAG = 0x1A
_MAX_VARINT_BYTES = 10


def split_variants(tensor: bytes) -> Iterator[bytes]:
    """Yield the encoded elements of an encoded vector of variants.

    Raises:
        CorruptCheckpointError: ``tensor`` is not an encoded vector of variants.

    Example:
        >>> list(split_variants(join_variants([(b"a", b"b"), (b"", b"")])))
        [b'ab', b'']
    """
    dtype, count, start, end = _read_tensor(tensor)
    if dtype != _DT_VARIANT:
        raise CorruptCheckpointError(f"an encoded tensor holds elements of type {dtype}, not variants")
    sizes = []
    for _ in range(count):
        size, start = _decode_varint(tensor, start)
        sizes.append(size)
    if start + sum(sizes) != end:
        raise CorruptCheckpointError("the sizes in an encoded vector of variants do not add up")
    for size in sizes:
        yield tensor[start : start + size]
        start += size


def split_payload(element: bytes) -> tuple[bytes, bytes]:
    r"""Split an encoded element into its key (type name and metadata) and its payload (the tensors).

    The metadata identifies the buffer and the slot of the element, and the tensors are its content. The
    concatenation of both is the encoded element.

    Raises:
        CorruptCheckpointError: ``element`` is truncated.

    Example:
        >>> split_payload(bytes([0x0A, 1, 97, 0x12, 1, 98, 0x1A, 2, 8, 21]))
        (b'\n\x01a\x12\x01b', b'\x1a\x02\x08\x15')
    """
    position = 0
    while position < len(element) and element[position] != _TENSORS_TAG:
        size, start = _decode_varint(element, position + 1)
        position = start + size
    return element[:position], element[position:]


def join_variants(elements: Sequence[Element]) -> bytes:
    """Return the encoded vector of variants that consists of these elements."""
    dim = bytes([_DIM_SIZE_TAG]) + _encode_varint(len(elements))
    shape = bytes([_DIM_TAG]) + _encode_varint(len(dim)) + dim
    lengths = [len(key) + len(payload) for key, payload in elements]
    sizes = b"".join(
        [_SHORT_VARINTS[size] if size < len(_SHORT_VARINTS) else _encode_varint(size) for size in lengths]
    )
    head = (
        bytes([_DTYPE_TAG, _DT_VARIANT, _SHAPE_TAG])
        + _encode_varint(len(shape))
        + shape
        + bytes([_CONTENT_TAG])
        + _encode_varint(len(sizes) + sum(lengths))
    )
    return b"".join((head, sizes, *itertools.chain.from_iterable(elements)))


def _read_tensor(tensor: bytes) -> tuple[int, int, int, int]:
    """Return the dtype, the number of elements, and the start and end of the content."""
    dtype = position = start = end = 0
    count = -1
    while position < len(tensor):
        tag = tensor[position]
        value, position = _decode_varint(tensor, position + 1)
        if tag == _DTYPE_TAG:
            dtype = value
        elif tag == _SHAPE_TAG:
            count = _vector_length(tensor[position : position + value])
            position += value
        elif tag == _CONTENT_TAG:
            start, position = position, position + value
            end = position
        else:
            raise CorruptCheckpointError(f"unexpected field {tag:#x} in an encoded vector of variants")
    if position != len(tensor) or count < 0:
        raise CorruptCheckpointError("an encoded vector of variants is truncated")
    return dtype, count, start, end


def _vector_length(shape: bytes) -> int:
    # A shape with one dimension: its tag and length, then, unless the size is 0, the tag and the size.
    if len(shape) < 2 or shape[0] != _DIM_TAG:
        raise CorruptCheckpointError("an encoded tensor is not a vector")
    if shape[1] == 0:
        return 0
    size, end = _decode_varint(shape, 3)
    if shape[2] != _DIM_SIZE_TAG or end != len(shape):
        raise CorruptCheckpointError("an encoded tensor is not a vector")
    return size


def _decode_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if position >= len(data):
            raise CorruptCheckpointError("an encoded vector of variants is truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise CorruptCheckpointError("an encoded vector of variants holds a number of more than 64 bits")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_SHORT_VARINTS = tuple(map(_encode_varint, range(1 << 12)))
"""The encoded sizes of small elements, of which a state may have a million."""
