"""Finds the dataset operations that feed each iterator of a graph, without running anything.

A pipeline is read from the graph's nodes: from the ``MakeIterator`` operation, or the dataset factory of a
one-shot iterator, back to the sources, and into the functions of ``flat_map``, ``interleave``, ``map`` and
their like. What is found does not depend on the names that TensorFlow generates for operations and functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional

import tensorflow as tf
from blake3 import blake3

from input_checkpoint.tensorflow.dataset_operations import (
    DIGEST_BYTES,
    HARMLESS_ATTRIBUTES,
    Argument,
    DatasetFunction,
    DatasetOperation,
    dataset_kind,
    is_harmless,
)
from input_checkpoint.tensorflow.graph_constants import read_constant

ALIAS_TYPES = frozenset(("IteratorFromStringHandle", "IteratorFromStringHandleV2"))
"""Operations that return another iterator by its handle. They have no state of their own."""

# TensorFlow keeps these in step with its own surroundings, not with the user's pipeline: names, seeds that it
# derives from the number of operations in a graph, and tokens of Python functions.
_UNSTABLE_ATTRIBUTES = frozenset(
    ("config_proto", "container", "executor_type", "metadata", "seed", "seed2", "shared_name", "token")
)
_TRANSPARENT = frozenset(("Identity", "UnwrapDatasetVariant", "WrapDatasetVariant"))
_FED = frozenset(("Placeholder", "PlaceholderV2", "PlaceholderWithDefault"))
_SHAPING = frozenset(("ExpandDims", "Reshape"))


@dataclass(frozen=True)
class Pipeline:
    """What feeds one iterator."""

    iterator: str
    """Name of the iterator in the graph."""
    operations: tuple[DatasetOperation, ...]
    """Its dataset operations, sources first. Those inside functions belong to their `DatasetFunction`."""
    datasets: int = 1
    """From how many datasets the graph can initialize the iterator."""

    def every_level(self) -> Iterator[tuple[DatasetOperation, ...]]:
        """Yield the operations of the pipeline, then those of each function at any depth."""
        yield from _levels(self.operations)

    def stateful_types(self) -> frozenset[str]:
        """Return the types of the stateful operations that the functions of the pipeline run."""
        functions = [function for operation in self.operations for function in operation.functions.values()]
        return frozenset().union(*(function.stateful_types for function in functions))


def is_alias(resource: Any) -> bool:
    """Whether an iterator of a graph is only another name for one that was created elsewhere."""
    return resource.op.type in ALIAS_TYPES


def read_pipelines(graph: Any, resources: Sequence[Any]) -> dict[str, Pipeline]:
    """Return what feeds each iterator.

    An iterator that can be initialized from several datasets has the operations of all of them. One that is
    not initialized by an operation of this graph is left out.

    Args:
        graph: the graph, finished or not.
        resources: the iterators' resource tensors.
    """
    reader = _GraphReader(graph)
    pipelines = {}
    for resource in resources:
        pipeline = reader.pipeline_of(resource)
        if pipeline.operations:
            pipelines[pipeline.iterator] = pipeline
    return pipelines


def _levels(operations: tuple[DatasetOperation, ...]) -> Iterator[tuple[DatasetOperation, ...]]:
    yield operations
    for operation in operations:
        for function in operation.functions.values():
            if function.operations:
                yield from _levels(function.operations)


class _GraphReader:
    """Reads the nodes and functions of a graph, each function once."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._functions: dict[str, DatasetFunction] = {}
        self._scope = _Scope(self, {})

    def pipeline_of(self, resource: Any) -> Pipeline:
        if resource.op.type == "OneShotIterator":
            factory = resource.op.get_attr("dataset_factory").name
            return Pipeline(resource.op.name, self.function(factory).operations)
        makers = [op for op in resource.consumers() if op.type == "MakeIterator"]
        # Several operations may initialize it from one dataset.
        datasets = list(dict.fromkeys(maker.node_def.input[0] for maker in makers))
        return Pipeline(resource.op.name, tuple(self._scope.datasets(datasets).values()), len(datasets))

    def node(self, name: str) -> Any:
        return self._graph.get_operation_by_name(name).node_def

    def definition(self, node_type: str) -> Any:
        """Return TensorFlow's definition of an operation type."""
        return self._graph.op_def_for_type(node_type)

    def function(self, name: str) -> DatasetFunction:
        if name not in self._functions:
            # A function that calls itself is read once: the inner call counts as a call of an unknown
            # function.
            self._functions[name] = DatasetFunction("unknown", (), False, frozenset())
            definition = self._function_def(name)
            if definition is not None:
                self._functions[name] = self._read_function(definition)
        return self._functions[name]

    def _function_def(self, name: str) -> Any:
        # The private look-up takes microseconds. A GraphDef of the whole graph takes 10 microseconds per
        # operation of the model.
        lookup = getattr(self._graph, "_get_function", None)
        found = lookup(name) if lookup is not None else None
        # Not its cached_definition, which would stay in memory.
        definition = getattr(found, "definition", None)
        return definition if definition is not None else self._library.get(name)

    @cached_property
    def _library(self) -> dict[str, Any]:
        functions = self._graph.as_graph_def().library.function
        return {function.signature.name: function for function in functions}

    def _read_function(self, definition: Any) -> DatasetFunction:
        arguments = [argument.name for argument in definition.signature.input_arg]
        nodes = {node.name: node for node in definition.node_def}
        scope = _Scope(self, nodes, arguments)
        results = [definition.ret[output.name] for output in definition.signature.output_arg]
        digest = blake3()
        for result in results:
            digest.update(scope.digest(result))
        datasets = scope.datasets(
            [
                result
                for output, result in zip(definition.signature.output_arg, results)
                if output.type == tf.variant.as_datatype_enum
            ]
        )
        sources = [scope.producer(result) for result in results]
        return DatasetFunction(
            digest.hexdigest(DIGEST_BYTES),
            tuple(datasets.values()),
            is_identity=sources == [(None, index) for index in range(len(arguments))],
            stateful_types=self._stateful_types(definition.node_def),
            unseen_types=self._unseen_types(definition.node_def, datasets),
        )

    def _stateful_types(self, nodes: Sequence[Any]) -> frozenset[str]:
        types = {node.op for node in nodes if self.definition(node.op).is_stateful}
        inner = [self.function(name).stateful_types for node in nodes for name in _function_names(node)]
        return frozenset(types).union(*inner)

    def _unseen_types(self, nodes: Sequence[Any], seen: Mapping[str, DatasetOperation]) -> frozenset[str]:
        """Return the types of the dataset operations of a function that its results do not come from."""
        unseen = [node for node in nodes if node.name not in seen]
        types = {node.op for node in unseen if dataset_kind(node.op)}
        for function in [self.function(name) for node in unseen for name in _function_names(node)]:
            types |= function.unseen_types
            types |= {operation.kind for operation in function.operations}
        return frozenset(types)


