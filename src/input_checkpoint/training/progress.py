"""What a run tells its user: one line when it begins, and one for each save, restore and fast-forward."""

from __future__ import annotations

import logging
from typing import Optional

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.format.mark import Mark
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.training.settings import TrainingSettings


class Progress:
    """Logs at level INFO, where the integration's own framework reports as well.

    Args:
        uri: of the store, without secrets.
        logger: of the framework, such as ``tf.get_logger()``.
    """

    def __init__(self, uri: str, logger: logging.Logger) -> None:
        self._uri = uri
        self._logger = logger

    def begun(
        self,
        settings: TrainingSettings,
        listing: WorkerListing,
        restored: Optional[CheckpointRef],
        with_model: bool = False,
    ) -> None:
        """Say where a run saves, how often, what it keeps, what it found and what it resumes from.

        Args:
            settings: of the integration.
            listing: what the worker has stored.
            restored: where the input was restored to. None: it starts from its beginning.
            with_model: whether the input is saved whenever the model is, however rarely the settings say.
        """
        history = listing.history
        count = f"{len(history)} checkpoint{'s' if len(history) > 1 else ''}"
        found = f"{count}, up to step {history[-1].step}" if history else "no checkpoints"
        source = "the beginning of the input" if restored is None else f"step {restored.step}"
        self._logger.info(
            "Input checkpoints of worker %s go to %s %s, keeping %r. Found %s there; starting from %s.",
            settings.worker,
            self._uri,
            "whenever the model is saved" if with_model else f"every {_interval(settings)}",
            settings.retention,
            found,
            source,
        )

    def restored(self, info: CheckpointInfo, seconds: float) -> None:
        """Say that the input was restored."""
        self._logger.info(
            "Restored the input from %s to step %d: %s in %.2f s.",
            self._uri,
            info.step,
            format_bytes(info.logical_bytes),
            seconds,
        )

    def fast_forwarding(self, mark: Mark, drawn: int, seconds_left: float) -> None:
        """Say how far a fast-forward has come."""
        self._logger.info(
            "Fast-forwarding the input to step %d: %d of %d batches drawn, about %s left.",
            mark.ref.ref.step,
            drawn,
            sum(mark.draws.values()),
            _duration(seconds_left),
        )

    def fast_forwarded(self, mark: Mark, seconds: float) -> None:
        """Say that the input was fast-forwarded, and how far."""
        self._logger.info(
            "Fast-forwarded the input from step %d to step %d: %d batches drawn without training on them, "
            "%.2f s in all. The last one is the one that the model was trained on.",
            mark.ref.base.step,
            mark.ref.ref.step,
            sum(mark.draws.values()),
            seconds,
        )

    def saved(self, info: CheckpointInfo, paused: float, seconds: float) -> None:
        """Say that the input was saved, and what of it had to be uploaded."""
        self._logger.info(
            "Saved input checkpoint for step %d to %s: %s of %s new, training paused for %.3f s, "
            "stored in %.2f s.",
            info.step,
            self._uri,
            format_bytes(info.stored_bytes),
            format_bytes(info.logical_bytes),
            paused,
            seconds,
        )


def format_bytes(count: int) -> str:
    """Return a size as people read it.

    >>> format_bytes(83_600_000), format_bytes(1_500), format_bytes(12)
    ('83.6 MB', '1.5 KB', '12 bytes')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _duration(seconds: float) -> str:
    """Return a time as people read it.

    >>> _duration(4.2), _duration(150), _duration(9000)
    ('4 s', '2.5 min', '2.5 h')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _interval(settings: TrainingSettings) -> str:
    if settings.save_steps is not None:
        return f"{settings.save_steps} steps"
    return f"{settings.save_secs:g} s"
