"""Retention by time: intervals, ages, and calendar periods.

Times are compared between checkpoints and never with the clock, so neither an outage nor a job that waits for
months empties a store.

The history (lineage and step) alone decides which checkpoint is older. Dates do not, because the clocks of
the machines that wrote the checkpoints may have been wrong. Where dates contradict the history, it is unknown
how much time has passed, and the checkpoint is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Optional

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.retention.policy import (
    Kept,
    RetentionPolicy,
    check_integer,
    check_positive,
    merge_reasons,
)
from input_checkpoint.whole_numbers import normalize, plain_number


@dataclass(frozen=True)
class KeepEvery(RetentionPolicy):
    """Keeps checkpoints that are at least ``hours`` apart.

    A checkpoint that is dated before the last one kept is kept as well, because a clock was wrong.

    Args:
        hours: may be a fraction.
    """

    hours: float

    def __post_init__(self) -> None:
        check_positive("KeepEvery(hours)", self.hours)
        normalize(self, hours=plain_number(self.hours))

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        kept: dict[CheckpointRef, str] = {}
        last, interval = None, _duration(self.hours)
        for info in checkpoints:
            if last is None or info.created - last >= interval or info.created < last:
                last = info.created
                kept[info.ref] = f"one every {self.hours:g} h"
        return kept


@dataclass(frozen=True, repr=False)
class KeepWithin(RetentionPolicy):
    """Keeps every checkpoint that is at most ``hours`` and ``days`` older than the newest one.

    Age is measured from the newest checkpoint, not from the clock, so a long pause removes nothing. The clock
    of the newest checkpoint may have been ahead: if its date would remove all others, it is trusted only once
    the next save confirms it. Checkpoints that follow a kept one in the history are kept as well, and so are
    those dated after the newest.

    Args:
        hours: may be a fraction. 0 by default.
        days: added to ``hours``. May be a fraction. 0 by default.

    Example:
        >>> KeepWithin(days=2) | KeepEvery(24)
        KeepWithin(days=2) | KeepEvery(hours=24)
    """

    hours: float = 0
    days: float = 0

    def __post_init__(self) -> None:
        _check_fields(self)
        normalize(self, hours=plain_number(self.hours), days=plain_number(self.days))

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        if not checkpoints:
            return {}
        duration = _duration(self.hours, self.days)
        newest = _trusted_newest_time(checkpoints, duration)
        kept = []
        within = False
        for info in checkpoints:
            within = within or timedelta(0) <= newest - info.created <= duration
            if within or info.created > newest:
                kept.append(info.ref)
        parts = [f"{value:g} {unit}" for value, unit in ((self.days, "d"), (self.hours, "h")) if value]
        reason = f"at most {' '.join(parts)} older than the newest"
        return dict.fromkeys(kept, reason)

    def __repr__(self) -> str:
        return _repr_of_nonzero_fields(self)


@dataclass(frozen=True, repr=False)
class KeepPeriodic(RetentionPolicy):
    """Keeps the newest checkpoint of each of the last hours, days and weeks that have checkpoints.

    Hours, days and weeks without a checkpoint do not count, so a pause removes nothing. They begin and end in
    UTC. A week is an ISO week, from Monday to Sunday. Checkpoints whose dates contradict the history are kept
    without being counted, until enough hours, days and weeks have followed them.

    Args:
        hourly: number of hours. 0 by default.
        daily: number of days. 0 by default.
        weekly: number of weeks. 0 by default.

    Example:
        >>> KeepPeriodic(hourly=24, daily=7)
        KeepPeriodic(hourly=24, daily=7)
    """

    hourly: int = 0
    daily: int = 0
    weekly: int = 0

    def __post_init__(self) -> None:
        counts = {"hourly": self.hourly, "daily": self.daily, "weekly": self.weekly}
        name = "KeepPeriodic(hourly, daily, weekly)"
        normalize(self, **{period: check_integer(name, count) for period, count in counts.items()})
        _check_fields(self)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return merge_reasons(
            (
                _newest_of_each_period(checkpoints, _hour, self.hourly, "hourly"),
                _newest_of_each_period(checkpoints, _day, self.daily, "daily"),
                _newest_of_each_period(checkpoints, _week, self.weekly, "weekly"),
            )
        )

    def __repr__(self) -> str:
        return _repr_of_nonzero_fields(self)


def _trusted_newest_time(checkpoints: Sequence[CheckpointInfo], duration: timedelta) -> datetime:
    newest = checkpoints[-1].created
    if len(checkpoints) > 1 and newest - checkpoints[-2].created > duration:
        return checkpoints[-2].created
    return newest


def _newest_of_each_period(
    checkpoints: Sequence[CheckpointInfo], period_of: Callable[[datetime], str], count: int, rule: str
) -> Kept:
    kept: dict[CheckpointRef, str] = {}
    counted = 0
    last_period: Optional[str] = None
    last_created: Optional[datetime] = None
    in_doubt = False
    for info in reversed(checkpoints):
        period = period_of(info.created)
        if period == last_period and not in_doubt:
            continue
        if counted == count:
            break
        backwards = last_created is not None and info.created > last_created
        if backwards or period == last_period:
            # If a clock was set back, the same period may have occurred twice.
            in_doubt = backwards
            kept[info.ref] = f"its date contradicts the history ({rule})"
            continue
        counted += 1
        last_period, last_created, in_doubt = period, info.created, False
        kept[info.ref] = f"the newest of {period} ({rule}, {counted} of {count})"
    return kept


def _hour(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%d %H}h UTC"


def _day(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%d}"


def _week(time: datetime) -> str:
    year, week, _ = time.astimezone(timezone.utc).isocalendar()
    return f"week {year}-W{week:02d}"


def _check_fields(policy: Any) -> None:
    """Raise ValueError unless all fields are numbers of at least 0 and one of them is positive."""
    name = type(policy).__name__
    values = {field.name: getattr(policy, field.name) for field in fields(policy)}
    for field_name, value in values.items():
        if value != 0:
            check_positive(f"{name}({field_name})", value)
    if not any(values.values()):
        raise ValueError(f"{name} needs at least one of {', '.join(values)}")


def _duration(hours: float, days: float = 0) -> timedelta:
    """Return a duration, or the longest one that Python can represent if it is longer."""
    try:
        return timedelta(hours=hours, days=days)
    except OverflowError:
        return timedelta.max


def _repr_of_nonzero_fields(policy: Any) -> str:
    values = ((field.name, getattr(policy, field.name)) for field in fields(policy))
    return f"{type(policy).__name__}({', '.join(f'{name}={value!r}' for name, value in values if value)})"
