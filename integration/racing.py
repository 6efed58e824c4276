"""Writers in several processes that all want the same keys at the same moment."""

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
_SECONDS_TO_COME = 100


@dataclass(frozen=True)
class Win:
    """One writer that was told that it had created a key."""

    key: str
    data_begins_with: bytes


def race(place: Place, keys: Sequence[str], size: int) -> list[Win]:
    """Let 16 writers in 4 processes create each key at once; return those who were told that they did."""
    context = multiprocessing.get_context("spawn")
    line = context.Barrier(PROCESSES * THREADS)
    results = context.Queue()
    racers = [
        context.Process(target=_race, args=(place, keys, size, number, line, results))
        for number in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    wins = [win for _ in racers for win in results.get(timeout=10 * _SECONDS_TO_COME)]
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    return wins


def _race(
    place: Place,
    keys: Sequence[str],
    size: int,
    process: int,
    line: Barrier,
    results: multiprocessing.Queue[list[Win]],
) -> None:
    backend = open_backend(place.uri, place.storage_options)

    def run(thread: int) -> list[Win]:
        wins = []
        for key in keys:
            name = f"process {process} thread {thread} key {key};".encode()
            data = name.ljust(size, b".")
            line.wait(_SECONDS_TO_COME)
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
