"""The most memory that a save takes beyond what the process held before, at several sizes of the state."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import tensorflow as tf

from benchmarks import apart, pipelines, places
from benchmarks.competitors import OURS, OURS_S3, TF_HOOK
from benchmarks.report import Figure, Goal
from benchmarks.slow_link import Link
from input_checkpoint import CheckpointStore, open_backend
from input_checkpoint.iterators import GraphIterators, external_state_policy
from integration.servers.server import Place

v1 = tf.compat.v1

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
    """Pictures in the buffer, and how often each is measured."""

    sizes: tuple[int, ...]
    rounds: int
    who: tuple[str, ...]


FULL = Run((2_500, 10_000, 24_000), 2, (OURS, OURS_S3, TF_HOOK))
QUICK = Run((200, 800), 1, (OURS, OURS_S3))


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures. Every save is the first of its process."""
    if not _RESET.exists():
        print("memory is left out: it needs /proc, which only Linux has")
        return
    run = QUICK if quick else FULL
    with places.slow_s3(_FAST_LINK) as remote:
        found: dict[str, list[list[float]]] = {}
        for number in range(run.rounds):
            for size in run.sizes:
                for who in run.who:
                    figure = _measure_one(who, size, number, remote)
                    if figure:
                        yield figure
                        rounds = found.setdefault(who, [[] for _ in range(run.rounds)])
                        rounds[number].append(figure.value)
        for who, rounds in found.items():
            for number, values in enumerate(rounds):
                yield Figure(NAME, "pictures", who, FLAT, number, values[-1] / values[0])
                yield Figure(NAME, "pictures", ONE, FLAT, number, 1.0)
        for size in run.sizes:
            for number in range(run.rounds):
                yield Figure(NAME, pipelines.pictures(size).name, BOUND, EXTRA, number, float(512 << 20))


def _measure_one(who: str, size: int, number: int, remote: Place) -> Optional[Figure]:
    case = pipelines.pictures(size).name
    extra = apart.run_unless_it_dies(save_once, who, size, remote)
    if extra is None:
        print(f"{who} is killed by TensorFlow at {case}: the encoding of its state passes 2 GB")
        return None
    return Figure(NAME, case, who, EXTRA, number, extra)


def save_once(who: str, size: int, remote: Place) -> float:
    """Return the bytes that a save takes at most, beyond what was there before."""
    with places.folder() as folder, v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(pipelines.pictures(size).dataset())
        step = iterator.get_next().op
        iterators = GraphIterators(graph, external_state_policy("fail"))
        saver = v1.train.Saver([tf.data.experimental.make_saveable_from_iterator(iterator)], sharded=True)
        with v1.Session() as session:
            session.run([iterator.initializer])
            session.run(step)
            if who == TF_HOOK:
                return _extra(lambda: saver.save(session, str(folder / "input.ckpt"), write_meta_graph=False))
            uri, options = (
                (str(folder), None) if who == OURS else (f"{remote.uri}/{size}", remote.storage_options)
            )
            store = CheckpointStore.open(open_backend(uri, options), create=True)
            return _extra(lambda: _save(store, iterators, session))


def _save(store: CheckpointStore, iterators: GraphIterators, session: Any) -> None:
    snapshot = iterators.snapshot(session)
    lineage = store.open_lineage("main", parent=None)
    store.save(lineage, 1, snapshot.states())
    snapshot.release()


def _extra(work: Any) -> float:
    # "5" lets the kernel begin anew with the peak: proc(5).
    _RESET.write_text("5")
    before = _peak()
    work()
    return _peak() - before


def _peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return float(found.group(1)) * 1024
