"""The iterators of a session, and how to draw from them without training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Optional

import tensorflow as tf

from input_checkpoint.errors import UnsupportedPipelineError
from input_checkpoint.state import StoredState
from input_checkpoint.tensorflow.iterators import TRANSIENT_ERRORS, SessionIterators, SessionSnapshot
from input_checkpoint.tensorflow.shuffle_seeds import ShuffleSeeds, began_another_pass
from input_checkpoint.training.source import DrawError


class DrawableIterators:
    """The iterators of a session, and how to draw from them without training: a `DrawableSource`.

    Args:
        iterators: in one session.
        seeds: reads the seeds of the shuffles. None: they do not matter.
    """

    def __init__(self, iterators: SessionIterators, seeds: Optional[ShuffleSeeds]) -> None:
        self._iterators = iterators
        self._seeds = seeds

    @property
    def names(self) -> tuple[str, ...]:
        """See `InputSource.names`."""
        return self._iterators.names

    def snapshot(self) -> SessionSnapshot:
        """See `InputSource.snapshot`."""
        return self._iterators.snapshot()

    def restore(self, states: Iterable[StoredState]) -> None:
        """See `InputSource.restore`."""
        self._iterators.restore(states if self._seeds is None else self._seeds.tap(states))

    def skip(self, name: str, count: int) -> None:
        """See `DrawableSource.skip`."""
        with _draw_errors(name):
            self._iterators.skip(name, count)

    def draw(self, name: str) -> str:
        """See `DrawableSource.draw`."""
        with _draw_errors(name):
            return self._iterators.draw(name)

    def doubt(self) -> Optional[str]:
        """See `DrawableSource.doubt`."""
        if self._seeds is None:
            return None
        snapshot = self._iterators.snapshot()
        try:
            after = self._seeds.seeds_in(snapshot.states())
        finally:
            snapshot.release()
        if not began_another_pass(self._seeds.restored, after):
            return None
        return "a shuffle without a seed has begun another pass, in an order that no other process can repeat"


@contextlib.contextmanager
def _draw_errors(name: str) -> Iterator[None]:
    try:
        yield
    except tf.errors.OutOfRangeError as error:
        raise DrawError(f"iterator {name!r} has run out of data") from error
    except TRANSIENT_ERRORS:
        raise
    except (tf.errors.OpError, UnsupportedPipelineError) as error:
        raise DrawError(f"iterator {name!r} cannot be drawn from: {error}") from error
