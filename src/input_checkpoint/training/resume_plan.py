"""Where to resume: pure decisions about steps, none of which touches storage or TensorFlow."""

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
    """Which checkpoints to try, best first. Empty means: start the input from its beginning."""

    candidates: tuple[CheckpointRef, ...]
    required: bool = False
    """Whether it is an error if none of the candidates can be had."""


def check_mode(mode: str) -> str:
    """Return ``mode`` if it is one of `MODES`, else raise ValueError."""
    if mode not in MODES:
        raise ValueError(f"resume must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    return mode


def plan_resume(mode: str, step: int, history: Sequence[CheckpointRef]) -> ResumePlan:
    """Decide where the input resumes when the model has been restored at ``step``.

    Args:
        mode: ``aligned``: the newest checkpoint at or before ``step``, never one after it, since that would
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


def paired_model_step(
    latest: int, model_steps: Collection[int], history: Sequence[CheckpointRef]
) -> Optional[int]:
    """Return the older model step to go back to so that model and input match, or None to leave the model.

    A crash can come after the model's checkpoint was written and before the input's was committed. The
    pair is then incomplete, and the newest complete one is the step to resume from. A model that the user has
    moved back by hand is older than the newest input checkpoint, and is left where it is.

    Args:
        latest: step of the model checkpoint that TensorFlow would restore.
        model_steps: steps of all model checkpoints at hand.
        history: this worker's input checkpoints.
    """
    input_steps = {ref.step for ref in history}
    if not input_steps or latest <= max(input_steps):
        return None
    return max((step for step in model_steps if step in input_steps), default=None)


def may_be_a_crash(pair: int, unpaired: Collection[int], schedule: SaveSchedule) -> bool:
    """Whether a crash can have left model checkpoints without input checkpoints.

    At most two saves are unfinished at a time: one is being uploaded, and the next one waits for it. More
    model checkpoints than that come from training without the hook.

    Args:
        pair: the newest step that has both.
        unpaired: steps of the model checkpoints after it, the one that TensorFlow would restore among them.
        schedule: when the input is saved.

    >>> may_be_a_crash(20, [30, 40], SaveSchedule(every_steps=10))
    True
    >>> may_be_a_crash(20, [30, 40, 50], SaveSchedule(every_steps=10))
    False
    """
    if schedule.every_steps is None:
        return len(unpaired) <= _UNFINISHED_SAVES
    return max(unpaired) <= pair + _UNFINISHED_SAVES * schedule.every_steps
