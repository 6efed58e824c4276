"""How long a save blocks the training thread, and how long it takes until it is durable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from benchmarks import candidates, fresh_process, pipelines, places
from benchmarks.candidates import Candidate, EagerCheckpoint, Floor, HookCandidate, Ours, TensorFlowHook
from benchmarks.names import FLOOR, OURS, OURS_S3, TF_ASYNC, TF_CHECKPOINT, TF_HOOK, TF_PUT
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
class Comparison:
    """The candidates that save one pipeline in turn."""

    make: Callable[[int], Pipeline]
    elements: int
    rounds: int
    """For ours and the floor: they differ by less than a single save varies, so they need more rounds."""
    rounds_of_others: int
    who: tuple[str, ...]

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that all of them save."""
        return self.make(self.elements)


_ALL = (FLOOR, OURS, OURS_S3, TF_HOOK, TF_PUT, TF_CHECKPOINT, TF_ASYNC)
_LOCAL = (FLOOR, OURS, TF_HOOK, TF_CHECKPOINT, TF_ASYNC)
_HOOKS = (FLOOR, OURS, TF_HOOK)

FULL = (
    Comparison(pipelines.pictures, 1_000, 5, 3, _ALL),
    Comparison(pipelines.pictures, 24_000, 3, 3, _HOOKS),
    Comparison(pipelines.tokens, 10_000, 5, 3, _LOCAL),
    Comparison(pipelines.vectors, 30_000, 5, 3, _HOOKS),
    # A million of them would take TensorFlow 15 s for each round of a single candidate.
    Comparison(pipelines.numbers, 100_000, 3, 1, _HOOKS),
    Comparison(pipelines.cached_pictures, 2_000, 7, 3, _HOOKS),
)
QUICK = (
    Comparison(pipelines.pictures, 200, 2, 1, _ALL),
    Comparison(pipelines.numbers, 2_000, 2, 1, _HOOKS),
)


def measure(quick: bool) -> Iterator[Figure]:
    """Yield the figures, pipeline by pipeline."""
    for comparison in QUICK if quick else FULL:
        with contextlib.ExitStack() as stack:
            remote = stack.enter_context(places.slow_s3()) if OURS_S3 in comparison.who else None
            yield from fresh_process.run(compare, comparison, remote)


def compare(comparison: Comparison, remote: Optional[Place]) -> list[Figure]:
    """Let all candidates save in turn, and return the figures."""
    figures = []
    pipeline = comparison.pipeline
    with places.folder() as folder:
        hooks = [
            _hook(name, folder, remote) for name in comparison.who if name not in (TF_CHECKPOINT, TF_ASYNC)
        ]
        eager = _eager(comparison, folder)
        with candidates.training(pipeline, hooks):
            everyone: list[Candidate] = [*hooks, *eager]
            for candidate in everyone:
                candidate.warm_up()
            for number, candidate in candidates.turns(everyone, comparison.rounds):
                if number >= comparison.rounds_of_others and candidate.name not in (FLOOR, OURS, OURS_S3):
                    continue
                candidate.save()
                candidate.wait_until_durable()
                found = ((STALL, candidate.stall_seconds), (DURABLE, candidate.durable_seconds))
                figures += [
                    Figure(NAME, pipeline.name, candidate.name, what, number, value) for what, value in found
                ]
    return [figure for figure in figures if (figure.who, figure.quantity) != (FLOOR, DURABLE)]


def _hook(name: str, folder: Path, remote: Optional[Place]) -> HookCandidate:
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


def _eager(comparison: Comparison, folder: Path) -> list[Candidate]:
    names = [name for name in (TF_CHECKPOINT, TF_ASYNC) if name in comparison.who]
    if not names:
        return []
    iterator = iter(comparison.pipeline.dataset())
    next(iterator)
    return [EagerCheckpoint(name, iterator, folder, name == TF_ASYNC) for name in names]
