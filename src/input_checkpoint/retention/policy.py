"""The contract of retention policies: pure functions that choose the checkpoints to keep, with reasons."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.whole_numbers import whole_number

Kept = Mapping[CheckpointRef, str]
"""The checkpoints to keep, each with the reason."""


class RetentionPolicy(abc.ABC):
    """Decides which checkpoints of one worker to keep.

    Combine policies with ``|`` to keep what any of them keeps. Three kinds of checkpoints are kept even if no
    policy keeps them: the newest one, the one that the current run resumed from (until the run commits its
    first), and every pinned one (`CheckpointStore.pin`).

    Example:
        >>> from input_checkpoint import KeepEverySteps, KeepLast
        >>> KeepLast(3) | KeepEverySteps(10_000)
        KeepLast(n=3) | KeepEverySteps(n=10000)
    """

    @abc.abstractmethod
    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """Return the checkpoints to keep, each with the reason.

        Args:
            checkpoints: the history of one worker, from oldest to newest.
        """

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return AnyOf((*_alternatives(self), *_alternatives(other)))


@dataclass(frozen=True)
class AnyOf(RetentionPolicy):
    """Keeps what at least one of its policies keeps, and gives the reasons of all that do.

    Args:
        policies: the policies, in the order in which their reasons are listed.

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
    """Return what any of ``parts`` keeps, with all of their reasons. Equal reasons are listed once.

    Example:
        >>> first, second = CheckpointRef("main", 1, 10), CheckpointRef("main", 1, 20)
        >>> list(merge_reasons([{first: "old", second: "new"}, {second: "large"}]).values())
        ['old', 'new; large']
    """
    reasons: dict[CheckpointRef, dict[str, None]] = {}
    for part in parts:
        for ref, reason in part.items():
            reasons.setdefault(ref, {})[reason] = None
    return {ref: "; ".join(texts) for ref, texts in reasons.items()}


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a positive number."""
    try:
        positive = value > 0
    except TypeError:
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not positive:
        raise ValueError(f"{name} must be positive, got {value}")


def check_integer(name: str, value: Any) -> int:
    """Return ``value`` as an int. Raise ValueError if it is not an integer."""
    try:
        return whole_number(name, value)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _alternatives(policy: RetentionPolicy) -> tuple[RetentionPolicy, ...]:
    return policy.policies if isinstance(policy, AnyOf) else (policy,)
