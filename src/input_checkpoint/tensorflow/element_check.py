"""Refuses elements that would crash TensorFlow, or make it allocate far more memory than they need.

TensorFlow trusts the shapes and sizes in an element. It ends the process if the values do not fit them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.framework import dataset_pb2, tensor_pb2, types_pb2

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.state import Element, Payload

_COMPRESSED_ELEMENT = "tensorflow.data.CompressedElement"
_NAME_SEPARATOR = b"@@"
"""The metadata of an element is a prefix and the name of each tensor, joined by this."""
_STRING = types_pb2.DT_STRING
_VALUE_BYTES = {
    types_pb2.DT_BFLOAT16: 2,
    types_pb2.DT_BOOL: 1,
    types_pb2.DT_COMPLEX128: 16,
    types_pb2.DT_COMPLEX64: 8,
    types_pb2.DT_DOUBLE: 8,
    types_pb2.DT_FLOAT: 4,
    types_pb2.DT_HALF: 2,
    types_pb2.DT_INT16: 2,
    types_pb2.DT_INT32: 4,
    types_pb2.DT_INT64: 8,
    types_pb2.DT_INT8: 1,
    types_pb2.DT_QINT16: 2,
    types_pb2.DT_QINT32: 4,
    types_pb2.DT_QINT8: 1,
    types_pb2.DT_QUINT16: 2,
    types_pb2.DT_QUINT8: 1,
    types_pb2.DT_UINT16: 2,
    types_pb2.DT_UINT32: 4,
    types_pb2.DT_UINT64: 8,
    types_pb2.DT_UINT8: 1,
}
"""Size of a value of each type whose values lie side by side in memory."""
_TYPES = {value for value in types_pb2.DataType.values() if 0 < value < types_pb2.DT_FLOAT_REF}
_VARINT = rb"([\x80-\xff]{0,4}[\x00-\x7f])"
_COMMON_KEY = re.compile(rb"\x0a\x14tensorflow::Iterator\x12" + _VARINT, re.DOTALL)
_COMMON_PAYLOAD = re.compile(
    # tensors: DT_VARIANT, a scalar, variant_val: type_name, metadata: data
    rb"\x1a%b\x08\x15\x12\x00\x7a%b\x0a\x21tensorflow\.data\.CompressedElement\x12%b\x0a%b"
    % ((_VARINT,) * 4),
    re.DOTALL,
)
_KEY_HEAD = b"\x0a\x14tensorflow::Iterator\x12"
_SHORT_KEY_BYTES = len(_KEY_HEAD) + 1
"""The head, and the size of the metadata in one byte."""
_CONTINUES = 0x80
"""From this value on, the first byte of a varint is not the only one."""
_MAX_KNOWN_COMPONENTS = 1 << 12
_MAX_KNOWN_FRAMES = 1 << 12
_MAX_KNOWN_BYTES = 1 << 10
"""Longer descriptions of tensors are not remembered. That of a batch of texts has the length of each text."""
_MAX_DIMENSIONS = 254
_MAX_NESTED_VARIANTS = 32
_SNAPPY_RATIO = 64
"""A copy of 64 bytes, the longest that Snappy knows, takes at least 2 bytes."""


class ElementChecker:
    """Checks elements before TensorFlow sees them. May be used from several threads."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, int]] = {}
        self._frames: dict[int, _Frame] = {}
        """By the size of a payload. Payloads of one size mostly differ in their data alone."""

    def check(self, elements: Iterable[Element]) -> None:
        """Check elements.

        Raises:
            CorruptCheckpointError: TensorFlow must not see one of them.
        """
        frames = self._frames
        try:
            for key, payload in elements:
                frame = frames.get(len(payload))
                if frame is not None and isinstance(payload, bytes) and frame.fits(key, payload):
                    continue
                if not self._is_common(key, payload):
                    _check_element(tensor_pb2.VariantTensorDataProto.FromString(b"".join((key, payload))))
        except DecodeError as error:
            raise CorruptCheckpointError(f"an element cannot be decoded: {error}") from error

    def _is_common(self, key: bytes, payload: Payload) -> bool:
        """Whether an element consists of one compressed element, and is right. Much faster than parsing it.

        Nearly all elements do, and many of them have tensors of the same types and sizes.
        """
        head, parts = _COMMON_KEY.match(key), _COMMON_PAYLOAD.match(payload)
        if head is None or parts is None or head.end() + _size(head.group(1)) != len(key):
            return False
        for number in (1, 2, 3):
            if parts.end(number) + _size(parts.group(number)) != len(payload):
                return False
        data_bytes = _size(parts.group(4))
        components = bytes(payload[parts.end() + data_bytes :])
        known = self._known.get(components)
        if known is None:
            element = dataset_pb2.CompressedElement.FromString(components)
            if element.data:
                return False
            known = _unpacked_size(element), len(element.component_metadata)
            self._remember(components, known)
        size, count = known
        if size > _SNAPPY_RATIO * data_bytes or key.count(_NAME_SEPARATOR) > count:
            return False
        if len(self._frames) < _MAX_KNOWN_FRAMES and len(components) <= _MAX_KNOWN_BYTES:
            self._frames[len(payload)] = _Frame(bytes(payload[: parts.end()]), components, count)
        return True

    def _remember(self, components: bytes, known: tuple[int, int]) -> None:
        if len(components) > _MAX_KNOWN_BYTES:
            return
        if len(self._known) >= _MAX_KNOWN_COMPONENTS:
            self._known.clear()
        self._known[components] = known


