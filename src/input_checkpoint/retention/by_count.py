"""Retention by number, step and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.retention.policy import Kept, RetentionPolicy, check_integer, check_positive
from input_checkpoint.whole_numbers import normalize, plain_number


@dataclass(frozen=True)
class KeepAll(RetentionPolicy):
    """Keeps every checkpoint of the history."""

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return {info.ref: "everything is kept" for info in checkpoints}


@dataclass(frozen=True)
class KeepLast(RetentionPolicy):
    """Keeps the newest ``n`` checkpoints.

    Args:
        n: number of checkpoints, at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        check_positive("KeepLast(n)", self.n)
        normalize(self, n=check_integer("KeepLast(n)", self.n))

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return {info.ref: f"one of the last {self.n}" for info in checkpoints[-self.n :]}


@dataclass(frozen=True)
class KeepEverySteps(RetentionPolicy):
    """Keeps the first checkpoint at or after each of the steps 0, n, 2 n, and so on.

    A checkpoint need not be at exactly such a step. With parameter servers it rarely is.

    Args:
        n: number of steps, at least 1.
    """

    n: int

    def __post_init__(self) -> None:
        check_positive("KeepEverySteps(n)", self.n)
        normalize(self, n=check_integer("KeepEverySteps(n)", self.n))

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        kept: dict[CheckpointRef, str] = {}
        seen: set[int] = set()
        for info in checkpoints:
            period = info.step // self.n
            if period not in seen:
                seen.add(period)
                kept[info.ref] = f"the first since step {period * self.n}"
        return kept


@dataclass(frozen=True, init=False, repr=False)
class KeepSteps(RetentionPolicy):
    """Keeps the checkpoints of the given global steps.

    A step without a checkpoint is ignored. Use `KeepEverySteps` if saves may miss the exact step, and
    `CheckpointStore.pin` to choose a checkpoint that already exists.

    Args:
        *steps: global steps, at least one. Each is 0 or more.

    Example:
        >>> KeepLast(5) | KeepSteps(10_000, 50_000)
        KeepLast(n=5) | KeepSteps(10000, 50000)
    """

    steps: tuple[int, ...]

    def __init__(self, *steps: int) -> None:
        if not steps:
            raise ValueError("KeepSteps needs at least one step")
        chosen = {check_integer("KeepSteps(*steps)", step) for step in steps}
        if min(chosen) < 0:
            raise ValueError(f"KeepSteps(*steps) must not be negative, got {min(chosen)}")
        object.__setattr__(self, "steps", tuple(sorted(chosen)))

    def keep(self, checkpoints: Sequence[CheckpointInfo]) -> Kept:
        """See `RetentionPolicy.keep`."""
        return {info.ref: f"step {info.step} was chosen" for info in checkpoints if info.step in self.steps}

    def __repr__(self) -> str:
        return f"KeepSteps({', '.join(map(str, self.steps))})"


@dataclass(frozen=True)
class KeepBytes(RetentionPolicy):
    """Keeps the newest checkpoints that together occupy at most ``budget`` bytes of storage.

    The newest checkpoint is kept whatever its size. The budget counts the chunk table of each checkpoint and
    every pack that one of them uses. A pack counts with its whole size, and once however many checkpoints
    share it. Checkpoints that are kept for another reason (a pin, another policy, an abandoned run that may
    still be resumed) are not counted, and neither is a save in flight.

    Packs may contain chunks that only older checkpoints needed. In a long run, the newest checkpoint alone
    can therefore occupy twice the size of its state. To keep more than the newest, choose a budget of at
    least three times that size.

    Args:
        budget: bytes per worker.

    Example:
        >>> KeepBytes(50 * 10**9)
        KeepBytes(budget=50000000000)
    """

    budget: float

    def __post_init__(self) -> None:
        check_positive("KeepBytes(budget)", self.budget)
        normalize(self, budget=plain_number(self.budget))

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
                    kept[info.ref] = f"the newest, although its {total:,} bytes exceed {self.budget:,}"
                break
            kept[info.ref] = f"{total:,} of {self.budget:,} bytes, including newer checkpoints"
        return kept
