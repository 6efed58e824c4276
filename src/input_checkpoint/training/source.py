"""Where input state comes from and goes back to: what every integration implements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional, Protocol

from input_checkpoint.state import IteratorState, StoredState


class Snapshot(Protocol):
    """The state of some iterators, held in memory."""

    def states(self) -> Iterable[IteratorState]:
        """Return the encoded state of each iterator. May be called from any thread.

        Raises:
            SnapshotLostError: whatever held the snapshot is gone. May also be raised while a state is read.
        """

    def release(self) -> None:
        """Free the memory."""


class InputSource(Protocol):
    """The iterators of one input pipeline, bound to the session or loop that runs them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the iterators."""

    def snapshot(self) -> Snapshot:
        """Hold the state of all iterators in memory. The iterators may advance as soon as this returns.

        Raises:
            UnsupportedPipelineError: the state of one of the iterators cannot be saved.
        """

    def restore(self, states: Iterable[StoredState]) -> None:
        """Put the iterators back into a stored state. They change only after all of it has been read.

        Raises:
            PipelineMismatchError: the state was not taken from these iterators.
            CorruptCheckpointError: raised by ``states``.
        """


class DrawError(Exception):
    """The input cannot be drawn from, because it has ended or is broken."""


class DrawableSource(InputSource, Protocol):
    """An input source whose batches can be drawn without training on them."""

    def skip(self, name: str, count: int) -> None:
        """Draw ``count`` batches from one iterator and discard them.

        Raises:
            DrawError: it has ended, or is broken.
        """

    def draw(self, name: str) -> str:
        """Draw one batch from one iterator, and return its digest in hexadecimal.

        Raises:
            DrawError: it has ended, or is broken.
        """

    def doubt(self) -> Optional[str]:
        """Return why training may have drawn something else since the restored state, or None.

        Called once, after everything is drawn.
        """
