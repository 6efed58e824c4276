"""One dataset operation of a graph: its arguments and attributes, and which are harmless to change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

DIGEST_BYTES = 12
_DATASET_NAME = re.compile(r"(\w+?)Dataset(V\d+)?")


@dataclass(frozen=True)
class Argument:
    """An argument of a dataset operation: a constant, or the digest of what computes it."""

    digest: str
    """`DIGEST_BYTES` bytes in hexadecimal."""
    size: Optional[int] = None
    """How many values the constant has. None if it is computed when the pipeline runs."""
    value: Optional[np.ndarray[Any, Any]] = field(default=None, compare=False)
    """The constant, if it is small."""


@dataclass(frozen=True)
class DatasetFunction:
    """The function that a dataset operation calls."""

    digest: str
    """Digest of everything that its results depend on."""
    operations: tuple[DatasetOperation, ...]
    """The dataset operations inside it, sources first. Empty for the function of a ``map``."""
    is_identity: bool
    """Whether it returns its arguments unchanged."""
    stateful_types: frozenset[str]
    """Types of the stateful operations that it runs, those of the functions inside it included."""
    unseen_types: frozenset[str] = frozenset()
    """Types of the dataset operations that it runs but does not return. `operations` lacks them."""


@dataclass(frozen=True)
class DatasetOperation:
    """One dataset operation of a pipeline."""

    kind: str
    """Its type without ``Dataset`` and a version number: ``Shuffle`` for ``ShuffleDatasetV3``."""
    inputs: tuple[int, ...]
    """The datasets that it reads: their positions in the same list."""
    arguments: Mapping[str, tuple[Argument, ...]]
    """Its inputs that are not datasets, by the names in TensorFlow's definition of the operation."""
    attributes: Mapping[str, Any]
    """Its stable attributes, as ``AttrValue``, without functions, types and shapes.

    Includes the `HARMLESS_ATTRIBUTES`.
    """
    functions: Mapping[str, DatasetFunction]
    elements: str
    """Types and shapes of its elements, such as ``int64[?,3] string[]``.

    Empty if it does not declare them.
    """
    computed_from: frozenset[str] = frozenset()
    """Types of the stateful operations, placeholders and datasets that its arguments are computed from."""

    def constant(self, name: str) -> Optional[Any]:
        """Return the value of an argument or attribute as a Python scalar, or None if it is not one."""
        values = self.arguments.get(name, ())
        if len(values) == 1 and values[0].value is not None and values[0].value.size == 1:
            return values[0].value.reshape(-1).tolist()[0]
        attribute = self.attributes.get(name)
        if attribute is not None and attribute.WhichOneof("value") in ("b", "i", "s"):
            return getattr(attribute, attribute.WhichOneof("value"))
        return None


def dataset_kind(node_type: str) -> str:
    """Return ``Shuffle`` for ``ShuffleDatasetV3``, and nothing for an operation that makes no dataset.

    >>> dataset_kind("ParallelMapDatasetV2"), dataset_kind("MatMul")
    ('ParallelMap', '')
    """
    match = _DATASET_NAME.fullmatch(node_type)
    return match.group(1) if match else ""


HARMLESS_ATTRIBUTES = frozenset(
    (
        "buffer_size_min",
        "deterministic",
        "legacy_autotune",
        "parallel_copy",
        "preserve_cardinality",
        "replicate_on_split",
        "serialized_options",
        "slack_period",
        "sloppy",
        "use_inter_op_parallelism",
        "warm_start",
    )
)
"""Attributes of dataset operations that change neither the state nor which elements come."""

_HARMLESS_ARGUMENTS = frozenset(
    (
        "batch_size",
        "drop_remainder",
        "num_parallel_calls",
        "num_threads",
        "memory_cache",
        "seed",
        "seed2",
        "seed_generator",
    )
)
_BUFFERS_OF_BYTES_OR_BATCHES = frozenset(("Prefetch", "TextLine", "TFRecord", "FixedLengthRecord", "CSV"))


def is_harmless(kind: str, argument: str) -> bool:
    """Whether an argument of a dataset operation may change without changing which elements come.

    >>> is_harmless("Batch", "batch_size"), is_harmless("Shuffle", "buffer_size")
    (True, False)
    """
    if argument == "buffer_size":
        return kind in _BUFFERS_OF_BYTES_OR_BATCHES
    return argument in _HARMLESS_ARGUMENTS
