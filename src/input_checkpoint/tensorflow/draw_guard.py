"""Reacts to untracked draws: raises an error, or saves the input as it was before them."""

from __future__ import annotations

import logging
from typing import Any, Callable, Optional

from input_checkpoint.errors import UntrackedDrawError
from input_checkpoint.tensorflow.batch_digest import BatchDigests
from input_checkpoint.tensorflow.draw_counter import DrawCounter, Position
from input_checkpoint.tensorflow.draw_watch import DrawWatch
from input_checkpoint.tensorflow.draws import Draw, InputUse
from input_checkpoint.tensorflow.iterators import HeldIterators, SessionIterators

logger = logging.getLogger(__name__)


class DrawGuard:
    """Makes sure that no checkpoint contains untracked draws.

    Args:
        source: the iterators, in one session.
        uri: where checkpoints go, for messages.
        settle: called before a run outside of the hooks changes the input. Waits until no save needs the
            current state any longer.
    """

    def __init__(self, source: SessionIterators, uri: str, settle: Callable[[], None]) -> None:
        self._source = source
        self._uri = uri
        self._settle = settle
        self._is_restored = False
        self._held: Optional[HeldIterators] = None
        self._held_position: Optional[Position] = None
        self._counter: Optional[DrawCounter] = None
        self._watch = DrawWatch(source.session, self._before_change)

    def restored(self) -> None:
        """Note that the input has been restored: its state now belongs to the model."""
        self._is_restored = True

    def count(
        self, counter: DrawCounter, digests: BatchDigests, after_digests: Callable[[], None] = lambda: None
    ) -> None:
        """Count draws from now on.

        Args:
            counter: of this session, which stands where the input has been restored to.
            digests: of the graph.
            after_digests: called after a run with hooks whose digests were taken, before any hook sees it. So
                it comes before TensorFlow saves the model.
        """
        self._counter = counter
        self._watch.count(counter, digests, after_digests)

    def expect(self, arguments: Any, *, with_digests: bool = False) -> None:
        """Announce the run with hooks that comes next.

        Args:
            arguments: ``SessionRunContext.original_args``.
            with_digests: whether a mark may be written after this run. It needs the digest of what is drawn.
        """
        self._watch.expect(arguments, with_digests=with_digests)

    def draws(self, arguments: Any) -> bool:
        """Whether a run with hooks draws from the input."""
        return self._watch.draws(arguments)

    def check(self, arguments: Any, step: int) -> None:
        """Raise UntrackedDrawError if a run outside of the hooks drew from the input of the training.

        Args:
            arguments: those of the run with hooks that comes next, or has just ended.
            step: the global step, for the message.
        """
        draw = self._watch.conflict(arguments)
        self._forget()
        if draw is not None:
            raise self._error(draw, step)

    def end(self, step: int, reached: int) -> None:
        """Check at the end of training. Here, hooks may draw for their last report, which does no harm.

        Args:
            step: the global step.
            reached: the global step after the last run with hooks.
        """
        self._watch.stop()
        untracked = self._watch.untracked
        if not untracked:
            return
        if step != reached:
            self._forget()
            raise self._error(untracked[0], reached)
        if self._is_restored:
            logger.warning(
                "After the last run with hooks, another run drew from the input (fetch %r). The input "
                "checkpoint of step %d in %s is the state before it. If that run trains the model, use "
                "session.run or step_context.run_with_hooks.",
                untracked[0].fetch,
                step,
                self._uri,
            )

    @property
    def source(self) -> SessionIterators:
        """The iterators as the last run with hooks left them."""
        return self._held or self._source

    @property
    def position(self) -> Optional[Position]:
        """The position of `source`, if draws are counted."""
        if self._held is not None or self._counter is None:
            return self._held_position
        return self._counter.position()

    def saved(self) -> None:
        """A save has taken over `source`, and releases it."""
        self._held = self._held_position = None

    def close(self) -> None:
        """Release the state that is held."""
        self._forget()

    def _before_change(self, use: InputUse) -> None:
        if not self._is_restored:
            return
        self._settle()
        if use.draws and self._held is None:
            self._held_position = self.position
            self._held = self._source.hold()

    def _forget(self) -> None:
        self._watch.clear()
        held, self._held = self._held, None
        self._held_position = None
        if held is not None:
            held.taken.release()

    def _error(self, draw: Draw, step: int) -> UntrackedDrawError:
        when = f"after global step {step}" if self._is_restored else "before the input was restored"
        return UntrackedDrawError(
            f"A run outside of the session hooks drew from the input {when} (fetch {draw.fetch!r}). The "
            f"input no longer matches the model, so it is not saved to {self._uri}. Use session.run or "
            "step_context.run_with_hooks in place of the raw session. In a hook, return the fetch from "
            "before_run, in SessionRunArgs.",
            uri=self._uri,
        )
