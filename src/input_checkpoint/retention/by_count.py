"""Retention policies: pure functions from checkpoints to the ones to keep, with the reason for each.

Here are the contract and the policies that go by number, step and size. Those that go by time are in
`retention_time`, the one that goes by the model's own checkpoints is in `retention_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.retention.policy import Kept, RetentionPolicy, check_integer, check_positive


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
        check_integer("KeepLast(n)", self.n)

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
        check_integer("KeepEverySteps(n)", self.n)

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
        whole = {check_integer("KeepSteps(*steps)", step) for step in steps}
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