@dataclass(frozen=True)
class _Frame:
    """What surrounds the data in a payload that was found to be right."""

    head: bytes
    """All sizes in the payload."""
    components: bytes
    """What follows the data."""
    max_names: int
    """How many tensors a key may name."""

    def fits(self, key: bytes, payload: bytes) -> bool:
        """Whether an element is right. ``payload`` has the size of the one that was found to be right."""
        return (
            payload.startswith(self.head)
            and payload.endswith(self.components)
            and key.startswith(_KEY_HEAD)
            and len(key) >= _SHORT_KEY_BYTES
            and len(key) == _SHORT_KEY_BYTES + key[_SHORT_KEY_BYTES - 1]
            and key[_SHORT_KEY_BYTES - 1] < _CONTINUES
            and key.count(_NAME_SEPARATOR) <= self.max_names
        )


def _size(varint: bytes) -> int:
    size = 0
    for shift, byte in enumerate(varint):
        size |= (byte & 0x7F) << 7 * shift
    return size


def _check_element(element: Any) -> None:
    _check_variant(element, 0)
    tensors = len(element.tensors)
    for tensor in element.tensors:
        for variant in tensor.variant_val:
            if variant.type_name == _COMPRESSED_ELEMENT:
                tensors = len(dataset_pb2.CompressedElement.FromString(variant.metadata).component_metadata)
    names = element.metadata.count(_NAME_SEPARATOR)
    if names > tensors:
        raise CorruptCheckpointError(f"an element names {names} tensors, but has {tensors}")


def _check_variant(variant: Any, depth: int) -> None:
    if depth > _MAX_NESTED_VARIANTS:
        raise CorruptCheckpointError("an element is nested too deeply")
    for tensor in variant.tensors:
        _check_tensor(tensor, depth)
    if variant.type_name == _COMPRESSED_ELEMENT:
        element = dataset_pb2.CompressedElement.FromString(variant.metadata)
        size = _unpacked_size(element)
        if size > _SNAPPY_RATIO * len(element.data):
            raise CorruptCheckpointError(
                f"{len(element.data)} bytes of compressed tensors claim to unpack to {size} bytes"
            )


def _check_tensor(tensor: Any, depth: int) -> None:
    count = _count_values(tensor)
    content = tensor.tensor_content
    if content:
        if len(content) != count * _VALUE_BYTES.get(tensor.dtype, -1):
            raise CorruptCheckpointError(f"a tensor has {len(content)} bytes for {count} values")
    elif count > 1 and count > tensor.ByteSize():
        raise CorruptCheckpointError(f"a tensor claims {count} values, but has {tensor.ByteSize()} bytes")
    for variant in tensor.variant_val:
        _check_variant(variant, depth + 1)


def _unpacked_size(element: Any) -> int:
    """Return to how many bytes the tensors of a compressed element unpack. Snappy has compressed them."""
    total = 0
    for component in element.component_metadata:
        count = _count_values(component)
        sizes = component.uncompressed_bytes
        size = sum(sizes)
        total += size
        value_bytes = _VALUE_BYTES.get(component.dtype)
        # A tensor without values has no size.
        if value_bytes is not None and (len(sizes) > 1 or size != count * value_bytes):
            raise CorruptCheckpointError(f"a compressed tensor has {size} bytes for {count} values")
        if component.dtype == _STRING and len(sizes) != count:
            raise CorruptCheckpointError(f"a compressed tensor has {len(sizes)} texts for {count} values")
    return total


def _count_values(tensor: Any) -> int:
    """Return how many values a tensor claims to have."""
    if tensor.dtype not in _TYPES:
        raise CorruptCheckpointError(f"a tensor has the unknown type {tensor.dtype}")
    shape = tensor.tensor_shape
    if shape.unknown_rank or len(shape.dim) > _MAX_DIMENSIONS:
        raise CorruptCheckpointError("a tensor has no shape, or too many dimensions")
    count = 1
    for dimension in shape.dim:
        if dimension.size < 0:
            raise CorruptCheckpointError("a tensor has a dimension of a negative size")
        count *= dimension.size
    return count
