"""Fast-forward: draws batches without training on them, until the input is where a mark says."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Callable, Optional

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, MarkRef
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.format.keys import mark_key
from input_checkpoint.format.mark import Mark
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.training.evidence import ModelEvidence, proves, refutes
from input_checkpoint.training.fast_forward_limit import FastForwardLimit
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.read_ahead import ReadAhead
from input_checkpoint.training.source import DrawableSource, DrawError

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 10.0
_CHUNK_SECONDS = 0.5
"""How long one call of `DrawableSource.skip` should take, so that progress can be shown."""
_MAX_CHUNK = 1 << 16


class MarkRefusedError(Exception):
    """A mark is not used, because the input was not proven to be where it says."""


class _OtherBatchesError(MarkRefusedError):
    """The pipeline did not return the batches that training has drawn."""


class FastForward:
    """Restores the input to marks: restores the base, then draws. Remembers which marks were refused.

    Args:
        store: where the marks are.
        limit: how far to go.
        progress: reports long fast-forwards.
        is_possible: whether the pipeline draws the same batches again.
        read_ahead: reads the bases. None: they are read from ``store`` when they are restored.
    """

    def __init__(
        self,
        store: CheckpointStore,
        limit: FastForwardLimit,
        progress: Progress,
        is_possible: bool = True,
        read_ahead: Optional[ReadAhead] = None,
    ) -> None:
        self._store = store
        self._read_base = store.read if read_ahead is None else read_ahead.read
        self._limit = limit
        self._progress = progress
        self._is_possible = is_possible
        self._refused: set[MarkRef] = set()
        self._has_failed = False
        self._refuted: set[CheckpointRef] = set()
        """Runs and steps that have a mark with the digest of another model."""

    @property
    def has_failed(self) -> bool:
        """Whether a fast-forward has drawn other batches than training did. No mark is tried after that."""
        return self._has_failed

    def candidates(self, listing: WorkerListing, step: int) -> list[MarkRef]:
        """Return the marks of ``step`` to try, best first: those with the newest base.

        Marks that a restart has left behind come last. They are used only if their digest proves that they
        belong to the model.
        """
        usable = [mark for mark in listing.usable_marks if mark.ref.step == step]
        left_behind = [
            mark
            for mark in listing.marks
            if mark.ref.step == step and mark not in usable and mark.base in listing.checkpoints
        ]
        return self._allowed([*_newest_base_first(usable), *_newest_base_first(left_behind)])

    def older(self, listing: WorkerListing, step: int) -> list[MarkRef]:
        """Return the marks of the steps before ``step``, best first."""
        marks = _newest_base_first(mark for mark in listing.usable_marks if mark.ref.step < step)
        return self._allowed(sorted(marks, key=lambda mark: mark.ref.step, reverse=True))

    def too_far(self, listing: WorkerListing, step: int) -> Optional[MarkRef]:
        """Return a mark of ``step`` that is not tried only because of the limit, or None."""
        marks = [mark for mark in listing.usable_marks if mark.ref.step == step]
        return marks[-1] if self._is_possible and marks and not any(map(self._limit.reaches, marks)) else None

    def _allowed(self, marks: Iterable[MarkRef]) -> list[MarkRef]:
        if not self._is_possible or self._has_failed:
            return []
        return [mark for mark in marks if mark not in self._refused and self._limit.reaches(mark)]

    def read(self, ref: MarkRef, listing: WorkerListing, model: ModelEvidence) -> Mark:
        """Read a mark.

        Args:
            ref: one of the `candidates`.
            listing: what the worker has stored.
            model: the model checkpoints that exist.

        Raises:
            CheckpointNotFoundError: it does not exist, or does not belong to the model checkpoint of its step
                that exists.
            CorruptCheckpointError: it is damaged.
        """
        mark = self._store.read_mark(ref)
        step = ref.ref.step
        if refutes(mark.model_digest, step, model):
            self._refuted.add(ref.ref)
        # Another mark of that step may have been written before its model, without a digest.
        is_left_behind = ref not in listing.usable_marks
        if ref.ref in self._refuted:
            raise self._unusable(
                ref,
                f"was written with another model than the model checkpoint of step {step} that exists now",
            )
        if is_left_behind and not proves(mark.model_digest, step, model):
            raise self._unusable(
                ref,
                "was left behind by a restart, and nothing proves that it belongs to the model checkpoint of "
                f"step {step} that exists now",
            )
        return mark

    def _unusable(self, ref: MarkRef, reason: str) -> CheckpointNotFoundError:
        uri = self._store.uri
        return CheckpointNotFoundError(f"the {ref} in {uri} {reason}", uri=uri, ref=ref.ref)

    def restore(
        self,
        source: DrawableSource,
        ref: MarkRef,
        listing: WorkerListing,
        model: ModelEvidence,
        check_pipeline: Callable[[CheckpointInfo], None],
    ) -> Mark:
        """Restore the base of a mark, draw up to the mark, and check that it was reached.

        Raises:
            MarkRefusedError: the base cannot be restored, other batches were drawn, or drawing took too long.
                The iterators must be restored again.
            CheckpointNotFoundError, CorruptCheckpointError: the mark cannot be used.
            PipelineMismatchError: the base was taken from another pipeline.
        """
        started = time.monotonic()
        mark = self.read(ref, listing, model)
        try:
            self._restore_base(source, ref, check_pipeline)
            _Drawing(self._limit, self._progress, mark).draw(source)
        except MarkRefusedError as error:
            self._refuse(ref, error)
            raise
        self._progress.fast_forwarded(mark, time.monotonic() - started)
        return mark

    def _restore_base(
        self, source: DrawableSource, ref: MarkRef, check_pipeline: Callable[[CheckpointInfo], None]
    ) -> None:
        started = time.monotonic()
        try:
            base = self._read_base(ref.base)
            check_pipeline(base.info)
            source.restore(base.states)
        except (CorruptCheckpointError, CheckpointNotFoundError) as error:
            raise MarkRefusedError(str(error)) from error
        self._progress.restored(base.info, time.monotonic() - started)

    def _refuse(self, ref: MarkRef, error: MarkRefusedError) -> None:
        self._refused.add(ref)
        self._has_failed = self._has_failed or isinstance(error, _OtherBatchesError)
        logger.warning(
            "The input could not be fast-forwarded from step %d to step %d: %s. (%s in %s)%s",
            ref.base.step,
            ref.ref.step,
            error,
            mark_key(ref),
            self._store.uri,
            " From now on, the input is saved in full whenever the model is." if self._has_failed else "",
        )


class _Drawing:
    """One fast-forward."""

    def __init__(self, limit: FastForwardLimit, progress: Progress, mark: Mark) -> None:
        self._limit = limit
        self._progress = progress
        self._mark = mark
        self._started = self._reported = time.monotonic()
        self._drawn = 0

    def draw(self, source: DrawableSource) -> None:
        """Draw what the mark says from every iterator, and compare the last batch of each."""
        wanted = self._mark.draws
        try:
            drawn = {name: self._draw_from(source, name, count) for name, count in wanted.items() if count}
            doubt = source.doubt()
        except DrawError as error:
            raise _OtherBatchesError(str(error)) from error
        if doubt is not None:
            raise _OtherBatchesError(doubt)
        for name, digest in drawn.items():
            if digest != self._mark.digests.get(name):
                raise _OtherBatchesError(
                    f"the last of {wanted[name]} batches drawn from iterator {name!r} is not the one that "
                    "the model was trained on. The data or a seed has changed, or the pipeline is not "
                    "deterministic"
                )

    def _draw_from(self, source: DrawableSource, name: str, count: int) -> str:
        chunk, left = 1, count - 1
        while left:
            began = time.monotonic()
            chunk = min(chunk, left)
            source.skip(name, chunk)
            left -= chunk
            self._advanced(chunk)
            chunk = _next_chunk(chunk, time.monotonic() - began)
        digest = source.draw(name)
        self._advanced(1)
        return digest

    def _advanced(self, count: int) -> None:
        self._drawn += count
        now = time.monotonic()
        elapsed = now - self._started
        if not self._limit.allows(elapsed):
            raise MarkRefusedError(
                f"drawing took longer than max_fast_forward allows ({self._limit.seconds:g} s)"
            )
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            total = sum(self._mark.draws.values())
            self._progress.fast_forwarding(self._mark, self._drawn, elapsed * (total / self._drawn - 1))


def _newest_base_first(marks: Iterable[MarkRef]) -> list[MarkRef]:
    return sorted(marks, key=lambda mark: (mark.base, mark.ref), reverse=True)


def _next_chunk(chunk: int, seconds: float) -> int:
    """Return how many batches to draw at once, if the last ``chunk`` took so many seconds.

    >>> _next_chunk(16, 0.001), _next_chunk(16, 1.0)
    (32, 8)
    """
    if seconds < _CHUNK_SECONDS / 2:
        return min(2 * chunk, _MAX_CHUNK)
    return max(1, round(chunk * _CHUNK_SECONDS / seconds)) if seconds > _CHUNK_SECONDS else chunk
