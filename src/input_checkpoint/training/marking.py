"""Marks: how far the input is from a full checkpoint when the model is saved.

As soon as a newer checkpoint is committed, a prune may remove the base of a mark. So if that happens while a
mark is written, another one is written, which leans on the newer checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Callable, Generic, Optional, Protocol, TypeVar, Union

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.store.run import Run

PositionT = TypeVar("PositionT")


class Distance(Protocol):
    """What was drawn between two positions of the input."""

    @property
    def draws(self) -> Mapping[str, int]:
        """How many batches were drawn from each iterator."""

    @property
    def digests(self) -> Mapping[str, str]:
        """The digest of the last batch of each iterator that was drawn from."""


@dataclass(frozen=True)
class Base(Generic[PositionT]):
    """A committed checkpoint, and the position of the input in it."""

    ref: CheckpointRef
    position: PositionT


class Bases(Generic[PositionT]):
    """The checkpoints that the marks of one run can lean on.

    Args:
        first: what the run was restored from, if anything.
    """

    def __init__(self, first: Optional[Base[PositionT]] = None) -> None:
        self._newest = first
        self._saving: dict[int, PositionT] = {}
        self._lock = threading.Lock()

    def saving(self, step: int, position: PositionT) -> None:
        """Note the position of the input in the checkpoint that is about to be saved at ``step``."""
        with self._lock:
            self._saving[step] = position

    @property
    def newest_step(self) -> Optional[int]:
        """The step of the newest checkpoint, committed or still being saved. None if there is none."""
        with self._lock:
            known = [] if self._newest is None else [self._newest.ref.step]
            return max([*known, *self._saving], default=None)

    def newest(self, committed: Optional[CheckpointRef]) -> Optional[Base[PositionT]]:
        """Return the newest base.

        Args:
            committed: the checkpoint that the run has committed last.
        """
        with self._lock:
            if committed is not None and committed.step in self._saving:
                self._newest = Base(committed, self._saving[committed.step])
                self._saving = {step: at for step, at in self._saving.items() if step > committed.step}
            return self._newest


@dataclass(frozen=True)
class PendingMark(Generic[PositionT]):
    """A mark that is to be written."""

    step: int
    position: PositionT
    distance: Callable[[PositionT, PositionT], Union[Distance, str]]
    """Returns what was drawn between two positions, or why that is not certain."""
    find_model: Callable[[], Optional[str]]
    """Returns the digest of the model checkpoint of ``step``, or None if there is none. May wait for it."""
    needs_model: bool = True
    """Whether a mark without a model checkpoint is of no use."""
    check_fence: bool = True
    """Whether to check first that no newer run has begun. Costs a listing."""


def write_mark(
    run: Run,
    pending: PendingMark[PositionT],
    bases: Bases[PositionT],
    committed: Callable[[], Optional[CheckpointRef]],
) -> None:
    """Write a mark that leans on the newest checkpoint of its run.

    Nothing is written if there is no such checkpoint, if its step is not before that of the mark, or if it is
    not certain what was drawn since.

    Args:
        run: writes it.
        pending: the mark.
        bases: the checkpoints that it can lean on.
        committed: returns the checkpoint that the run has committed last.

    Raises:
        WriterSupersededError: a newer run of the worker has begun.
        BackendError: the storage failed.
    """
    model = pending.find_model()
    if model is None and pending.needs_model:
        return
    base = bases.newest(committed())
    while base is not None and base.ref.step < pending.step:
        distance = pending.distance(base.position, pending.position)
        if isinstance(distance, str):
            return
        run.mark(
            pending.step,
            base.ref,
            distance.draws,
            distance.digests,
            model,
            check_fence=pending.check_fence,
        )
        newer = bases.newest(committed())
        if newer is base:
            return
        base = newer
