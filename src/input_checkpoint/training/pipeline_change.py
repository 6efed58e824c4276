"""What has changed between the pipeline of a checkpoint and the present one: pure decisions."""

from __future__ import annotations

import difflib
import enum
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from input_checkpoint.errors import UNREADABLE_JSON, CorruptCheckpointError
from input_checkpoint.format.strict_json import read_number, read_object, read_text

FINGERPRINT_VERSION = 1
"""Version of what a fingerprint records. Fingerprints of different versions are not compared."""
MAX_FINGERPRINT_BYTES = 4096
"""Size of a fingerprint in JSON. The transformations that do not fit are compared as a whole."""
ON_PIPELINE_CHANGE = ("refuse", "warn", "ignore")
_DIGEST_CHARACTERS = 16


class Effect(enum.Enum):
    """What a change means for the state that was saved before it."""

    UNRESTORABLE = "unrestorable"
    """TensorFlow fails to restore the state, crashes, hangs, or returns damaged elements."""
    DIFFERENT_DATA = "different data"
    """TensorFlow restores the state, but it continues in other data than before."""


@dataclass(frozen=True)
class PipelineChange:
    """One difference between two pipelines."""

    effect: Effect
    description: str
    """What changed, as part of a sentence: ``buffer_size of Shuffle was 1000 and is 500``."""


@dataclass(frozen=True)
class Transformation:
    """One dataset operation, as far as it is compared."""

    name: str
    """Such as ``Shuffle``."""
    inputs: tuple[int, ...] = ()
    """The transformations that it reads: positions among those of the same function."""
    depth: int = 0
    """How many functions of other transformations it is in.

    Those inside a function follow the one that calls it.
    """
    layout: Mapping[str, str] = field(default_factory=dict)
    """The values on which the layout of the saved state depends."""
    content: Mapping[str, str] = field(default_factory=dict)
    """The values on which the elements depend."""
    elements: str = ""
    """Types and shapes of its elements."""


