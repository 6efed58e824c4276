"""Retention policies: pure functions from checkpoints to the ones to keep, with the reason for each."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from input_checkpoint.manifest import CheckpointInfo
from input_checkpoint.refs import CheckpointRef

Kept = Mapping[CheckpointRef, str]


class RetentionPolicy(abc.ABC):
    """Decides which checkpoints of one worker to keep.

    Whatever a policy says, the newest checkpoint and the one that the current run resumed from stay.
    Policies combine with ``|``: what any of them keeps is kept.

    Example:
        >>> KeepLast(3) | KeepEverySteps(10_000)
        KeepLast(n=3) | KeepEverySteps(n=10000)
    """

    @abc.abstractmethod
    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """Return the checkpoints to keep, each with the reason.

        Args:
            checkpoints: the history of one worker, from old to new.
        """

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        return AnyOf((self, other))


@dataclass(frozen=True)
class AnyOf(RetentionPolicy):
    """Keeps what at least one of its policies keeps."""

    policies: tuple[RetentionPolicy, ...]

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`. The first policy that keeps a checkpoint gives the reason."""
        kept: dict[CheckpointRef, str] = {}
        for policy in reversed(self.policies):
            kept.update(policy.keep(checkpoints))
        return kept

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))


@dataclass(frozen=True)
class KeepAll(RetentionPolicy):
    """Keeps everything."""

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return {info.ref: "all are kept" for info in checkpoints}


@dataclass(frozen=True)
class KeepLast(RetentionPolicy):
    """Keeps the newest ``n`` checkpoints (``n`` ≥ 1)."""

    n: int

    def __post_init__(self) -> None:
        _check_positive("KeepLast(n)", self.n)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return {info.ref: f"one of the last {self.n}" for info in checkpoints[-self.n :]}


@dataclass(frozen=True)
class KeepEverySteps(RetentionPolicy):
    """Keeps the first checkpoint in every ``n`` steps: at or after step 0, n, 2 n and so on.

    Global steps need not hit the multiples exactly (with parameter servers they rarely do).
    """

    n: int

    def __post_init__(self) -> None:
        _check_positive("KeepEverySteps(n)", self.n)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        kept: dict[CheckpointRef, str] = {}
        seen: set[int] = set()
        for info in checkpoints:
            period = info.step // self.n
            if period not in seen:
                seen.add(period)
                kept[info.ref] = f"first since step {period * self.n}"
        return kept


@dataclass(frozen=True)
class KeepEvery(RetentionPolicy):
    """Keeps checkpoints that are at least ``hours`` apart (may be a fraction)."""

    hours: float

    def __post_init__(self) -> None:
        _check_positive("KeepEvery(hours)", self.hours)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        kept: dict[CheckpointRef, str] = {}
        last = None
        for info in checkpoints:
            if last is None or info.created - last >= timedelta(hours=self.hours):
                last = info.created
                kept[info.ref] = f"one every {self.hours:g} h"
        return kept


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
