"""Retention by time: distances between checkpoints, ages, and calendar buckets.

All of it is counted from checkpoint to checkpoint and never from the clock, so that an outage, or a job that
waits for months, empties nothing.

Which checkpoint is older is said by the history alone, by lineage and step, never by the dates: the clocks of
the machines that wrote them may have been wrong. Where dates contradict the history, time seems to run
backwards, and it cannot be told how much has really passed. Then a checkpoint is kept rather than dropped.
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


@dataclass(frozen=True)
class KeepEvery(RetentionPolicy):
    """Keeps checkpoints that are at least ``hours`` apart (may be a fraction).

    One that is dated before the last one kept is kept too: a clock was wrong.
    """

    hours: float

    def __post_init__(self) -> None:
        check_positive("KeepEvery(hours)", self.hours)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        kept: dict[CheckpointRef, str] = {}
        last, apart = None, _duration(self.hours)
        for info in checkpoints:
            if last is None or info.created - last >= apart or info.created < last:
                last = info.created
                kept[info.ref] = f"one every {self.hours:g} h"
        return kept


@dataclass(frozen=True, repr=False)
class KeepWithin(RetentionPolicy):
    """Keeps every checkpoint that is at most so much older than the newest one.

    The time is counted back from the newest checkpoint, not from the clock: however long nothing was saved,
    nothing is removed for it. If the newest is dated so long after the one before it that it would leave
    nothing else, its date is believed only once the next checkpoint confirms it, since its clock may have
    been ahead. What follows a kept checkpoint in the history is kept too, as is what is dated after the
    newest.

    Args:
        hours: may be a fraction; 0 by default.
        days: added to ``hours``; may be a fraction; 0 by default.

    Example:
        >>> KeepWithin(days=2) | KeepEvery(24)
        KeepWithin(days=2) | KeepEvery(hours=24)
    """

    hours: float = 0
    days: float = 0

    def __post_init__(self) -> None:
        _check_some_given(self)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        if not checkpoints:
            return {}
        duration = _duration(self.hours, self.days)
        newest = _believed_newest(checkpoints, duration)
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
        return _repr_of_given(self)


@dataclass(frozen=True, repr=False)
class KeepPeriodic(RetentionPolicy):
    """Keeps the newest checkpoint of each of the last hours, days and weeks that have one.

    Hours, days and weeks without a checkpoint do not count, so a pause costs nothing. They begin and end in
    UTC; a week is an ISO week, from Monday to Sunday. Checkpoints whose dates contradict the history are kept
    and not counted, until enough hours, days and weeks have followed them.

    Args:
        hourly: for how many hours; 0, the default, is none.
        daily: for how many days; 0, the default, is none.
        weekly: for how many weeks; 0, the default, is none.

    Example:
        >>> KeepPeriodic(hourly=24, daily=7)
        KeepPeriodic(hourly=24, daily=7)
    """

    hourly: int = 0
    daily: int = 0
    weekly: int = 0

    def __post_init__(self) -> None:
        for count in (self.hourly, self.daily, self.weekly):
            check_integer("KeepPeriodic(hourly, daily, weekly)", count)
        _check_some_given(self)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return merge_reasons(
            (
                _newest_of_each(checkpoints, _hour, self.hourly, "hourly"),
                _newest_of_each(checkpoints, _day, self.daily, "daily"),
                _newest_of_each(checkpoints, _week, self.weekly, "weekly"),
            )
        )

    def __repr__(self) -> str:
        return _repr_of_given(self)


def _believed_newest(checkpoints: Sequence[CheckpointInfo], duration: timedelta) -> datetime:
    newest = checkpoints[-1].created
    if len(checkpoints) > 1 and newest - checkpoints[-2].created > duration:
        return checkpoints[-2].created
    return newest


def _newest_of_each(
    checkpoints: Sequence[CheckpointInfo], bucket_of: Callable[[datetime], str], count: int, rule: str
) -> Kept:
    kept: dict[CheckpointRef, str] = {}
    found = 0
    bucket: Optional[str] = None
    counted: Optional[datetime] = None
    doubtful = False
    for info in reversed(checkpoints):
        name = bucket_of(info.created)
        if name == bucket and not doubtful:
            continue
        if found == count:
            break
        backwards = counted is not None and info.created > counted
        if backwards or name == bucket:
            # Before a clock was set back there may have been another hour that is dated as the one counted.
            doubtful = backwards
            kept[info.ref] = f"the dates contradict the history ({rule})"
            continue
        found += 1
        bucket, counted, doubtful = name, info.created, False
        kept[info.ref] = f"the newest of {bucket} ({rule}, {found} of {count})"
    return kept


def _hour(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%d %H}h UTC"


def _day(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%d}"


def _week(time: datetime) -> str:
    year, week, _ = time.astimezone(timezone.utc).isocalendar()
    return f"week {year}-W{week:02d}"


def _check_some_given(policy: Any) -> None:
    """Raise ValueError unless all fields are numbers from zero on, and one of them is above."""
    name = type(policy).__name__
    given = {field.name: getattr(policy, field.name) for field in fields(policy)}
    for field_name, value in given.items():
        if value != 0:
            check_positive(f"{name}({field_name})", value)
    if not any(given.values()):
        raise ValueError(f"{name} needs at least one of {', '.join(given)}")


def _duration(hours: float, days: float = 0) -> timedelta:
    """Return a length of time; one that is too long to be counted is the longest."""
    try:
        return timedelta(hours=hours, days=days)
    except OverflowError:
        return timedelta.max


def _repr_of_given(policy: Any) -> str:
    given = ((field.name, getattr(policy, field.name)) for field in fields(policy))
    return f"{type(policy).__name__}({', '.join(f'{name}={value!r}' for name, value in given if value)})"
