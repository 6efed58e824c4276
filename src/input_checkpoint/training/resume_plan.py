"""Where to resume: pure decisions about steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Optional, Union

from input_checkpoint.checkpoint import CheckpointRef, MarkRef
from input_checkpoint.store.catalog import WorkerListing

_UNFINISHED_SAVES = 2
MODES = ("aligned", "exact", "latest", "fresh")


@dataclass(frozen=True)
class ResumePlan:
    """Which checkpoints and marks to try, best first. None: the input starts from its beginning."""

    candidates: tuple[Union[CheckpointRef, MarkRef], ...]
    required: bool = False
    """Whether it is an error if none of the candidates is usable."""


@dataclass(frozen=True)
class RollbackCandidate:
    """A step that has a model checkpoint and the input state that belongs to it."""

    step: int
    ref: Optional[CheckpointRef]
    """The input checkpoint; None for the beginning of the input."""
    mark: Optional[MarkRef] = None
    """The mark of this step, if it has no input checkpoint. ``ref`` is then the base of the mark."""


def check_mode(mode: str) -> str:
    """Return ``mode`` if it is one of `MODES`, else raise ValueError."""
    if mode not in MODES:
        raise ValueError(f"resume must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    return mode


def plan_resume(
    mode: str, step: int, history: Sequence[CheckpointRef], marks: Sequence[MarkRef] = ()
) -> ResumePlan:
    """Decide where the input resumes when the model has been restored at ``step``.

    Args:
        mode: ``aligned``: the newest checkpoint at or before ``step``, never a later one, since that would
            skip examples; a mark of ``step`` comes before an older checkpoint. ``exact``: the checkpoint or
            mark of ``step``, or an error, unless nothing was ever saved and the model is new. ``latest``: the
            newest checkpoint, wherever the model is. ``fresh``: none.
        step: global step of the restored model.
        history: this worker's checkpoints, from old to new.
        marks: the usable marks of ``step`` and before, best first.

    >>> history = [CheckpointRef("main", 1, step) for step in (10, 20, 30)]
    >>> [ref.step for ref in plan_resume("aligned", 25, history).candidates]
    [20, 10]
    """
    newest_first = tuple(reversed(history))
    if mode == "fresh":
        return ResumePlan(())
    if mode == "latest":
        return ResumePlan(newest_first)
    here = tuple(ref for ref in newest_first if ref.step == step)
    marks_here = tuple(mark for mark in marks if mark.ref.step == step)
    if mode == "exact":
        return ResumePlan((*here, *marks_here), required=bool(history) or step > 0)
    older: list[Union[CheckpointRef, MarkRef]] = [ref for ref in newest_first if ref.step < step]
    older.extend(mark for mark in marks if mark.ref.step < step)
    # The sort is stable: at the same step, a checkpoint comes before a mark.
    older.sort(key=_step_of, reverse=True)
    return ResumePlan((*here, *marks_here, *older))


def _step_of(candidate: Union[CheckpointRef, MarkRef]) -> int:
    return candidate.ref.step if isinstance(candidate, MarkRef) else candidate.step


def rollback_candidates(
    latest: int, model_steps: Collection[int], listing: WorkerListing, marks: Sequence[MarkRef] = ()
) -> list[RollbackCandidate]:
    """Return the older complete pairs that the model could go back to, newest first.

    There are none unless the latest model is newer than all input: a model that the user has moved back by
    hand stays where it is. A model and the mark of its step are a pair too, and so are the model at which the
    run began and the beginning of the input.

    Args:
        latest: step of the model checkpoint that would be restored.
        model_steps: steps of all model checkpoints that exist.
        listing: what the worker has stored.
        marks: the usable marks, from old to new.
    """
    if not is_behind(latest, listing):
        return []
    history = listing.history
    by_step = {mark.ref.step: RollbackCandidate(mark.ref.step, mark.base, mark) for mark in marks}
    by_step.update((ref.step, RollbackCandidate(ref.step, ref)) for ref in history)
    pairs = [by_step[step] for step in sorted(model_steps, reverse=True) if step in by_step and step < latest]
    start = _start_step(listing)
    if start is not None and start in model_steps and start not in by_step and start < latest:
        pairs.append(RollbackCandidate(start, None))
    return pairs


def is_behind(latest: int, listing: WorkerListing) -> bool:
    """Whether the newest input checkpoint is older than the newest model, if there is one."""
    history = listing.history
    return not history or history[-1].step < latest


def starts_here(listing: WorkerListing, step: int) -> bool:
    """Whether the newest run began its input at the beginning when the model was at ``step``."""
    return _start_step(listing) == step


def _start_step(listing: WorkerListing) -> Optional[int]:
    lineage = listing.lineage
    return lineage.start_step if lineage is not None and not lineage.ancestors else None


def crash_explains(
    paired: int,
    unpaired: Collection[int],
    interval: Optional[int],
    *,
    ended_at: Optional[int] = None,
    skips_saves: bool = False,
    marked: Collection[int] = (),
) -> bool:
    """Whether a crash can have left these model checkpoints without their input.

    At most two saves are unfinished at a time: one is being uploaded, and the next one waits for it. More
    model checkpoints than that come from training without this library, and so does any that is newer than
    the step at which the last training with it ended normally.

    Args:
        paired: the newest step that has both.
        unpaired: steps of the model checkpoints after it, including the one that would be restored.
        interval: steps between two models that can be resumed; None if they are not counted in steps.
        ended_at: step at which the last training with this library ended normally; None if it did not.
        skips_saves: whether saves are skipped while another one is running, so that any number of model
            checkpoints may be without input.
        marked: steps of those model checkpoints that have a mark, which proves that they were trained with
            this library.

    >>> crash_explains(20, [30, 40], interval=10)
    True
    >>> crash_explains(20, [30, 40, 50], interval=10)
    False
    >>> crash_explains(20, [30], interval=10, ended_at=20)
    False
    """
    if ended_at is not None and max(unpaired) > ended_at:
        return False
    unpaired = set(unpaired).difference(marked)
    if skips_saves or not unpaired:
        return True
    if interval is None:
        return len(unpaired) <= _UNFINISHED_SAVES
    newest_known = max([paired, *marked])
    return max(unpaired) <= newest_known + _UNFINISHED_SAVES * interval


def observed_interval(recorded: Optional[int], history: Sequence[CheckpointRef]) -> Optional[int]:
    """Return how many steps lie between two saves or marks: as recorded, or more if the history shows it.

    A session that advances by many steps at once saves less often than its schedule says.

    Args:
        recorded: steps between them, as the newest checkpoint says; None if not counted in steps.
        history: the worker's checkpoints and marks, from old to new.

    >>> history = [CheckpointRef("main", 1, step) for step in (0, 32, 64)]
    >>> observed_interval(10, history), observed_interval(None, history)
    (32, None)
    """
    if recorded is None:
        return None
    last = [ref for ref in history if ref.lineage == history[-1].lineage][-2:]
    return max(recorded, last[-1].step - last[0].step) if last else recorded
