"""How long a save keeps the training thread, and how long it takes until it is stored for good."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from benchmarks import apart, competitors, pipelines, places
from benchmarks.competitors import (
    FLOOR,
    OURS,
    OURS_S3,
    TF_ASYNC,
    TF_CHECKPOINT,
    TF_HOOK,
    TF_PUT,
    Competitor,
    EagerCheckpoint,
    Floor,
    HookCompetitor,
    Ours,
    TensorFlowHook,
)
from benchmarks.pipelines import Pipeline
from benchmarks.report import Figure, Goal
from input_checkpoint import open_backend
from input_checkpoint.backends.local import LocalBackend
from integration.servers.server import Place

NAME = "stall"
STALL = "stall [s]"
DURABLE = "until durable [s]"

GOALS = (
    Goal(NAME, STALL, OURS, FLOOR, 1.1),
    Goal(NAME, STALL, OURS_S3, FLOOR, 1.1),
    Goal(NAME, STALL, OURS, TF_HOOK, 1 / 20, cases="pictures"),
    Goal(NAME, STALL, OURS, TF_HOOK),
    Goal(NAME, STALL, OURS, TF_CHECKPOINT),
    Goal(NAME, STALL, OURS, TF_ASYNC),
    Goal(NAME, STALL, OURS_S3, TF_PUT),
    Goal(NAME, DURABLE, OURS, TF_HOOK),
    Goal(NAME, DURABLE, OURS_S3, TF_PUT),
)


@dataclass(frozen=True)
class Contest:
    """Who takes part on which pipeline."""

    make: Callable[[int], Pipeline]
    elements: int
    rounds: int
    """For ours and for the floor, which differ by less than what a single save varies by."""
    rounds_of_others: int
    who: tuple[str, ...]

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline."""
        return self.make(self.elements)


_EVERYBODY = (FLOOR, OURS, OURS_S3, TF_HOOK, TF_PUT, TF_CHECKPOINT, TF_ASYNC)
_LOCAL = (FLOOR, OURS, TF_HOOK, TF_CHECKPOINT, TF_ASYNC)
_HOOKS = (FLOOR, OURS, TF_HOOK)

FULL = (
    Contest(pipelines.pictures, 1_000, 9, 3, _EVERYBODY),
    Contest(pipelines.pictures, 10_000, 5, 2, _HOOKS),
    Contest(pipelines.tokens, 20_000, 7, 2, _LOCAL),
    Contest(pipelines.vectors, 100_000, 5, 2, _HOOKS),
    # TensorFlow takes ten seconds and more to save this one, every time.
    Contest(pipelines.numbers, 1_000_000, 1, 1, _HOOKS),
    Contest(pipelines.cached_pictures, 2_000, 9, 3, _HOOKS),
    Contest(pipelines.pictures, 24_000, 3, 1, _HOOKS),
)
QUICK = (
    Contest(pipelines.pictures, 200, 2, 1, _EVERYBODY),
    Contest(pipelines.numbers, 2_000, 2, 1, _HOOKS),
)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, pipeline by pipeline."""
    for contest in QUICK if quick else FULL:
        with contextlib.ExitStack() as stack:
            remote = stack.enter_context(places.slow_s3()) if OURS_S3 in contest.who else None
            yield from apart.run(hold, contest, remote)


def hold(contest: Contest, remote: Optional[Place]) -> list[Figure]:
    """Let everybody save in turn."""
    figures = []
    pipeline = contest.pipeline
    with places.folder() as folder:
        hooks = [_hook(name, folder, remote) for name in contest.who if name not in (TF_CHECKPOINT, TF_ASYNC)]
        eager = _eager(contest, folder)
        with competitors.training(pipeline, hooks):
            everybody: list[Competitor] = [*hooks, *eager]
            for one in everybody:
                one.warm_up()
            for number, one in competitors.turns(everybody, contest.rounds):
                if number >= contest.rounds_of_others and one.name not in (FLOOR, OURS, OURS_S3):
                    continue
                one.save()
                one.settle()
                found = ((STALL, one.stalled), (DURABLE, one.durable))
                figures += [
                    Figure(NAME, pipeline.name, one.name, what, number, value) for what, value in found
                ]
    return [one for one in figures if (one.who, one.quantity) != (FLOOR, DURABLE)]


def _hook(name: str, folder: Path, remote: Optional[Place]) -> HookCompetitor:
    if name == FLOOR:
        return Floor()
    if name == OURS:
        return Ours(OURS, LocalBackend(str(folder / "ours")))
    if name == TF_HOOK:
        return TensorFlowHook(TF_HOOK, folder / "tensorflow")
    assert remote is not None
    if name == OURS_S3:
        return Ours(OURS_S3, open_backend(f"{remote.uri}/ours", remote.storage_options))
    return TensorFlowHook(TF_PUT, folder / "uploaded", remote)


def _eager(contest: Contest, folder: Path) -> list[Competitor]:
    names = [name for name in (TF_CHECKPOINT, TF_ASYNC) if name in contest.who]
    if not names:
        return []
    iterator = iter(contest.pipeline.dataset())
    next(iterator)
    return [EagerCheckpoint(name, iterator, folder, name == TF_ASYNC) for name in names]
