"""The peak memory of a save beyond what the process used before, at several sizes of the state."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from benchmarks import fresh_process, pipelines, places
from benchmarks.names import OURS, OURS_S3, TF_HOOK
from benchmarks.raw_session import RawSession, raw_session
from benchmarks.report import Figure, Goal
from benchmarks.slow_link import Link
from input_checkpoint import CheckpointStore, open_backend
from integration.servers.server import Place

NAME = "memory"
EXTRA = "extra memory of a save [bytes]"
BOUND = "512 MB"
FLAT = "extra memory, largest to smallest state"
ONE = "itself"

GOALS = (
    Goal(NAME, EXTRA, OURS, BOUND, 1.0),
    Goal(NAME, EXTRA, OURS_S3, BOUND, 1.0),
    Goal(NAME, EXTRA, TF_HOOK, BOUND),
    Goal(NAME, FLAT, OURS, ONE, 1.5),
    Goal(NAME, FLAT, OURS_S3, ONE, 1.5),
    Goal(NAME, FLAT, TF_HOOK, ONE),
)

_FAST_LINK = Link(latency=0.002, bandwidth=200e6)
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Run:
    """The numbers of pictures in the buffer, and how often to measure each."""

    sizes: tuple[int, ...]
    """From large to small: the last ones to run, side by side, should be short."""
    rounds: int
    who: tuple[str, ...]


# One round, because others differ by only a twentieth and each takes half a minute.
FULL = Run((24_000, 2_500), 1, (OURS, OURS_S3, TF_HOOK))
QUICK = Run((800, 200), 1, (OURS, OURS_S3))


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures. Every save is the first one in its process."""
    if not _RESET.exists():
        print("Skipping memory: it needs /proc, which only Linux has.")
        return
    run = QUICK if quick else FULL
    with places.slow_s3(_FAST_LINK) as remote:
        found: dict[str, list[list[float]]] = {}
        tasks = [(who, size, number) for number in range(run.rounds) for size in run.sizes for who in run.who]
        extras = fresh_process.run_each(save_once, [(who, size, remote) for who, size, _ in tasks])
        for (who, size, number), extra in zip(tasks, extras):
            yield Figure(NAME, pipelines.pictures(size).name, who, EXTRA, number, extra)
            found.setdefault(who, [[] for _ in range(run.rounds)])[number].append(extra)
        for who, rounds in found.items():
            for number, values in enumerate(rounds):
                yield Figure(NAME, "pictures", who, FLAT, number, values[0] / values[-1])
                yield Figure(NAME, "pictures", ONE, FLAT, number, 1.0)
        for size in run.sizes:
            for number in range(run.rounds):
                yield Figure(NAME, pipelines.pictures(size).name, BOUND, EXTRA, number, float(512 << 20))


def save_once(who: str, size: int, remote: Place) -> float:
    """Return the peak memory of a save, in bytes, beyond what the process used before."""
    with places.folder() as folder, raw_session(pipelines.pictures(size)) as opened:
        if who == TF_HOOK:
            return _extra(lambda: opened.save_as_tensorflow_does(folder))
        there = f"{remote.uri}/{uuid.uuid4().hex}"
        uri, options = (str(folder), None) if who == OURS else (there, remote.storage_options)
        store = CheckpointStore.open(open_backend(uri, options), create=True)
        return _extra(lambda: _save(store, opened))


def _save(store: CheckpointStore, opened: RawSession) -> None:
    snapshot = opened.iterators.snapshot(opened.session)
    run = store.begin_run("main")
    run.save(1, snapshot.states())
    snapshot.release()


def _extra(work: Callable[[], object]) -> float:
    # Writing "5" makes the kernel reset the peak: proc(5).
    _RESET.write_text("5")
    before = _peak()
    work()
    return _peak() - before


def _peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return float(found.group(1)) * 1024
