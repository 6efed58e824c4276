"""Reads the constants of a graph, which may be large, with few copies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from blake3 import blake3

from input_checkpoint.tensorflow.dataset_operations import DIGEST_BYTES, Argument

_MOST_VALUES = 16
"""Larger constants are represented by their digest alone."""
_ITEMS_AT_ONCE = 4096


def read_constant(tensor: Any) -> Argument:
    """Return the digest of a constant, and its value if it is small.

    The digest covers type, shape and content. It does not depend on how the proto holds the content.

    Args:
        tensor: a ``TensorProto``.
    """
    of_type = np.dtype(tf.dtypes.as_dtype(tensor.dtype).as_numpy_dtype)
    is_text = of_type.hasobject
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    size = math.prod(shape)
    digest = blake3(f"{'bytes' if is_text else of_type.str}{shape}".encode())
    if size <= _MOST_VALUES:
        # A constant without values may hold one, at which make_ndarray fails.
        value = tf.make_ndarray(tensor) if size else np.zeros(shape, of_type)
        _update(digest, value)
        return Argument(digest.hexdigest(DIGEST_BYTES), size, value)
    # make_ndarray would copy the content twice more.
    content = tensor.tensor_content
    if is_text and len(tensor.string_val) == size:
        _update_with_items(digest, tensor.string_val)
    elif not is_text and len(content) == size * of_type.itemsize:
        digest.update(content)
    else:
        _update(digest, tf.make_ndarray(tensor))
    return Argument(digest.hexdigest(DIGEST_BYTES), size)


def _update(digest: Any, value: np.ndarray[Any, Any]) -> None:
    if value.dtype.hasobject:
        _update_with_items(digest, value.reshape(-1))
    else:
        digest.update(np.ascontiguousarray(value).tobytes())


def _update_with_items(digest: Any, items: Iterable[bytes]) -> None:
    framed = (len(item).to_bytes(8, "little") + item for item in items)
    while True:
        several = b"".join(itertools.islice(framed, _ITEMS_AT_ONCE))
        if not several:
            return
        digest.update(several)
