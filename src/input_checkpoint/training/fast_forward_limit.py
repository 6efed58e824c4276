"""How far the input may be fast-forwarded when training resumes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from numbers import Integral
from typing import Any, Optional

from input_checkpoint.checkpoint import MarkRef


@dataclass(frozen=True)
class FastForwardLimit:
    """A number of global steps, or a time."""

    steps: Optional[int] = None
    seconds: Optional[float] = None

    @classmethod
    def of(cls, limit: Any) -> FastForwardLimit:
        """Return the limit that a user gave: steps, a ``timedelta``, or None for no limit.

        Raises:
            TypeError, ValueError: it is something else, or negative.

        >>> FastForwardLimit.of(500).allows(seconds=3600.0)
        True
        """
        if limit is None:
            return cls()
        if isinstance(limit, timedelta):
            _check_not_negative(limit.total_seconds())
            return cls(seconds=limit.total_seconds())
        if isinstance(limit, Integral) and not isinstance(limit, bool):
            _check_not_negative(int(limit))
            return cls(steps=int(limit))
        raise TypeError(f"max_fast_forward must be a number of steps, a timedelta or None, got {limit!r}")

    @property
    def forbids_all(self) -> bool:
        """Whether nothing may be fast-forwarded, so that marks are of no use."""
        return self.steps == 0 or self.seconds == 0

    def reaches(self, mark: MarkRef) -> bool:
        """Whether the limit allows the steps from the base of a mark to the mark."""
        return not self.forbids_all and self.allows_steps(mark.ref.step - mark.base.step)

    def allows_steps(self, steps: int) -> bool:
        """Whether a fast-forward may cover this many global steps."""
        return self.steps is None or steps <= self.steps

    def allows(self, seconds: float) -> bool:
        """Whether a fast-forward may take this long."""
        return self.seconds is None or seconds <= self.seconds


def _check_not_negative(value: float) -> None:
    if value < 0:
        raise ValueError(f"max_fast_forward must not be negative, got {value}")
