"""Takes the fingerprint of each iterator's pipeline, from the graph alone.

What is compared, and how strictly, was measured with TensorFlow 2.15.1: docs/pipelines.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from blake3 import blake3

from input_checkpoint.backends.redaction import redact
from input_checkpoint.tensorflow.dataset_graph import (
    Argument,
    DatasetOperation,
    Pipeline,
    is_harmless,
)
from input_checkpoint.training.pipeline_change import FUNCTION_PREFIX, Fingerprint, Transformation

_LAYOUT_ARGUMENTS = frozenset(
    (
        ("Cache", "filename"),
        ("Interleave", "cycle_length"),
        ("ParallelInterleave", "cycle_length"),
        ("Shuffle", "buffer_size"),
        ("ShuffleAndRepeat", "buffer_size"),
        ("Snapshot", "path"),
    )
)
"""Arguments that the saved state is laid out by. Another value crashes TensorFlow, or is an error."""

_NO_OP_COUNTS = {"Take": -1, "Skip": 0, "Repeat": 1, "Prefetch": 0}
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


def _transformations(operations: Sequence[DatasetOperation]) -> Iterator[Transformation]:
    """Yield the transformations of a pipeline, without those that TensorFlow removes or adds by itself."""
    kept: dict[int, int] = {}
    position = 0
    for index, operation in enumerate(operations):
        if _is_removed(operation, is_last=index == len(operations) - 1):
            kept[index] = kept[operation.inputs[0]]
            continue
        kept[index] = position
        position += 1
        inputs = tuple(kept[parent] for parent in operation.inputs)
        # TensorFlow turns Map into ParallelMap by itself, and Map before Batch into MapAndBatch.
        name = "Map" if operation.kind == "ParallelMap" else operation.kind
        follows_map = any(_source_kind(operations, parent) == "Map" for parent in operation.inputs)
        yield from _with_functions(operation, name, inputs, fused=name == "Batch" and follows_map)


def _nested(operations: Sequence[DatasetOperation], depth: int) -> Iterator[Transformation]:
    # TensorFlow's optimizations leave functions alone.
    for operation in operations:
        yield from _with_functions(operation, operation.kind, operation.inputs, depth=depth)


def _with_functions(
    operation: DatasetOperation, name: str, inputs: tuple[int, ...], fused: bool = False, depth: int = 0
) -> Iterator[Transformation]:
    layout = dict(_layout(operation, fused))
    yield Transformation(name, inputs, depth, layout, dict(_content(operation, layout)), operation.elements)
    for function in operation.functions.values():
        yield from _nested(function.operations, depth + 1)


def _is_removed(operation: DatasetOperation, is_last: bool) -> bool:
    """Whether TensorFlow removes a transformation before it runs the pipeline, or adds the same by itself."""
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


def _source_kind(operations: Sequence[DatasetOperation], index: int) -> str:
    """Return the kind of a transformation, or of the one before it where TensorFlow removes it."""
    while _is_removed(operations[index], is_last=False):
        index = operations[index].inputs[0]
    kind = operations[index].kind
    return "Map" if kind == "ParallelMap" else kind


def _layout(operation: DatasetOperation, fused: bool) -> Iterator[tuple[str, str]]:
    for name, values in operation.arguments.items():
        if (operation.kind, name) in _LAYOUT_ARGUMENTS or (fused and name == "batch_size"):
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
    if value is None:
        return f"computed ({digest})"
    if value.dtype == object and value.size == 1:
        return _short(bytes(value.reshape(-1)[0]).decode(errors="backslashreplace"))
    if value.dtype != object and value.size <= _MOST_VALUES:
        return str(value.tolist())
    return f"{value.size} values ({digest})"


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
