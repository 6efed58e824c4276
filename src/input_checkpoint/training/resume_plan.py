"""Where to resume: pure decisions about steps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.training.schedule import SaveSchedule

_UNFINISHED_SAVES = 2
MODES = ("aligned", "exact", "latest", "fresh")


@dataclass(frozen=True)
class ResumePlan:
    """Which checkpoints to try, best first. None: the input starts from its beginning."""

    candidates: tuple[CheckpointRef, ...]
    required: bool = False
    """Whether it is an error if none of the candidates is usable."""


def check_mode(mode: str) -> str:
    """Return ``mode`` if it is one of `MODES`, else raise ValueError."""
    if mode not in MODES:
        raise ValueError(f"resume must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    return mode


def plan_resume(mode: str, step: int, history: Sequence[CheckpointRef]) -> ResumePlan:
    """Decide where the input resumes when the model has been restored at ``step``.

    Args:
        mode: ``aligned``: the newest checkpoint at or before ``step``, never a later one, since that would
            skip examples. ``exact``: the one at ``step``, or an error, unless nothing was ever saved and the
            model is new. ``latest``: the newest, wherever the model is. ``fresh``: none.
        step: global step of the restored model.
        history: this worker's checkpoints, from old to new.

    >>> history = [CheckpointRef("main", 1, step) for step in (10, 20, 30)]
    >>> [ref.step for ref in plan_resume("aligned", 25, history).candidates]
    [20, 10]
    """
    newest_first = tuple(reversed(history))
    if mode == "fresh":
        return ResumePlan(())
    if mode == "latest":
        return ResumePlan(newest_first)
    if mode == "exact":
        here = tuple(ref for ref in newest_first if ref.step == step)
        return ResumePlan(here, required=bool(history) or step > 0)
    return ResumePlan(tuple(ref for ref in newest_first if ref.step <= step))


def rollback_step(
    latest: int,
    model_steps: Collection[int],
    history: Sequence[CheckpointRef],
    schedule: SaveSchedule,
    *,
    skips_saves: bool,
) -> Optional[int]:
    """Return the older step that the model should go back to, or None to leave it where it is.

    A crash can come after the model's checkpoint was written and before the input's was committed. The model
    then goes back to the newest step that has both. A model that has been trained without this library stays
    where it is.

    Args:
        latest: step of the model checkpoint that would be restored.
        model_steps: steps of all model checkpoints that exist.
        history: this worker's input checkpoints.
        schedule: when the input is saved.
        skips_saves: whether saves are skipped while another one is running, so that any number of model
            checkpoints may be without input.
    """
    paired = paired_model_step(latest, model_steps, history)
    if paired is None:
        return None
    unpaired = {latest, *(step for step in model_steps if step > paired)}
    if skips_saves or crash_explains(paired, unpaired, schedule):
        return paired
    return None


def paired_model_step(
    latest: int, model_steps: Collection[int], history: Sequence[CheckpointRef]
) -> Optional[int]:
    """Return the newest model step that has an input checkpoint, if the latest model is newer than all input.

    None if there is no such step, and for a model that the user has moved back by hand: that one is older
    than the newest input checkpoint.

    Args:
        latest: step of the model checkpoint that would be restored.
        model_steps: steps of all model checkpoints that exist.
        history: this worker's input checkpoints.
    """
    input_steps = {ref.step for ref in history}
    if not input_steps or latest <= max(input_steps):
        return None
    return max((step for step in model_steps if step in input_steps), default=None)


def crash_explains(paired: int, unpaired: Collection[int], schedule: SaveSchedule) -> bool:
    """Whether a crash can have left these model checkpoints without input checkpoints.

    At most two saves are unfinished at a time: one is being uploaded, and the next one waits for it. More
    model checkpoints than that come from training without this library.

    Args:
        paired: the newest step that has both.
        unpaired: steps of the model checkpoints after it, including the one that would be restored.
        schedule: when the input is saved.

    >>> crash_explains(20, [30, 40], SaveSchedule(every_steps=10))
    True
    >>> crash_explains(20, [30, 40, 50], SaveSchedule(every_steps=10))
    False
    """
    if schedule.every_steps is None:
        return len(unpaired) <= _UNFINISHED_SAVES
    return max(unpaired) <= paired + _UNFINISHED_SAVES * schedule.every_steps
