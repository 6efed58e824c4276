"""Takes the fingerprint of each iterator's pipeline, from the graph alone.

What is compared, and how strictly, was measured with TensorFlow 2.15.1: docs/pipelines.md.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from blake3 import blake3

from input_checkpoint.backends.redaction import redact
from input_checkpoint.tensorflow.dataset_graph import Pipeline
from input_checkpoint.tensorflow.dataset_operations import (
    HARMLESS_ATTRIBUTES,
    Argument,
    DatasetOperation,
    is_harmless,
)
from input_checkpoint.training.pipeline_change import FUNCTION_PREFIX, Fingerprint, Transformation

_LAYOUT_ARGUMENTS = frozenset(
    (
        ("Cache", "filename"),
        ("Interleave", "cycle_length"),
        ("LegacyParallelInterleave", "buffer_output_elements"),
        ("LegacyParallelInterleave", "cycle_length"),
        ("LegacyParallelInterleave", "prefetch_input_elements"),
        ("ParallelInterleave", "cycle_length"),
        ("Shuffle", "buffer_size"),
        ("ShuffleAndRepeat", "buffer_size"),
        ("Snapshot", "path"),
    )
)
"""Arguments that the saved state is laid out by. Another value crashes TensorFlow, or is an error."""

_NO_OP_COUNTS = {"Take": -1, "Skip": 0, "Repeat": 1, "Prefetch": 0}
_MOST_TRANSFORMATIONS = 2000
"""A limit for pipelines that read a dataset twice, over and over."""
_LONGEST_TEXT = 48
_MOST_VALUES = 3
_SHOWN_CHARACTERS = 12


def fingerprint_iterators(pipelines: Mapping[str, Pipeline]) -> dict[str, Fingerprint]:
    """Return the fingerprint of what feeds each iterator.

    Takes a few milliseconds. Files that a pattern matches, the contents of files and tables, values of
    variables, and what Python functions do are not part of it.

    Args:
        pipelines: as `read_pipelines` returns them.

    Returns:
        The fingerprints by the names of the iterators. An iterator that is not initialized in this graph is
        left out.
    """
    producer = ".".join(tf.__version__.split(".")[:2])
    return {
        name: Fingerprint.of(list(_transformations(pipeline.operations)), producer)
        for name, pipeline in pipelines.items()
    }


def _transformations(operations: Sequence[DatasetOperation], depth: int = 0) -> Iterator[Transformation]:
    """Yield the transformations of a pipeline, without those that TensorFlow removes or adds by itself.

    A dataset that is read twice comes twice, because TensorFlow makes an iterator for each of its readers.
    """
    kept = _without_removed(operations, depth)
    for operation, inputs in itertools.islice(_iterators(kept), _MOST_TRANSFORMATIONS):
        # TensorFlow turns Map into ParallelMap by itself, except inside functions.
        name = "Map" if operation.kind == "ParallelMap" and depth == 0 else operation.kind
        layout = dict(_layout(operation, kept))
        content = dict(_content(operation, layout))
        yield Transformation(name, inputs, depth, layout, content, operation.elements)
        for function in operation.functions.values():
            yield from _transformations(function.operations, depth + 1)


def _without_removed(operations: Sequence[DatasetOperation], depth: int) -> list[DatasetOperation]:
    """Return the operations that TensorFlow keeps, which read one another and not those that it removes."""
    kept: list[DatasetOperation] = []
    positions: list[int] = []
    for index, operation in enumerate(operations):
        inputs = tuple(positions[parent] for parent in operation.inputs)
        is_last = index == len(operations) - 1 and depth == 0
        if _is_removed(operation, is_last):
            positions.append(inputs[0])
        else:
            positions.append(len(kept))
            kept.append(dataclasses.replace(operation, inputs=inputs))
    return kept


def _iterators(
    operations: Sequence[DatasetOperation],
) -> Iterator[tuple[DatasetOperation, tuple[int, ...]]]:
    """Yield the operation of each iterator that TensorFlow makes, and the positions of its inputs."""
    position = 0
    finished: list[int] = []
    for root in _roots(operations):
        pending = [(root, False)]
        while pending:
            index, inputs_are_finished = pending.pop()
            operation = operations[index]
            if not inputs_are_finished:
                pending.append((index, True))
                pending.extend((parent, False) for parent in reversed(operation.inputs))
                continue
            first = len(finished) - len(operation.inputs)
            yield operation, tuple(finished[first:])
            finished[first:] = [position]
            position += 1


def _roots(operations: Sequence[DatasetOperation]) -> list[int]:
    """Return the datasets that no other one reads."""
    read = {parent for operation in operations for parent in operation.inputs}
    return [index for index in range(len(operations)) if index not in read]


def _is_removed(operation: DatasetOperation, is_last: bool) -> bool:
    """Whether TensorFlow removes a transformation before it runs the pipeline, or adds the same by itself.

    Args:
        operation: the transformation.
        is_last: whether it is the last one of the whole pipeline.
    """
    if operation.kind == "Options" or (operation.kind == "Prefetch" and is_last):
        return bool(operation.inputs)
    if operation.kind in _NO_OP_COUNTS:
        name = "buffer_size" if operation.kind == "Prefetch" else "count"
        return operation.constant(name) == _NO_OP_COUNTS[operation.kind]
    if operation.kind == "Shard":
        return operation.constant("num_shards") == 1
    return operation.kind in ("Map", "ParallelMap") and all(
        function.is_identity for function in operation.functions.values()
    )


def _layout(operation: DatasetOperation, kept: Sequence[DatasetOperation]) -> Iterator[tuple[str, str]]:
    # TensorFlow merges a batch with the map before it into MapAndBatch, which saves whole batches.
    is_fused = operation.kind == "Batch" and kept[operation.inputs[0]].kind in ("Map", "ParallelMap")
    for name, values in operation.arguments.items():
        if (operation.kind, name) in _LAYOUT_ARGUMENTS or (is_fused and name == "batch_size"):
            yield name, _text(values)
    if operation.kind in ("Repeat", "Take"):
        count = operation.constant("count")
        if count is not None:
            yield "count", _kind_of_count(count)


def _kind_of_count(count: int) -> str:
    """Return which of its iterators TensorFlow uses for a count."""
    if count < 0:
        return "unlimited"
    return "none" if count == 0 else "limited"


def _content(operation: DatasetOperation, layout: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, values in operation.arguments.items():
        is_limit = name == "count" and layout.get(name) == "limited"
        if not is_harmless(operation.kind, name) and (name not in layout or is_limit):
            yield name, _text(values)
    for name, attribute in operation.attributes.items():
        if name not in HARMLESS_ATTRIBUTES:
            yield name, _attribute_text(attribute)
    for name, function in operation.functions.items():
        yield f"{FUNCTION_PREFIX}{name}", function.digest


def _text(values: Sequence[Argument]) -> str:
    """Return values as a short text that differs where they differ."""
    if len(values) <= _MOST_VALUES:
        return ", ".join(map(_value_text, values))
    return f"{len(values)} values ({_digest_of(''.join(value.digest for value in values))})"


def _value_text(argument: Argument) -> str:
    value, digest = argument.value, argument.digest[:_SHOWN_CHARACTERS]
    if argument.size is None:
        return f"computed ({digest})"
    if value is not None and value.dtype == object and value.size == 1:
        return _short(bytes(value.reshape(-1)[0]).decode(errors="backslashreplace"))
    if value is not None and value.dtype != object and value.size <= _MOST_VALUES:
        return str(value.tolist())
    return f"{argument.size} values ({digest})"


def _short(text: str) -> str:
    """Return a text, or its digest if it is long or holds a credential."""
    return (
        repr(text) if len(text) <= _LONGEST_TEXT and redact(text) == text else f"a text ({_digest_of(text)})"
    )


def _attribute_text(attribute: Any) -> str:
    value = getattr(attribute, attribute.WhichOneof("value"))
    return str(value) if isinstance(value, (bool, int, float)) else _short(str(value))


def _digest_of(text: str) -> str:
    return str(blake3(text.encode()).hexdigest()[:_SHOWN_CHARACTERS])
