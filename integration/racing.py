"""Writers in several processes that create the same keys at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

from input_checkpoint import ObjectExistsError, open_backend
from integration.servers.server import Place

PROCESSES = 4
THREADS = 4
_BARRIER_TIMEOUT = 100


@dataclass(frozen=True)
class Win:
    """A writer whose `create` of a key succeeded."""

    key: str
    data_begins_with: bytes


def race(place: Place, keys: Sequence[str], size: int) -> list[Win]:
    """Let 16 writers in 4 processes create each key at the same moment. Return those that succeeded."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES * THREADS)
    results = context.Queue()
    racers = [
        context.Process(target=_race, args=(place, keys, size, number, barrier, results))
        for number in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    wins = [win for _ in racers for win in results.get(timeout=10 * _BARRIER_TIMEOUT)]
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    return wins


def _race(
    place: Place,
    keys: Sequence[str],
    size: int,
    process: int,
    barrier: Barrier,
    results: multiprocessing.Queue[list[Win]],
) -> None:
    backend = open_backend(place.uri, place.storage_options)

    def run(thread: int) -> list[Win]:
        wins = []
        for key in keys:
            name = f"process {process} thread {thread} key {key};".encode()
            data = name.ljust(size, b".")
            barrier.wait(_BARRIER_TIMEOUT)
            try:
                backend.create(key, data)
            except ObjectExistsError:
                continue
            wins.append(Win(key, name))
        return wins

    with ThreadPoolExecutor(THREADS) as threads:
        wins = [win for found in threads.map(run, range(THREADS)) for win in found]
    backend.close()
    results.put(wins)
