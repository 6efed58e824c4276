"""When the input is saved, as the user has asked, and when it is marked: whenever the model is saved."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from input_checkpoint.training.schedule import SaveSchedule
from input_checkpoint.training.settings import TrainingSettings

_TIMER_MARGIN = 1.0
"""Seconds by which the model's timer may fire later than expected."""


@dataclass(frozen=True)
class Due:
    """What is due at a step."""

    full: bool
    """A checkpoint."""
    mark: bool
    """A mark, because the model is saved."""


class DueSaves:
    """Tells at which steps of one session a checkpoint or a mark is due.

    Args:
        settings: of the hook.
        with_marks: whether marks can be written.
        marks_are_enough: whether a mark is enough at a model checkpoint. If not, a checkpoint is due as well.
    """

    def __init__(self, settings: TrainingSettings, with_marks: bool, marks_are_enough: bool) -> None:
        self._model_dir = settings.model_dir
        at_model = settings.mark_schedule
        full = [settings.schedule] if marks_are_enough else [settings.schedule, at_model]
        self._full: tuple[SaveSchedule, ...] = tuple(dict.fromkeys(full))
        self._marks: tuple[SaveSchedule, ...] = (at_model,) if with_marks else ()
        self._stride = 1
        self._last_step = 0
        self._run_seconds = 0.0
        self._resumed_at = 0.0

    def restart(self, step: int, now: float) -> None:
        """Count from a step and a time, at which the model was restored, before training resumes.

        Args:
            step: the global step.
            now: no later than the model's timer begins.
        """
        self._resumed_at = time.time()
        self._full = tuple(schedule.after(step, now) for schedule in self._full)
        self._marks = tuple(schedule.after(step, now) for schedule in self._marks)
        self._last_step = step

    def ran(self, step: int, seconds: float) -> None:
        """Take note of a run.

        Args:
            step: the global step after it.
            seconds: how long it took.
        """
        self._stride = max(self._stride, step - self._last_step)
        self._last_step, self._run_seconds = step, seconds

    def due(self, step: int, started: float, *, with_model: bool) -> Due:
        """Return what is due by the schedules, which then begin to count anew.

        They do so even if a save is skipped, so that the next one is due when the model is saved next.

        Args:
            step: the global step.
            started: when the last run began.
            with_model: whether to ask the schedules that follow the model's timer, or the others.
        """
        asked = [each for each in (*self._full, *self._marks) if self._follows_model(each) == with_model]
        due = {each for each in dict.fromkeys(asked) if self._is_due_by(each, step)}
        found = Due(any(each in due for each in self._full), any(each in due for each in self._marks))
        self._full = tuple(each.after(step, started) if each in due else each for each in self._full)
        self._marks = tuple(each.after(step, started) if each in due else each for each in self._marks)
        return found

    def is_model_saved_at(self, step: int) -> bool:
        """Whether the model is certainly saved at a step. If it is saved by time, nobody knows."""
        return any(each.every_steps is not None and each.due(step, 0.0) for each in self._marks)

    def mark_may_follow(self, now: float) -> bool:
        """Whether a mark may be due after the next run, so that the digest of its batch is needed."""
        soon = now + 2 * self._run_seconds + _TIMER_MARGIN
        return any(each.due(self._last_step + self._stride, soon) for each in self._marks)

    def _follows_model(self, schedule: SaveSchedule) -> bool:
        """Whether saves follow the model's, whose timer fires at steps that cannot be predicted."""
        return schedule.every_secs is not None and self._model_dir is not None

    def _is_due_by(self, schedule: SaveSchedule, step: int) -> bool:
        now = time.time()
        if not schedule.due(step, now):
            return False
        if not self._follows_model(schedule):
            return True
        # Late by a whole interval: the model is not being saved, so there is nothing to match. The model's
        # timer may have begun when training resumed, long after the schedule.
        if replace(schedule, last_time=max(schedule.last_time, self._resumed_at)).overdue(step, now):
            return True
        return latest_model_step(str(self._model_dir)) == step
