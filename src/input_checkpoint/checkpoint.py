"""A checkpoint: its identity, and what is known about it without reading its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Optional

from input_checkpoint.whole_numbers import normalize, optional_whole_number, whole_number


@dataclass(frozen=True, order=True)
class CheckpointRef:
    """The identity of a checkpoint. Sorts by worker, then from oldest to newest.

    Raises:
        TypeError: ``lineage`` or ``step`` is no whole number.

    Example:
        >>> print(CheckpointRef("main", lineage=1, step=500))
        step 500 (worker main, lineage 1)
    """

    worker: str
    lineage: int
    step: int
    """Global step of the model that the input state belongs to."""

    def __post_init__(self) -> None:
        # A listing creates thousands of these, from plain integers.
        if type(self.step) is not int or type(self.lineage) is not int:
            normalize(
                self, lineage=whole_number("lineage", self.lineage), step=whole_number("step", self.step)
            )

    def __str__(self) -> str:
        return f"step {self.step} (worker {self.worker}, lineage {self.lineage})"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in a form that `json.dumps` accepts.

        Example:
            >>> CheckpointRef("main", lineage=1, step=500).to_dict()
            {'worker': 'main', 'lineage': 1, 'step': 500}
        """
        return asdict(self)


@dataclass(frozen=True, order=True)
class MarkRef:
    """The identity of a mark, which says how far the input had been drawn since a full checkpoint.

    Example:
        >>> print(MarkRef(CheckpointRef("main", 1, step=530), base=CheckpointRef("main", 1, step=500)))
        mark at step 530 (worker main, lineage 1, from step 500)
    """

    ref: CheckpointRef
    """The run that wrote the mark, and the global step of the model that it belongs to."""
    base: CheckpointRef
    """The full checkpoint from which the input is drawn up to that step."""

    def __str__(self) -> str:
        return (
            f"mark at step {self.ref.step} (worker {self.ref.worker}, lineage {self.ref.lineage}, "
            f"from step {self.base.step})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in a form that `json.dumps` accepts.

        Example:
            >>> ref, base = CheckpointRef("main", 1, step=530), CheckpointRef("main", 1, step=500)
            >>> MarkRef(ref, base).to_dict()["base"]
            {'worker': 'main', 'lineage': 1, 'step': 500}
        """
        return asdict(self)


def problems_to_list(problems: Mapping[CheckpointRef, str]) -> list[dict[str, Any]]:
    """Return what is wrong with each checkpoint, in a form that `json.dumps` accepts.

    Example:
        >>> problems_to_list({CheckpointRef("main", lineage=1, step=500): "its pack is missing"})
        [{'checkpoint': {'worker': 'main', 'lineage': 1, 'step': 500}, 'problem': 'its pack is missing'}]
    """
    return [{"checkpoint": ref.to_dict(), "problem": problem} for ref, problem in problems.items()]


def mark_problems_to_list(problems: Mapping[MarkRef, str]) -> list[dict[str, Any]]:
    """Return what is wrong with each mark, in a form that `json.dumps` accepts."""
    return [{"mark": mark.to_dict(), "problem": problem} for mark, problem in problems.items()]


@dataclass(frozen=True)
class PackEntry:
    """One pack of a checkpoint. The chunk table refers to packs by their position in the list of packs."""

    key: str
    size: int
    """Bytes of the whole pack, including chunks that this checkpoint does not need."""
    new: bool
    """Whether this save uploaded it."""


@dataclass(frozen=True)
class SaveContext:
    """What the training knew when it saved: the evidence by which a resume tells whether it fits."""

    model_digest: Optional[str] = None
    """Digest of the model checkpoint of the same step, in hexadecimal; None if there was none."""
    pipeline: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fingerprint of the pipeline behind each iterator, by the iterator's name; empty if it is unknown."""
    save_steps: Optional[int] = None
    """Steps between two saves of the model; None if they are not counted in steps."""
    draws: Optional[int] = None
    """How many runs of the session had drawn from the input since it was restored; None if it is unknown."""

    def __post_init__(self) -> None:
        normalize(
            self,
            save_steps=optional_whole_number("save_steps", self.save_steps),
            draws=optional_whole_number("draws", self.draws),
        )


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known about one committed checkpoint without reading its data."""

    step: int
    """Global step of the model that the input state belongs to."""
    worker: str
    lineage: int
    created: datetime
    """When it was committed, by the writer's clock, in UTC."""
    logical_bytes: int
    """Size of the encoded state."""
    stored_bytes: int
    """Size of the packs that this save uploaded."""
    elements: int
    """Number of buffered elements and counters in the state, over all iterators."""
    iterators: tuple[str, ...]
    """Names of the iterators, as in the TensorFlow graph."""
    host: str
    """Host name of the writer."""
    pid: int
    """Process id of the writer."""
    packs: tuple[PackEntry, ...] = field(default=(), repr=False)
    """Every pack that holds data of this checkpoint, including packs shared with other checkpoints."""
    table_bytes: int = 0
    """Size of its chunk table, which makes up most of its manifest."""
    context: SaveContext = field(default_factory=SaveContext, repr=False)
    """What the training knew when it saved."""
    marks: tuple[int, ...] = ()
    """Steps of the marks that lean on this checkpoint, in ascending order. Known only from a listing:
    `CheckpointStore.checkpoints` and a prune fill them in."""

    def __post_init__(self) -> None:
        normalize(self, lineage=whole_number("lineage", self.lineage), step=whole_number("step", self.step))

    @property
    def ref(self) -> CheckpointRef:
        """Worker, lineage and step as one value."""
        return CheckpointRef(self.worker, self.lineage, self.step)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields in a form that `json.dumps` accepts. ``created`` is an ISO 8601 string."""
        return {
            **asdict(self),
            "created": self.created.isoformat(),
            "iterators": list(self.iterators),
            "packs": [asdict(pack) for pack in self.packs],
            "marks": list(self.marks),
        }


def with_marks(infos: Iterable[CheckpointInfo], marks: Iterable[MarkRef]) -> list[CheckpointInfo]:
    """Return the same descriptions, each with the steps of those marks that lean on the checkpoint."""
    steps: dict[CheckpointRef, set[int]] = {}
    for mark in marks:
        steps.setdefault(mark.base, set()).add(mark.ref.step)
    return [replace(info, marks=tuple(sorted(steps.get(info.ref, ())))) for info in infos]
