"""Retention policies: pure functions from checkpoints to the ones to keep, with the reason for each."""

from __future__ import annotations

import abc
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef

Kept = Mapping[CheckpointRef, str]
"""Checkpoints to keep, each with the reason."""


class RetentionPolicy(abc.ABC):
    """Decides which checkpoints of one worker to keep.

    Whatever a policy says, the newest checkpoint, the one that the current run resumed from until it has
    committed a newer one, and every pinned one (`CheckpointStore.pin`) stay.
    Policies combine with ``|``: what any of them keeps is kept.

    Example:
        >>> from input_checkpoint import KeepEverySteps, KeepLast
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
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return AnyOf((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class AnyOf(RetentionPolicy):
    """Keeps what at least one of its policies keeps, for all of their reasons.

    Args:
        policies: in the order in which their reasons are told.

    Example:
        >>> from input_checkpoint import KeepLast, KeepSteps
        >>> AnyOf((KeepLast(5), KeepSteps(10_000)))
        KeepLast(n=5) | KeepSteps(10000)
    """

    policies: tuple[RetentionPolicy, ...]

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return merge_reasons(policy.keep(checkpoints) for policy in self.policies)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))


def merge_reasons(parts: Iterable[Kept]) -> dict[CheckpointRef, str]:
    """Return what any of ``parts`` keeps, with all of their reasons, each told once.

    >>> first, second = CheckpointRef("main", 1, 10), CheckpointRef("main", 1, 20)
    >>> list(merge_reasons([{first: "old", second: "new"}, {second: "large"}]).values())
    ['old', 'new; large']
    """
    reasons: dict[CheckpointRef, dict[str, None]] = {}
    for part in parts:
        for ref, reason in part.items():
            reasons.setdefault(ref, {})[reason] = None
    return {ref: "; ".join(told) for ref, told in reasons.items()}


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a number above zero."""
    try:
        positive = value > 0
    except TypeError:
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not positive:
        raise ValueError(f"{name} must be positive, got {value}")


def check_integer(name: str, value: Any) -> int:
    """Return ``value`` if it is an integer of any kind, else raise ValueError."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def _parts(policy: RetentionPolicy) -> tuple[RetentionPolicy, ...]:
    return policy.policies if isinstance(policy, AnyOf) else (policy,)
