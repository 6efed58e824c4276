"""Digests of batches, computed in the graph.

A digest covers the values, shapes and types of all components of a batch. It is the same whether the batch
was drawn by the training or by a fast-forward.

Measured with TensorFlow 2.15: ``Fingerprint`` accepts tensors of every type with at least one dimension,
except variants and resources. For a row without strings it returns memory that nothing has written to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf
from blake3 import blake3

from input_checkpoint.tensorflow.draws import GET_NEXT_TYPES, readers_of, why_uncertain

SCOPE = "input_checkpoint"
"""Name scope of the operations that this library adds to a graph."""
_OWN_NAME = re.compile(rf"{SCOPE}(_\d+)?/")

_DIGEST_BYTES = 16
# The names of what tf.data makes of sparse and ragged tensors, with the tags and lengths around them. Of
# other variants, such as datasets, TensorFlow may encode the name alone.
_ENCODABLE = r"\C*\n(\x12tensorflow::Tensor|\x13RaggedTensorVariant)[\x12\x1a]\C*"
# The encoding of a vector of variants begins with a header, the sizes of all elements, and the type of the
# first one (tensorflow/core/framework/variant_encode_decode.cc).
_HEADER_BYTES = 256
_SIZE_BYTES = 10


def is_own(operation: Any) -> bool:
    """Whether this library has added an operation to a graph."""
    return _OWN_NAME.match(operation.name) is not None


def why_not_digestible(tensors: Sequence[Any]) -> Optional[str]:
    """Return why there is no digest of a batch with these components, or None if there is one."""
    types = sorted({tensor.dtype.name for tensor in tensors if tensor.dtype == tf.resource})
    return f"a batch with components of type {', '.join(types)} has no digest" if types else None


def batch_digest(tensors: Sequence[Any]) -> Any:
    """Return a small tensor that `digest_text` turns into the digest of a batch.

    Args:
        tensors: the outputs of one operation, for which `why_not_digestible` returns None.
    """
    return tf.concat([part for tensor in tensors for part in _component(tensor)], 0)


def digest_text(value: Any) -> Optional[str]:
    """Return the digest of a batch as a hexadecimal text, as it is kept in a mark.

    Args:
        value: what `batch_digest` evaluated to.

    Returns:
        None if a component is of a kind whose content TensorFlow does not encode, such as a dataset.
    """
    numbers = np.ascontiguousarray(value, "<i8")
    position = 0
    while position < len(numbers):
        _, encodable, rank = numbers[position : position + 3].tolist()
        if not encodable:
            return None
        position += 4 + rank
    return str(blake3(numbers.tobytes()).hexdigest(_DIGEST_BYTES))


class BatchDigests:
    """The digests of what the operations of a graph draw.

    Create it before the graph is finalized. Evaluating a digest draws, like evaluating the batch.

    Args:
        graph: the graph, with the operations that draw.
    """

    def __init__(self, graph: Any) -> None:
        self._tensors: dict[str, Any] = {}
        self._outputs: dict[str, frozenset[str]] = {}
        self._reasons: dict[str, str] = {}
        operations = [
            operation
            for operation, _ in readers_of(graph)
            if operation.type in GET_NEXT_TYPES and not is_own(operation) and why_uncertain(operation) is None
        ]
        with graph.as_default(), graph.control_dependencies(None), graph.name_scope(SCOPE):
            for operation in operations:
                self._add(graph, operation)

    def tensor(self, operation: str) -> Optional[Any]:
        """Return the tensor for `digest_text`, or None if the batches of an operation have no digest.

        Args:
            operation: name of the operation that draws.
        """
        return self._tensors.get(operation)

    def outputs(self, operation: str) -> frozenset[str]:
        """Return the names of the tensors that an operation draws, if it has a digest."""
        return self._outputs.get(operation, frozenset())

    def why_not(self, operation: str) -> Optional[str]:
        """Return why the batches of an operation have no digest, or None if that is not known."""
        return self._reasons.get(operation)

    def _add(self, graph: Any, operation: Any) -> None:
        name = str(operation.name)
        reason = why_not_digestible(operation.outputs)
        if reason is not None:
            self._reasons[name] = f"operation {name!r}: {reason}"
            return
        with graph.colocate_with(operation, ignore_existing=True):
            self._tensors[name] = batch_digest(operation.outputs)
        self._outputs[name] = frozenset(str(tensor.name) for tensor in operation.outputs)


def _component(tensor: Any) -> list[Any]:
    """Return the type, whether the value can be encoded, the shape and the fingerprint of a component."""
    encodable = tf.constant([1], tf.int64)
    if tensor.dtype == tf.variant:
        encoded = tf.io.serialize_tensor(tensor)
        encodable = tf.reshape(_is_encodable(encoded, tf.size(tensor)), [1])
        fingerprint = _fingerprint(tf.reshape(encoded, [1, 1]))
    elif tensor.dtype == tf.string:
        # One fingerprint for each string, then one for all of them.
        fingerprint = _fingerprint(tf.reshape(_fingerprint(tf.reshape(tensor, [-1, 1])), [1, -1]))
    else:
        fingerprint = _fingerprint(tf.reshape(tensor, [1, -1]))
    return [
        tf.constant([tensor.dtype.base_dtype.as_datatype_enum], tf.int64),
        encodable,
        tf.reshape(tf.cast(tf.rank(tensor), tf.int64), [1]),
        tf.shape(tensor, tf.int64),
        tf.bitcast(fingerprint, tf.int64),
    ]


def _fingerprint(rows: Any) -> Any:
    return tf.raw_ops.Fingerprint(data=rows, method="farmhash64")


def _is_encodable(encoded: Any, count: Any) -> Any:
    """Return 1 if the first of ``count`` encoded variants is of a known type, or if there is none, else 0."""
    end = tf.minimum(tf.strings.length(encoded), _HEADER_BYTES + _SIZE_BYTES * count)
    is_known = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, end), _ENCODABLE)
    return tf.cast(tf.logical_or(is_known, tf.equal(count, 0)), tf.int64)