class _Scope:
    """The nodes of a graph, or of one function.

    A reference names a node's output, as in ``NodeDef.input``.
    """

    def __init__(
        self, reader: _GraphReader, nodes: Mapping[str, Any], arguments: Optional[Sequence[str]] = None
    ) -> None:
        self._reader = reader
        self._is_graph = arguments is None
        self._nodes = dict(nodes)
        self._arguments = {name: index for index, name in enumerate(arguments or ())}
        self._digests: dict[str, bytes] = {}
        self._constants: dict[str, Argument] = {}
        self._on_path: set[str] = set()

    def datasets(self, references: Sequence[str]) -> dict[str, DatasetOperation]:
        """Return the dataset operations behind some references by their names, sources first, each once."""
        positions: dict[str, int] = {}
        operations: list[DatasetOperation] = []
        pending = [(reference, False) for reference in reversed(references)]
        while pending:
            reference, inputs_are_read = pending.pop()
            node, index = self.producer(reference)
            name = f"argument {index}" if node is None else node.name
            if name in positions:
                continue
            if node is None:
                operation = DatasetOperation("Argument", (), {}, {}, {}, "")
            elif inputs_are_read:
                operation = self._operation(node, positions)
            else:
                pending.append((reference, True))
                pending.extend((parent, False) for parent in reversed(self._dataset_inputs(node)))
                continue
            positions[name] = len(operations)
            operations.append(operation)
        return dict(zip(positions, operations))

    def producer(self, reference: str) -> tuple[Optional[Any], int]:
        """Return the node and output behind a reference, or None and the position of an argument."""
        while True:
            name, *rest = reference.split(":")
            if name in self._arguments:
                return None, self._arguments[name]
            node = self._node(name)
            if node.op not in _TRANSPARENT:
                return node, self._output_index(node, rest)
            reference = node.input[0]

    def sources(self, references: Sequence[str]) -> frozenset[str]:
        """Return the types of the stateful operations, placeholders and datasets behind some values."""
        types: set[str] = set()
        seen: set[str] = set()
        pending = list(references)
        while pending:
            node, _ = self.producer(pending.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            pending.extend(reference for reference in node.input if not reference.startswith("^"))
            if node.op in _FED or dataset_kind(node.op) or self._reader.definition(node.op).is_stateful:
                types.add(node.op)
            for function in map(self._reader.function, _function_names(node)):
                types |= function.stateful_types | function.unseen_types
        return frozenset(types)

    def digest(self, reference: str) -> bytes:
        """Return a digest of everything that a value is computed from."""
        pending = [reference]
        while pending:
            node, _ = self.producer(pending[-1])
            if node is None or node.name in self._digests:
                pending.pop()
                continue
            self._on_path.add(node.name)
            missing = [parent for parent in self._compared_inputs(node) if self._lacks_digest(parent)]
            if missing:
                pending.extend(missing)
            else:
                self._digests[node.name] = self._node_digest(node)
                pending.pop()
        return self._value_digest(reference)

    def _lacks_digest(self, reference: str) -> bool:
        node, _ = self.producer(reference)
        # A loop of a graph is cut where it comes back to a node whose digest is being computed.
        return node is not None and node.name not in self._digests and node.name not in self._on_path

    def _value_digest(self, reference: str) -> bytes:
        node, index = self.producer(reference)
        if node is None:
            return b"argument %d" % index
        return self._digests.get(node.name, b"loop") + b"%d" % index

    def _node_digest(self, node: Any) -> bytes:
        digest = blake3(node.op.encode())
        hidden = HARMLESS_ATTRIBUTES if dataset_kind(node.op) else frozenset()
        for name in sorted(node.attr):
            if _is_stable(name) and name not in hidden:
                digest.update(name.encode() + b"=" + self._attribute_digest(node, name))
        for reference in self._compared_inputs(node):
            digest.update(self._value_digest(reference))
        return digest.digest(DIGEST_BYTES)

    def _attribute_digest(self, node: Any, name: str) -> bytes:
        attribute = node.attr[name]
        if node.op == "Const" and name == "value":
            return self._constant(node).digest.encode()
        if attribute.WhichOneof("value") == "tensor":
            return read_constant(attribute.tensor).digest.encode()
        names = _names_in(attribute)
        if names:
            return "".join(self._reader.function(name).digest for name in names).encode()
        return bytes(attribute.SerializeToString(deterministic=True))

    def _compared_inputs(self, node: Any) -> list[str]:
        """Return the references that a node's value depends on, except what is harmless to change."""
        if not dataset_kind(node.op):
            return [reference for reference in node.input if not reference.startswith("^")]
        return [
            reference
            for name, _, references in self._inputs_by_name(node)
            if not is_harmless(dataset_kind(node.op), name)
            for reference in references
        ]

    def _dataset_inputs(self, node: Any) -> list[str]:
        return [
            reference
            for _, types, references in self._inputs_by_name(node)
            for reference, of_type in zip(references, types)
            if of_type == tf.variant.as_datatype_enum
        ]

    def _inputs_by_name(self, node: Any) -> Iterator[tuple[str, list[int], list[str]]]:
        """Yield the name, the types and the references of each declared input of a node."""
        references = [reference for reference in node.input if not reference.startswith("^")]
        for argument in self._reader.definition(node.op).input_arg:
            types = _types_of(argument, node)
            yield argument.name, types, references[: len(types)]
            references = references[len(types) :]

    def _operation(self, node: Any, positions: Mapping[str, int]) -> DatasetOperation:
        inputs: list[int] = []
        arguments: dict[str, tuple[Argument, ...]] = {}
        computed: list[str] = []
        for name, types, references in self._inputs_by_name(node):
            values = []
            for reference, of_type in zip(references, types):
                if of_type == tf.variant.as_datatype_enum:
                    source, index = self.producer(reference)
                    inputs.append(positions[f"argument {index}" if source is None else source.name])
                else:
                    values.append(self._argument(reference))
                    computed.append(reference)
            if values:
                arguments[name] = tuple(values)
        return DatasetOperation(
            dataset_kind(node.op) or node.op,
            tuple(inputs),
            arguments,
            {name: value for name, value in node.attr.items() if _is_plain(name, value)},
            {
                _numbered(name, index): self._reader.function(function)
                for name in sorted(node.attr)
                for index, function in enumerate(_names_in(node.attr[name]))
            },
            _elements(node),
            self.sources(computed),
        )

    def _argument(self, reference: str) -> Argument:
        node, _ = self.producer(reference)
        while node is not None and node.op in _SHAPING:
            node, _ = self.producer(node.input[0])
        if node is not None and node.op == "Const":
            return self._constant(node)
        return Argument(blake3(self.digest(reference)).hexdigest(DIGEST_BYTES))

    def _node(self, name: str) -> Any:
        if name not in self._nodes and self._is_graph:
            node = self._reader.node(name)
            if node.op == "Const":
                # The node is a copy, and its value may be large.
                self._constant(node)
                node.attr["value"].tensor.Clear()
            self._nodes[name] = node
        return self._nodes[name]

    def _constant(self, node: Any) -> Argument:
        if node.name not in self._constants:
            self._constants[node.name] = read_constant(node.attr["value"].tensor)
        return self._constants[node.name]

    def _output_index(self, node: Any, rest: Sequence[str]) -> int:
        """Return which output of a node is meant: ``name:1`` in a graph, ``name:output:0`` in a function."""
        if self._is_graph or len(rest) < 2:
            return int(rest[0]) if rest else 0
        position = int(rest[1])
        for output in self._reader.definition(node.op).output_arg:
            if output.name == rest[0]:
                break
            position += len(_types_of(output, node))
        return position


def _types_of(argument: Any, node: Any) -> list[int]:
    """Return the types of the tensors that one declared input or output of a node consists of."""
    if argument.type_list_attr:
        return list(node.attr[argument.type_list_attr].list.type)
    of_type = argument.type or node.attr[argument.type_attr].type
    return [of_type] * (node.attr[argument.number_attr].i if argument.number_attr else 1)


def _names_in(attribute: Any) -> list[str]:
    """Return the names of the functions that an attribute holds."""
    if attribute.WhichOneof("value") == "func":
        return [attribute.func.name]
    return [function.name for function in attribute.list.func]


def _function_names(node: Any) -> list[str]:
    return [name for attribute in node.attr.values() for name in _names_in(attribute)]


def _numbered(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index}"


def _is_stable(name: str) -> bool:
    return not name.startswith("_") and name not in _UNSTABLE_ATTRIBUTES


def _is_plain(name: str, attribute: Any) -> bool:
    """Whether an attribute is neither a function nor a type or shape."""
    if not _is_stable(name):
        return False
    if attribute.WhichOneof("value") == "list":
        return bool(attribute.list.s or attribute.list.i or attribute.list.f or attribute.list.b)
    return attribute.WhichOneof("value") in ("s", "i", "f", "b")


def _elements(node: Any) -> str:
    types = node.attr["output_types" if "output_types" in node.attr else "Toutput_types"].list.type
    shapes = node.attr["output_shapes"].list.shape
    if len(types) != len(shapes):
        return ""
    return " ".join(
        f"{tf.dtypes.as_dtype(of_type).name}{_shape(shape)}" for of_type, shape in zip(types, shapes)
    )


def _shape(shape: Any) -> str:
    if shape.unknown_rank:
        return "[...]"
    return f"[{','.join('?' if dim.size < 0 else str(dim.size) for dim in shape.dim)}]"
