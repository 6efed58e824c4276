"""When to save: every N steps, or every N seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Optional

from input_checkpoint.whole_numbers import normalize, optional_whole_number, plain_number


@dataclass(frozen=True)
class SaveSchedule:
    """When to save: every N steps, or every N seconds. Immutable.

    `SessionHook(model_schedule=...)` takes one, if the model is saved more often than the input.

    Counts from the step at which the model was restored, as TensorFlow's ``CheckpointSaverHook`` does
    (tensorflow/python/training/basic_session_run_hooks.py, ``SecondOrStepTimer``), so that both save at the
    same steps.

    Args:
        every_steps: save when this many global steps have passed.
        every_secs: save when this many seconds have passed. Give exactly one of the two.
        last_step: step of the last save. None (default): there was none. `after` sets it.
        last_time: when the last save was, in seconds. `after` sets it.

    Raises:
        TypeError: a value is not a number.
        ValueError: both or neither are given, or a value is not positive.

    Example:
        >>> schedule = SaveSchedule(every_steps=1000).after(step=0, now=0.0)
        >>> schedule.due(999, now=60.0), schedule.due(1000, now=60.0)
        (False, True)
    """

    every_steps: Optional[int] = None
    every_secs: Optional[float] = None
    last_step: Optional[int] = None
    last_time: float = 0.0

    def __post_init__(self) -> None:
        if self.every_steps is None and self.every_secs is None:
            raise ValueError("Either save_secs or save_steps should be provided.")
        if self.every_steps is not None and self.every_secs is not None:
            raise ValueError("Can not provide both save_secs and save_steps.")
        _check_positive("save_steps", self.every_steps, "a whole number", Integral)
        _check_positive("save_secs", self.every_secs, "a number of seconds", Real)
        normalize(
            self,
            every_steps=optional_whole_number("save_steps", self.every_steps),
            every_secs=plain_number(self.every_secs),
            last_step=optional_whole_number("last_step", self.last_step),
            last_time=plain_number(self.last_time),
        )

    def after(self, step: int, now: float) -> SaveSchedule:
        """Return the schedule after a save at ``step`` and time ``now`` (seconds)."""
        return replace(self, last_step=step, last_time=now)

    def due(self, step: int, now: float) -> bool:
        """Whether a save is due at ``step`` and time ``now`` (seconds).

        >>> SaveSchedule(every_steps=10).after(5, now=0.0).due(14, now=99.0)
        False
        """
        if self.last_step is None:
            return True
        if step == self.last_step:
            return False
        if self.every_steps is not None:
            return step >= self.last_step + self.every_steps
        return self.every_secs is not None and now >= self.last_time + self.every_secs

    def is_rarer_than(self, other: SaveSchedule) -> bool:
        """Whether it certainly means fewer saves than another schedule. Steps and seconds cannot be compared.

        >>> SaveSchedule(every_steps=100).is_rarer_than(SaveSchedule(every_steps=10))
        True
        """
        if self.every_steps is not None and other.every_steps is not None:
            return self.every_steps > other.every_steps
        if self.every_secs is not None and other.every_secs is not None:
            return self.every_secs > other.every_secs
        return False

    def overdue(self, step: int, now: float) -> bool:
        """Whether a timed save is late by a whole interval, so that there is no point in waiting longer."""
        return self.due(step, now) and (
            self.every_secs is None or now >= self.last_time + 2 * self.every_secs
        )


def _check_positive(name: str, value: Any, what: str, kind: type) -> None:
    if value is None:
        return
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number:
        raise TypeError(f"{name} must be {what}, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