@dataclass(frozen=True)
class Fingerprint:
    """What is remembered of a pipeline. Does not depend on the process and on generated names."""

    transformations: tuple[Transformation, ...]
    """The first ones, as many as `MAX_FINGERPRINT_BYTES` allows."""
    digests: Mapping[str, str]
    """Digests of all transformations, by aspect: structure, layout, elements, content."""
    producer: str
    """Release of TensorFlow that built the pipeline, without its patch version."""
    omitted: int = 0
    """How many transformations are only in the digests."""

    @classmethod
    def of(cls, transformations: Sequence[Transformation], producer: str) -> Fingerprint:
        """Return the fingerprint of a pipeline, cut down to its maximum size.

        Example:
            >>> fingerprint = Fingerprint.of([Transformation("Range"), Transformation("Batch", (0,))], "2.15")
            >>> [transformation.name for transformation in fingerprint.transformations]
            ['Range', 'Batch']
        """
        digests = {aspect: _digest(transformations, aspect) for aspect in _ASPECTS}
        kept = 0
        size = 0
        for transformation in transformations:
            size += len(_compact(_transformation_to_json(transformation))) + 1
            if size > MAX_FINGERPRINT_BYTES - _FIXED_BYTES:
                break
            kept += 1
        return cls(tuple(transformations[:kept]), digests, producer, len(transformations) - kept)

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as an object for JSON."""
        return {
            "version": FINGERPRINT_VERSION,
            "tensorflow": self.producer,
            "digests": dict(self.digests),
            "omitted": self.omitted,
            "transformations": [_transformation_to_json(each) for each in self.transformations],
        }

    @classmethod
    def from_json(cls, value: Any) -> Optional[Fingerprint]:
        """Return the fingerprint that `to_json` returned as ``value``, or None if it has another version.

        Raises:
            CorruptCheckpointError: ``value`` is not a fingerprint.
        """
        try:
            if read_number(value, "version") != FINGERPRINT_VERSION:
                return None
            if len(_compact(value)) > MAX_FINGERPRINT_BYTES:
                raise ValueError(f"it has more than {MAX_FINGERPRINT_BYTES} bytes")
            return cls(
                tuple(_transformation_from_json(each) for each in value["transformations"]),
                {aspect: read_text(read_object(value, "digests"), aspect) for aspect in _ASPECTS},
                read_text(value, "tensorflow"),
                read_number(value, "omitted"),
            )
        except UNREADABLE_JSON as error:
            raise CorruptCheckpointError(
                f"the fingerprint of a pipeline cannot be read: {error!r}"
            ) from error


@dataclass(frozen=True)
class Verdict:
    """What to do about the changes of a pipeline. Both are None if there is nothing to do."""

    refusal: Optional[str] = None
    """Why the state must not be restored."""
    warning: Optional[str] = None
    """What to tell the user before the state is restored."""


def check_on_pipeline_change(mode: str) -> str:
    """Return ``mode`` if it is one of `ON_PIPELINE_CHANGE`, else raise ValueError."""
    if mode not in ON_PIPELINE_CHANGE:
        raise ValueError(
            f"on_pipeline_change must be one of {', '.join(map(repr, ON_PIPELINE_CHANGE))}; got {mode!r}"
        )
    return mode


def compare(stored: Fingerprint, current: Fingerprint) -> list[PipelineChange]:
    """Return what has changed between two pipelines, as far as it matters to the state of the first one.

    Changes that do no harm are not in the fingerprints: batch sizes (unless the state depends on them),
    prefetching, parallelism and seeds.

    Args:
        stored: the pipeline that the state was saved from.
        current: the pipeline that it is to be restored into.

    Example:
        >>> def shuffled(size):
        ...     shuffle = Transformation("Shuffle", (0,), layout={"buffer_size": size})
        ...     return Fingerprint.of([Transformation("Range"), shuffle], "2.15")
        >>> [change.description for change in compare(shuffled("1000"), shuffled("500"))]
        ['buffer_size of Shuffle was 1000 and is 500']
    """
    if stored.producer != current.producer:
        return [
            PipelineChange(
                Effect.DIFFERENT_DATA,
                f"it was built by TensorFlow {stored.producer}, so it cannot be compared with one that "
                f"TensorFlow {current.producer} builds",
            )
        ]
    if stored.digests == current.digests:
        return []
    if stored.digests["structure"] != current.digests["structure"]:
        return [PipelineChange(Effect.UNRESTORABLE, _describe_structure(stored, current))]
    return [*_changes_of_listed(stored, current), *_changes_of_omitted(stored, current)]


def compare_all(
    stored: Mapping[str, Fingerprint], current: Mapping[str, Fingerprint]
) -> list[PipelineChange]:
    """Return what has changed between the pipelines of two graphs, iterator by iterator.

    A single iterator needs no name to be identified. An iterator that only one of the graphs has is left out:
    the restore itself reports it.

    Args:
        stored: the pipelines that the state was saved from, by the names of their iterators.
        current: the pipelines that it is to be restored into.
    """
    if len(stored) == len(current) == 1:
        return compare(*stored.values(), *current.values())
    return [
        PipelineChange(change.effect, f"iterator {name}: {change.description}")
        for name in stored
        if name in current
        for change in compare(stored[name], current[name])
    ]


def judge(changes: Sequence[PipelineChange], on_pipeline_change: str) -> Verdict:
    """Decide what to do about the changes of a pipeline.

    Args:
        changes: as `compare_all` returns them.
        on_pipeline_change: ``refuse``: refuse what cannot be restored, warn of other data. ``warn``: warn of
            both. ``ignore``: do nothing; the caller need not compare at all.

    Example:
        >>> change = PipelineChange(Effect.DIFFERENT_DATA, "the function of Map has changed")
        >>> judge([change], "refuse").refusal is None
        True
    """
    if on_pipeline_change == "ignore":
        return Verdict()
    unrestorable = [change.description for change in changes if change.effect is Effect.UNRESTORABLE]
    different = [change.description for change in changes if change.effect is Effect.DIFFERENT_DATA]
    if unrestorable and on_pipeline_change == "refuse":
        return Verdict(
            refusal=f"The input pipeline has changed so that TensorFlow cannot restore its saved state: "
            f"{'; '.join(unrestorable)}. Use the pipeline that the checkpoint was saved from."
        )
    warnings = []
    if unrestorable:
        warnings.append(
            f"The input pipeline has changed so that TensorFlow cannot restore its saved state: "
            f"{'; '.join(unrestorable)}. Restoring it anyway, because on_pipeline_change='warn'. TensorFlow "
            "may end this process with a segmentation fault, hang, or return damaged elements."
        )
    if different:
        warnings.append(
            f"The input pipeline has changed since its state was saved: {'; '.join(different)}. The state is "
            "a position, and it now points into other data: elements may be skipped or seen again."
        )
    return Verdict(warning=" ".join(warnings) or None)


_ASPECTS = ("structure", "layout", "elements", "content")
_FIXED_BYTES = 300
"""What a fingerprint takes in JSON without its transformations."""


def _digest(transformations: Sequence[Transformation], aspect: str) -> str:
    digest = hashlib.sha256()
    for each in transformations:
        digest.update(_compact(_part(each, aspect)).encode() + b"\n")
    return digest.hexdigest()[:_DIGEST_CHARACTERS]


def _part(transformation: Transformation, aspect: str) -> Any:
    if aspect == "structure":
        return [transformation.name, transformation.inputs, transformation.depth]
    return getattr(transformation, aspect)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _transformation_to_json(transformation: Transformation) -> dict[str, Any]:
    whole = {
        "name": transformation.name,
        "inputs": list(transformation.inputs),
        "depth": transformation.depth,
        "layout": dict(transformation.layout),
        "content": dict(transformation.content),
        "elements": transformation.elements,
    }
    return {key: value for key, value in whole.items() if value}


def _transformation_from_json(value: Any) -> Transformation:
    whole = {"inputs": [], "depth": 0, "layout": {}, "content": {}, "elements": "", **value}
    if not all(type(position) is int for position in whole["inputs"]):
        raise TypeError("a position is not an integer")
    return Transformation(
        read_text(whole, "name"),
        tuple(whole["inputs"]),
        read_number(whole, "depth"),
        _read_texts(whole, "layout"),
        _read_texts(whole, "content"),
        read_text(whole, "elements"),
    )


def _read_texts(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    found = read_object(fields, name)
    return {key: read_text(found, key) for key in found}


def _changes_of_listed(stored: Fingerprint, current: Fingerprint) -> Iterator[PipelineChange]:
    labels = _labels(current.transformations)
    changed_inside: set[int] = set()
    owners = _owners(current.transformations)
    pairs = list(zip(stored.transformations, current.transformations))
    for index, (before, after) in reversed(list(enumerate(pairs))):
        changes = list(_changes_of_one(before, after, labels[index], index in changed_inside))
        owner = owners[index]
        if owner is not None and (changes or index in changed_inside):
            changed_inside.add(owner)
        yield from changes


def _changes_of_one(
    before: Transformation, after: Transformation, label: str, changed_inside: bool
) -> Iterator[PipelineChange]:
    for name in sorted({*before.layout, *after.layout}):
        if before.layout.get(name) != after.layout.get(name):
            yield PipelineChange(Effect.UNRESTORABLE, _describe(name, label, before.layout, after.layout))
    if not _compatible(before.elements, after.elements):
        yield PipelineChange(
            Effect.UNRESTORABLE, f"the elements of {label} were {before.elements} and are {after.elements}"
        )
    for name in sorted({*before.content, *after.content}):
        # The function of a transformation has changed as well if a transformation inside it has.
        if before.content.get(name) != after.content.get(name) and not (
            changed_inside and name.startswith(FUNCTION_PREFIX)
        ):
            yield PipelineChange(Effect.DIFFERENT_DATA, _describe(name, label, before.content, after.content))


FUNCTION_PREFIX = "function "
"""How the names of the values begin that are digests of functions."""


def _describe(name: str, label: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    if name.startswith(FUNCTION_PREFIX):
        return f"the function of {label} has changed"
    return f"{name} of {label} was {before.get(name, 'not set')} and is {after.get(name, 'not set')}"


def _changes_of_omitted(stored: Fingerprint, current: Fingerprint) -> Iterator[PipelineChange]:
    if not (stored.omitted or current.omitted):
        return
    pairs = list(zip(stored.transformations, current.transformations))
    where = f"one of the transformations after the first {len(pairs)}"
    changed = {
        aspect
        for aspect in _ASPECTS
        if stored.digests[aspect] != current.digests[aspect]
        and all(_part(before, aspect) == _part(after, aspect) for before, after in pairs)
    }
    if changed & {"layout", "elements"}:
        yield PipelineChange(Effect.UNRESTORABLE, f"a buffer size or the elements of {where} have changed")
    elif changed:
        yield PipelineChange(Effect.DIFFERENT_DATA, f"a value or function of {where} has changed")


def _describe_structure(stored: Fingerprint, current: Fingerprint) -> str:
    before, after = _labels(stored.transformations), _labels(current.transformations)
    steps = []
    for kind, start, end, new_start, new_end in difflib.SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        old, new = ", ".join(before[start:end]), ", ".join(after[new_start:new_end])
        place = f" after {after[new_start - 1]}" if new_start else " at the beginning"
        if kind == "delete":
            steps.append(f"{old} was removed{place}")
        elif kind == "insert":
            steps.append(f"{new} was added{place}")
        elif kind == "replace":
            steps.append(f"{old} became {new}")
    return "; ".join(steps) or "its transformations are connected in another way, or their number has changed"


def _labels(transformations: Sequence[Transformation]) -> list[str]:
    """Return a name for each transformation by which a user recognizes it.

    >>> _labels([Transformation("Shuffle"), Transformation("Map"), Transformation("Shuffle")])
    ['Shuffle', 'Map', 'Shuffle (2)']
    """
    labels: list[str] = []
    seen: dict[str, int] = {}
    for transformation, owner in zip(transformations, _owners(transformations)):
        name = transformation.name if owner is None else f"{transformation.name} inside {labels[owner]}"
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return labels


def _owners(transformations: Sequence[Transformation]) -> list[Optional[int]]:
    """Return, for each transformation, the one in whose function it is."""
    newest: dict[int, int] = {}
    owners = []
    for index, transformation in enumerate(transformations):
        owners.append(newest.get(transformation.depth - 1))
        newest[transformation.depth] = index
    return owners


def _compatible(before: str, after: str) -> bool:
    """Whether elements of one kind can take the place of those of another.

    >>> _compatible("int64[?,3]", "int64[8,3]"), _compatible("int64[4]", "int64[8]")
    (True, False)
    """
    old, new = before.split(), after.split()
    return len(old) == len(new) and all(map(_compatible_component, old, new))


def _compatible_component(before: str, after: str) -> bool:
    (old_type, _, old_shape), (new_type, _, new_shape) = before.partition("["), after.partition("[")
    if old_type != new_type:
        return False
    if "...]" in (old_shape, new_shape):
        return True
    old, new = _sizes(old_shape), _sizes(new_shape)
    return len(old) == len(new) and all(a == b or "?" in (a, b) for a, b in zip(old, new))


def _sizes(shape: str) -> list[str]:
    return shape[:-1].split(",") if shape != "]" else []
