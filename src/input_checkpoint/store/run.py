"""A run: one process's right to save and prune a worker's checkpoints, until a newer run begins."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Callable, Optional, Union

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, SaveContext
from input_checkpoint.errors import (
    BackendError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectExistsError,
)
from input_checkpoint.format.keys import check_worker
from input_checkpoint.format.lineage import Lineage, decode_lineage, encode_lineage, next_lineage
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.state import IteratorState
from input_checkpoint.store.catalog import Catalog, WorkerListing
from input_checkpoint.store.fencing import Fence
from input_checkpoint.store.pruning import ORPHAN_AGE_SECONDS, Pruner, PruneReport, ReleasedPacks
from input_checkpoint.store.saving import CheckpointSaver, SaveOptions

_NO_CONTEXT = SaveContext()
_MAX_ATTEMPTS = 100


class Run:
    """Saves and prunes the checkpoints of one worker. Get one from `CheckpointStore.begin_run`.

    One save runs at a time; `prune` may run beside it in another thread.

    Args:
        catalog: of the store.
        lineage: the record that this run has opened.
        options: how saves are made.
        released: data that this process has released and not yet removed.

    Example:
        >>> from input_checkpoint import CheckpointStore, KeepLast
        >>> store = CheckpointStore.open("memory://run-example", create=True)
        >>> run = store.begin_run("main")
        >>> for step in (10, 20, 30):
        ...     info = run.save(step, [IteratorState("Iterator", [(b"key", b"payload")])])
        >>> [ref.step for ref in run.prune(KeepLast(2)).removed]
        [10]
    """

    def __init__(
        self, catalog: Catalog, lineage: Lineage, options: SaveOptions, released: ReleasedPacks
    ) -> None:
        self._catalog = catalog
        self._lineage = lineage
        self._released = released
        self._fence = Fence(catalog, lineage.worker, lineage.number)
        self._saver = CheckpointSaver(catalog, lineage, self._fence, options)
        self._has_saved = False

    @property
    def lineage(self) -> Lineage:
        """The record of this run: worker, number, and the history that it continues."""
        return self._lineage

    @property
    def uri(self) -> str:
        """URI of the store, without secrets."""
        return self._catalog.backend.uri

    def save(
        self,
        step: int,
        iterators: Iterable[IteratorState],
        context: Union[SaveContext, Callable[[], SaveContext]] = _NO_CONTEXT,
    ) -> CheckpointInfo:
        """Store and commit one checkpoint. It becomes visible completely or not at all.

        Only what the run's newest checkpoints do not contain is uploaded. The cost does not depend on how
        many checkpoints there are. What something other than a prune has deleted is uploaded again, with a
        warning. Memory stays bounded, however large the state is: elements are taken from the streams as
        uploads make room.

        Args:
            step: global step of the model.
            iterators: the state of each iterator.
            context: what the training knows about this save. A function is called just before the commit.

        Raises:
            WriterSupersededError: a newer run of this worker has begun. Nothing became visible.
            BackendError: the storage failed. Nothing became visible, unless it was the response to the
                commit itself that was lost.
        """
        if not self._has_saved:
            self._prepare_first_save()
        header = self._saver.save(step, iterators, context if callable(context) else lambda: context)
        self._catalog.remember(header)
        return header.info

    def prune(
        self,
        policy: RetentionPolicy,
        *,
        dry_run: bool = False,
        orphan_age: float = ORPHAN_AGE_SECONDS,
    ) -> PruneReport:
        """Remove the worker's checkpoints that ``policy`` does not keep. See `CheckpointStore.prune`.

        A save of this run that is in progress does not stand in the way.

        Args:
            policy: what to keep.
            dry_run: only report.
            orphan_age: seconds after which data that a crash has left behind is removed.

        Raises:
            WriterSupersededError: a newer run of this worker has begun.
            BackendError: the storage failed. The next call removes what is left.
        """
        self._fence.check_may_save()
        pruner = Pruner(self._catalog, self._lineage, self._fence, self._released, self._saver)
        return pruner.prune(policy, orphan_age, dry_run)

    def _prepare_first_save(self) -> None:
        """Let the first save build on the checkpoint that this run was resumed from."""
        # Before anything is read or uploaded: a full save is wasted work if the run is superseded.
        self._fence.check_may_save()
        parent = self._lineage.parent
        if parent is not None:
            # The first save is a full one if the parent cannot be read.
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                self._saver.add_manifest(self._catalog.manifest(parent))
        self._has_saved = True


def begin_lineage(
    catalog: Catalog,
    worker: str,
    parent: Optional[CheckpointRef],
    listing: Optional[WorkerListing] = None,
    run_id: Optional[str] = None,
    start_step: Optional[int] = None,
) -> Lineage:
    """Write the record of a new lineage, which supersedes every older one of the worker.

    Args:
        catalog: of the store.
        worker: name of the worker.
        parent: the checkpoint that the run was resumed from; None if the input starts from its beginning.
        listing: what the worker has stored, if it is known; None: list it. An outdated listing does no harm:
            if another run has begun since, its number is taken, and the worker is listed again.
        run_id: of the training. None: that of the lineage that ``parent`` belongs to, or a new one.
        start_step: step of the model at which the run begins, if it is known.

    Raises:
        CheckpointNotFoundError: nothing is left of the run that ``parent`` belongs to.
        BackendError: the number of the new record was taken again and again. The storage contradicts itself.
    """
    check_worker(worker)
    for _ in range(_MAX_ATTEMPTS):
        listing = listing or catalog.list_worker(worker)
        line = listing.lineage
        if line is not None and parent is not None and not line.holds(parent):
            # The run goes back to a checkpoint that the newest run had left behind.
            line = catalog.lineage_holding(parent, listing.checkpoints)
        lineage = replace(
            next_lineage(worker, listing.lineage, parent, listing.checkpoints, line),
            run_id=run_id or _inherited_run_id(line, parent),
            start_step=start_step,
        )
        if _create_record(catalog, lineage):
            return lineage
        taken, listing = lineage, None
    raise BackendError(
        f"cannot begin a run of worker {worker!r} in {catalog.backend.uri}: {_MAX_ATTEMPTS} times in a row, "
        f"the storage answered that the number of the new record is taken, at last {taken.key}. Check "
        "whether its listings are up to date, and whether many processes begin runs of this worker.",
        uri=catalog.backend.uri,
        key=taken.key,
    )


def _inherited_run_id(line: Optional[Lineage], parent: Optional[CheckpointRef]) -> str:
    continues = line is not None and parent is not None and line.run_id
    return line.run_id if line is not None and continues else uuid.uuid4().hex


def _create_record(catalog: Catalog, lineage: Lineage) -> bool:
    """Return False if the number of the lineage is taken."""
    try:
        catalog.backend.create(lineage.key, encode_lineage(lineage))
    except ObjectExistsError:
        # It may be our own, if the response to a first attempt was lost.
        try:
            return decode_lineage(catalog.backend.get(lineage.key)) == lineage
        except CorruptCheckpointError:
            return False
    return True
