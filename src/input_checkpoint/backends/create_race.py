"""Tests whether create-if-absent is atomic by letting several threads create the same object."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Callable

from input_checkpoint.errors import ObjectExistsError
from input_checkpoint.parallel import DaemonExecutor

RACERS = 8


def race_create(create: Callable[[str], None], names: Sequence[str]) -> int:
    """Let several threads create each name at the same time; return the largest number of winners.

    A result above 1 proves that ``create`` is not atomic. A result of 1 does not prove that it is, but on a
    remote storage, a check followed by a write almost always has several winners.

    Args:
        create: creates one name; raises `ObjectExistsError` if the name exists.
        names: names that do not exist yet.

    Raises:
        BackendError: whatever ``create`` raises.

    Example:
        >>> from input_checkpoint.backends.memory import MemoryBackend
        >>> backend = MemoryBackend("memory://race")
        >>> race_create(lambda name: backend.create(name, b""), ["a", "b"])
        1
    """
    with DaemonExecutor(RACERS, "input-checkpoint-race") as racers:
        return max(_count_winners(racers, create, name) for name in names)


def _count_winners(racers: DaemonExecutor, create: Callable[[str], None], name: str) -> int:
    start = threading.Barrier(RACERS)

    def race(_: int) -> bool:
        start.wait()
        try:
            create(name)
        except ObjectExistsError:
            return False
        return True

    return sum(racers.map(race, range(RACERS)))
