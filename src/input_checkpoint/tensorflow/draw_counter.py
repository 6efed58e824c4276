"""Counts the draws of one session, and says when a count is not certain."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Optional, Union

from input_checkpoint.tensorflow.draws import InputUse

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Position:
    """How far the iterators of a session had come at one moment."""

    counter: int
    """Number of the `DrawCounter`."""
    draws: Mapping[str, int]
    """How often each iterator has been drawn from."""
    doubts: Mapping[str, int]
    """How many events may have changed an iterator in a way that is not counted."""
    reasons: Mapping[str, str]
    """For each iterator, the last such event."""
    lost: frozenset[str]
    """Iterators whose draws cannot be counted until the session ends."""
    digests: Mapping[str, tuple[int, str]]
    """For each iterator, the last digest, and the number of draws after which it was taken."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn between two positions."""

    draws: Mapping[str, int]
    """How often each iterator was drawn from."""
    digests: Mapping[str, str]
    """The digest of the last batch of each iterator that was drawn from."""


def draws_between(base: Position, now: Position) -> Union[Drawn, str]:
    """Return what was drawn between two positions, or why that is not certain.

    Example:
        >>> counter = DrawCounter(["IteratorV2"], {"IteratorV2": 3}, {"IteratorV2": "5f0c"})
        >>> draws_between(counter.base, counter.position())
        Drawn(draws={'IteratorV2': 3}, digests={'IteratorV2': '5f0c'})
    """
    if base.counter != now.counter:
        return "the two positions belong to different sessions"
    draws: dict[str, int] = {}
    digests: dict[str, str] = {}
    for name, count in now.draws.items():
        draws[name] = count - base.draws[name]
        if now.doubts[name] != base.doubts[name] or name in now.lost:
            return f"the draws from iterator {name!r} cannot be counted: {now.reasons[name]}"
        if draws[name] < 0:
            return f"iterator {name!r} had been drawn from more often at the earlier position"
        if draws[name] == 0:
            continue
        taken_at, text = now.digests.get(name, (None, ""))
        if taken_at != count:
            return f"the last batch from iterator {name!r} has no digest"
        digests[name] = text
    return Drawn(draws, digests)


@dataclass
class _Iterator:
    draws: int
    doubts: int = 0
    reason: str = ""
    lost: bool = False
    digest: Optional[tuple[int, str]] = field(default=None)


class DrawCounter:
    """Counts the draws of one session. May be used from several threads.

    Args:
        names: of the iterators.
        start: how often each iterator was drawn from by a fast-forward, before the counting begins.
        digests: of the last batches that the fast-forward has drawn.
    """

    def __init__(
        self,
        names: Iterable[str],
        start: Optional[Mapping[str, int]] = None,
        digests: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._iterators = {name: _Iterator(0) for name in names}
        self._base = self.position()
        for name, count in (start or {}).items():
            self._iterators[name].draws = count
        for name, text in (digests or {}).items():
            self.digested(name, text)

    @property
    def base(self) -> Position:
        """The position before the draws of the fast-forward."""
        return self._base

    def position(self) -> Position:
        """Return the present position."""
        with self._lock:
            items = self._iterators.items()
            return Position(
                self._number,
                {name: iterator.draws for name, iterator in items},
                {name: iterator.doubts for name, iterator in items},
                {name: iterator.reason for name, iterator in items if iterator.reason},
                frozenset(name for name, iterator in items if iterator.lost),
                {name: iterator.digest for name, iterator in items if iterator.digest is not None},
            )

    def observed(self, use: InputUse) -> None:
        """Count the draws of a run that has succeeded.

        Args:
            use: with the operations that have run, and the names of the iterators.
        """
        with self._lock:
            if use.initializes:
                self._doubt(self._iterators, "it may have been initialized again")
            for operation in use.operations:
                iterator = self._iterators.get(str(operation.iterator))
                if iterator is None:
                    self._doubt(self._iterators, _unknown(operation.name))
                elif operation.uncertain is not None:
                    self._doubt([str(operation.iterator)], operation.uncertain)
                else:
                    iterator.draws += 1

    def failed(self, use: InputUse) -> None:
        """Note that a run has raised an error: it may have drawn before."""
        self._doubt_all(use, "a run that may have drawn from it failed")

    def untracked(self, use: InputUse, *, lasting: bool = False) -> None:
        """Note a run outside of the hooks. Call this before the run and after it.

        Args:
            use: what it may draw.
            lasting: whether it may draw at any time from now on.
        """
        self._doubt_all(use, "a run outside of the session hooks may have drawn from it", lasting)

    def digested(self, iterator: str, text: Optional[str]) -> None:
        """Note the digest of the last batch that was counted.

        Args:
            iterator: the name of the iterator.
            text: from `digest_text`.
        """
        with self._lock:
            state = self._iterators[iterator]
            state.digest = None if text is None else (state.draws, text)

    def _doubt_all(self, use: InputUse, reason: str, lasting: bool = False) -> None:
        names = {str(operation.iterator) for operation in use.operations}
        names.update(str(draw.iterator) for draw in use.draws)
        if use.initializes or not names <= self._iterators.keys():
            names = set(self._iterators)
        with self._lock:
            self._doubt(names, reason, lasting)

    def _doubt(self, names: Iterable[str], reason: str, lasting: bool = False) -> None:
        for name in names:
            iterator = self._iterators[name]
            iterator.doubts += 1
            iterator.reason = reason
            iterator.lost = iterator.lost or lasting


def _unknown(operation: str) -> str:
    return f"operation {operation!r} draws from an iterator that cannot be found in the graph"
