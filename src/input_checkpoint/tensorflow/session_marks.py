"""Marks of the input of a session: whether they can be written, what they hold, and how to return to them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional, Protocol

from input_checkpoint.state import ElementBatch
from input_checkpoint.tensorflow.batch_digest import BatchDigests
from input_checkpoint.tensorflow.checked_batches import check_batches
from input_checkpoint.tensorflow.countable import why_not_countable
from input_checkpoint.tensorflow.determinism import why_not_repeatable
from input_checkpoint.tensorflow.draw_counter import DrawCounter, Position, draws_between
from input_checkpoint.tensorflow.draw_guard import DrawGuard
from input_checkpoint.tensorflow.drawable_iterators import DrawableIterators
from input_checkpoint.tensorflow.iterators import (
    GraphIterators,
    SessionIterators,
)
from input_checkpoint.tensorflow.random_datasets import restarts_at_random
from input_checkpoint.tensorflow.shuffle_seeds import ShuffleSeeds
from input_checkpoint.training.background_saver import BackgroundSaver
from input_checkpoint.training.fast_forward_limit import FastForwardLimit
from input_checkpoint.training.marking import Base, Bases, PendingMark, write_mark
from input_checkpoint.training.resuming import Resumed
from input_checkpoint.training.settings import TrainingSettings

logger = logging.getLogger(__name__)


class MarkedModel(Protocol):
    """The model checkpoint that a mark belongs to."""

    def wait_for_model(self) -> Optional[str]:
        """Return the digest of the model checkpoint, or None if there is none. May wait for it."""


class GraphMarks:
    """Whether the input of a graph can be marked, and whether marks are enough.

    Create it before the graph is finalized.

    Args:
        graph: the graph.
        iterators: its iterators.
        policy: a number from `external_state_policy_number`.
        settings: of the hook.
    """

    def __init__(
        self, graph: Any, iterators: GraphIterators, policy: int, settings: TrainingSettings
    ) -> None:
        self._graph = graph
        self._iterators = iterators
        self._limit = settings.fast_forward_limit
        self._needs_model = settings.model_dir is not None and settings.num_workers == 1
        self._digests = BatchDigests(graph)
        self._seeds_matter = any(map(restarts_at_random, iterators.pipelines.values()))
        self._why_not = self._find_obstacle(policy, settings)

    @property
    def why_not(self) -> Optional[str]:
        """Why marks are of no use for this input, or None if they can be written."""
        return self._why_not

    @property
    def why_not_alone(self) -> Optional[str]:
        """Why the input must be saved in full whenever the model is, or None if marks are enough."""
        if self._why_not is None and self._seeds_matter:
            return (
                "its shuffle has no seed, so another process would draw the next pass in another order. Pass "
                "a seed to shuffle"
            )
        return self._why_not

    def prepare_batches(self, batches: Iterator[ElementBatch]) -> Iterator[ElementBatch]:
        """Return the elements of a state in the form in which they are restored fastest."""
        # The seeds are read from the elements.
        return batches if self._seeds_matter else check_batches(batches)

    def bind(self, source: SessionIterators, guard: DrawGuard) -> SessionMarks:
        """Return the marks of one session."""
        drawable = DrawableIterators(
            source, ShuffleSeeds(self._iterators.pipelines) if self._seeds_matter else None
        )
        counting = _Counting(guard, source.names, self._digests) if self._why_not is None else None
        return SessionMarks(drawable, counting, self._needs_model, self._limit)

    def _find_obstacle(self, policy: int, settings: TrainingSettings) -> Optional[str]:
        if settings.fast_forward_limit.forbids_all:
            return "max_fast_forward forbids it"
        if settings.resume == "latest":
            return "with resume='latest', marks are not used"
        for name in self._iterators.names:
            reason = why_not_repeatable(self._iterators.pipelines.get(name), policy)
            if reason is not None:
                return f"iterator {name!r} cannot be fast-forwarded: {reason.rstrip('.')}"
        return why_not_countable(self._graph, self._digests)


class SessionMarks:
    """The marks of one session.

    Args:
        source: the iterators.
        counting: counts what is drawn. None: no marks are written.
        needs_model: whether a mark without a model checkpoint is of no use.
        limit: how far the input may be fast-forwarded.
    """

    def __init__(
        self,
        source: DrawableIterators,
        counting: Optional[_Counting],
        needs_model: bool,
        limit: FastForwardLimit,
    ) -> None:
        self.source = source
        self._limit = limit
        self._last_step = 0
        self._counting = counting
        self._needs_model = needs_model
        self._bases: Bases[Position] = Bases()
        self._complaints: set[str] = set()

    @property
    def are_written(self) -> bool:
        """Whether marks are written at all."""
        return self._counting is not None

    def stop(self) -> None:
        """Write no more marks, because this input does not repeat itself."""
        self._counting = None

    def resumed(self, resumed: Optional[Resumed], step: int, before_model: Callable[[], None]) -> None:
        """Begin to count draws.

        Args:
            resumed: where the input was restored to. None: it starts from its beginning.
            step: the global step.
            before_model: called after a run after which a mark may be due, before TensorFlow saves the model.
        """
        self._last_step = step
        if self._counting is None:
            return
        base = self._counting.begin(resumed, before_model)
        self._bases = Bases(None if resumed is None else Base(resumed.base, base))

    def saving(self, step: int) -> None:
        """Note that the present state is being saved. Later marks can lean on it."""
        if self._counting is not None:
            self._bases.saving(step, self._counting.position)

    def have_base(self, saver: BackgroundSaver) -> bool:
        """Whether there is a checkpoint that a mark can lean on. True as well if no marks are written."""
        return self._counting is None or self._bases.newest(saver.last_committed) is not None

    def is_far(self, step: int, saver: BackgroundSaver) -> bool:
        """Whether the next mark would be farther from its base than the limit allows.

        Call it once for each step at which something is due: it expects the next one at the same distance.
        """
        committed = self._bases.newest(saver.last_committed)
        # Of a save that has failed, nothing is left to lean on.
        base = self._bases.newest_step if saver.busy or committed is None else committed.ref.step
        since, self._last_step = step - self._last_step, step
        return base is not None and not self._limit.allows_steps(step + since - base)

    def prepare(
        self, step: int, model: Optional[MarkedModel], saver: BackgroundSaver, *, is_saved_now: bool
    ) -> Optional[Callable[[], None]]:
        """Return a function that writes the mark of the present state, or None if there can be none.

        Args:
            step: the global step.
            model: the model that is being saved. None: it is not being saved yet.
            saver: of the run.
            is_saved_now: whether another mark or a save of this step follows.
        """
        counting = self._counting
        base = self._bases.newest(saver.last_committed)
        if counting is None or base is None:
            return None
        position = counting.position
        drawn = draws_between(base.position, position)
        if isinstance(drawn, str):
            if not is_saved_now:
                self._complain(drawn, step)
            return None
        pending = PendingMark(
            step,
            position,
            draws_between,
            find_model=_no_model if model is None else model.wait_for_model,
            needs_model=model is not None and self._needs_model,
            # At once, if the model is about to be saved. Its mark with the digest is written after the check.
            check_fence=model is not None,
        )
        bases, run = self._bases, saver.run
        return lambda: write_mark(run, pending, bases, lambda: saver.last_committed)

    def _complain(self, reason: str, step: int) -> None:
        if reason not in self._complaints:
            self._complaints.add(reason)
            logger.warning(
                "The input cannot be marked at step %d: %s. It is saved in full instead, now and whenever "
                "this happens again.",
                step,
                reason,
            )


def _no_model() -> Optional[str]:
    return None


class _Counting:
    """Counts the draws of one session."""

    def __init__(self, guard: DrawGuard, names: Iterable[str], digests: BatchDigests) -> None:
        self._guard = guard
        self._names = tuple(names)
        self._digests = digests

    def begin(self, resumed: Optional[Resumed], before_model: Callable[[], None]) -> Position:
        """Begin to count. Return the position of the input in the checkpoint that was restored."""
        mark = None if resumed is None else resumed.mark
        start = () if mark is None else (mark.draws, mark.digests)
        counter = DrawCounter(self._names, *start)
        self._guard.count(counter, self._digests, before_model)
        return counter.base

    @property
    def position(self) -> Position:
        """The position of the input that a save would store now."""
        position = self._guard.position
        assert position is not None, "begin() comes first"
        return position
