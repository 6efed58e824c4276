"""Whether a filesystem's create-if-absent keeps its word: several threads want the same few names."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

from input_checkpoint.errors import ObjectExistsError

RACERS = 8


def race_create(create: Callable[[str], None], names: Sequence[str]) -> int:
    """Let threads race for each name in turn and return the largest number that were told they had won.

    More than 1 means that the create is not atomic. 1 is no proof, but an exists-then-write on a storage
    behind a network hardly ever gets that far.

    Args:
        create: creates one name; raises `ObjectExistsError` if it is taken.
        names: free ones.

    Raises:
        BackendError: what ``create`` raises.
    """
    with ThreadPoolExecutor(RACERS) as racers:
        return max(_winners(racers, create, name) for name in names)


def _winners(racers: ThreadPoolExecutor, create: Callable[[str], None], name: str) -> int:
    start = threading.Barrier(RACERS)

    def race(_: int) -> bool:
        start.wait()
        try:
            create(name)
        except ObjectExistsError:
            return False
        return True

    return sum(racers.map(race, range(RACERS)))
