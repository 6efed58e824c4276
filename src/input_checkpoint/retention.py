"""Retention policies: pure functions from checkpoints to the ones to keep, with the reason for each.

Here are the contract and the policies that go by number, step and size. Those that go by time are in
`retention_time`, the one that goes by the model's own checkpoints is in `retention_model`.
"""

from __future__ import annotations

import abc
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from input_checkpoint.manifest import CheckpointInfo
from input_checkpoint.refs import CheckpointRef

Kept = Mapping[CheckpointRef, str]
"""Checkpoints to keep, each with the reason."""


class RetentionPolicy(abc.ABC):
    """Decides which checkpoints of one worker to keep.

    Whatever a policy says, the newest checkpoint, the one that the current run resumed from until it has
    committed a newer one, and every pinned one (`CheckpointStore.pin`) stay.
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
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return AnyOf((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class AnyOf(RetentionPolicy):
    """Keeps what at least one of its policies keeps, for all of their reasons.

    Args:
        policies: in the order in which their reasons are told.

    Example:
        >>> AnyOf((KeepLast(5), KeepSteps(10_000)))
        KeepLast(n=5) | KeepSteps(10000)
    """

    policies: tuple[RetentionPolicy, ...]

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return joined(policy.keep(checkpoints) for policy in self.policies)

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
        check_positive("KeepLast(n)", self.n)
        check_whole("KeepLast(n)", self.n)

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
        check_positive("KeepEverySteps(n)", self.n)
        check_whole("KeepEverySteps(n)", self.n)

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


@dataclass(frozen=True, init=False, repr=False)
class KeepSteps(RetentionPolicy):
    """Keeps the checkpoints of chosen global steps.

    A step at which nothing was saved keeps nothing; `KeepEverySteps` does not need to hit a step exactly. To
    choose a checkpoint once it exists, and to change your mind later, see `CheckpointStore.pin`.

    Args:
        *steps: global steps, at least one, each ≥ 0.

    Example:
        >>> KeepLast(5) | KeepSteps(10_000, 50_000)
        KeepLast(n=5) | KeepSteps(10000, 50000)
    """

    steps: tuple[int, ...]

    def __init__(self, *steps: int) -> None:
        if not steps:
            raise ValueError("KeepSteps needs at least one step")
        whole = {check_whole("KeepSteps(*steps)", step) for step in steps}
        if min(whole) < 0:
            raise ValueError(f"KeepSteps(*steps) must not be negative, got {min(whole)}")
        object.__setattr__(self, "steps", tuple(sorted(whole)))

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return {info.ref: f"step {info.step} was chosen" for info in checkpoints if info.step in self.steps}

    def __repr__(self) -> str:
        return f"KeepSteps({', '.join(map(str, self.steps))})"


@dataclass(frozen=True)
class KeepBytes(RetentionPolicy):
    """Keeps the newest checkpoints as long as they take up at most ``budget`` bytes.

    The newest is kept whatever its size. What counts is what the storage holds for them: every pack that one
    of them refers to, whole and once however many share it, and the list of chunks of each. What is kept for
    another reason (a pin, another policy, history not yet given up) comes on top, as does the save that is
    just being made. Packs also hold what only older checkpoints needed, so that in a long run the newest one
    alone may take up twice the size of its state, and a budget below three times that size keeps little else.

    Args:
        budget: bytes, for each worker.

    Example:
        >>> KeepBytes(50 * 10**9)
        KeepBytes(budget=50000000000)
    """

    budget: float

    def __post_init__(self) -> None:
        check_positive("KeepBytes(budget)", self.budget)

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        kept: dict[CheckpointRef, str] = {}
        counted: set[str] = set()
        total = 0
        for info in reversed(checkpoints):
            total += info.table_bytes + sum(pack.size for pack in info.packs if pack.key not in counted)
            counted.update(pack.key for pack in info.packs)
            if total > self.budget:
                if not kept:
                    kept[info.ref] = f"the newest, though {total:,} bytes are over {self.budget:,}"
                break
            kept[info.ref] = f"{total:,} of {self.budget:,} bytes together with what is newer"
        return kept


def joined(parts: Iterable[Kept]) -> dict[CheckpointRef, str]:
    """Return what any of ``parts`` keeps, with all of their reasons, each told once.

    >>> first, second = CheckpointRef("main", 1, 10), CheckpointRef("main", 1, 20)
    >>> list(joined([{first: "old", second: "new"}, {second: "large"}]).values())
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


def check_whole(name: str, value: Any) -> int:
    """Return ``value`` if it is an integer of any kind, else raise ValueError."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def _parts(policy: RetentionPolicy) -> tuple[RetentionPolicy, ...]:
    return policy.policies if isinstance(policy, AnyOf) else (policy,)
