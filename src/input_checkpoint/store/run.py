"""A run: one process's right to save and prune a worker's checkpoints, until a newer run begins."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Callable, Optional, Union

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, MarkRef, SaveContext
from input_checkpoint.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    InconsistentListingError,
    ObjectExistsError,
    WriterSupersededError,
)
from input_checkpoint.format.keys import (
    MAX_LINEAGE,
    check_step,
    check_worker,
    lineage_key,
    lineages_prefix,
    mark_key,
)
from input_checkpoint.format.lineage import Lineage, encode_lineage, next_lineage
from input_checkpoint.format.manifest import Manifest
from input_checkpoint.format.mark import Mark, encode_mark
from input_checkpoint.parallel import run_both
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.state import IteratorState
from input_checkpoint.store.catalog import Catalog, WorkerListing, saved_refs
from input_checkpoint.store.contradictions import inconsistent_listing
from input_checkpoint.store.fencing import Fence
from input_checkpoint.store.leftovers import remove_leftovers
from input_checkpoint.store.pruning import ORPHAN_AGE_SECONDS, Pruner, PruneReport, ReleasedPacks
from input_checkpoint.store.saving import CheckpointSaver, SaveOptions

_NO_CONTEXT = SaveContext()
_ATTEMPTS = 100


class Run:
    """Saves and prunes the checkpoints of one worker. Get one from `CheckpointStore.begin_run`.

    One save runs at a time; `prune` and `mark` may run beside it in other threads.

    Args:
        catalog: of the store.
        lineage: the record that this run has opened.
        options: how saves are made.
        released: data that this process has released and not yet removed.
        base: the checkpoint that was restored; None: the parent of ``lineage``.

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
        self,
        catalog: Catalog,
        lineage: Lineage,
        options: SaveOptions,
        released: ReleasedPacks,
        base: Optional[CheckpointRef] = None,
    ) -> None:
        self._catalog = catalog
        self._lineage = lineage
        self._options = options
        self._released = released
        self._base = lineage.parent if base is None else base
        self._fence = Fence(catalog, lineage.worker, lineage.number)
        self._saver = CheckpointSaver(catalog, lineage, self._fence, options)
        self._has_saved = False
        self._has_removed_leftovers = False

    @property
    def lineage(self) -> Lineage:
        """The record of this run: worker, number, and the history that it continues."""
        return self._lineage

    @property
    def base(self) -> Optional[CheckpointRef]:
        """The checkpoint that was restored when this run began, or None if there was none."""
        return self._base

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
            TypeError: ``step`` is no whole number.
            ValueError: a checkpoint cannot have this step.
            CheckpointTooLargeError: the state is larger than the format allows. Nothing became visible.
            WriterSupersededError: a newer run of this worker has begun. If it began during the commit itself,
                the checkpoint exists, but counts only if the newer run has resumed from it.
            SaveExpiredError: a prune presumed this save dead, and may have removed its data. The checkpoint
                does not exist. The next save is not affected.
            BackendError: the storage failed. Nothing became visible, unless it failed after the commit.
        """
        step = check_step(step)
        header = self._saver.save(
            step,
            iterators,
            context if callable(context) else lambda: context,
            None if self._has_saved else self._prepare_first_save,
        )
        self._catalog.remember(header)
        return header.info

    def mark(
        self,
        step: int,
        base: CheckpointRef,
        draws: Mapping[str, int],
        digests: Mapping[str, str],
        model_digest: Optional[str] = None,
        *,
        check_fence: bool = True,
    ) -> MarkRef:
        """Write a mark: how far the input had been drawn since a full checkpoint when the model was saved.

        A mark costs one small object, and a listing unless ``check_fence`` is False. It replaces an earlier
        mark of the same step and base. Any thread may write a mark, also during a save or a prune.

        Args:
            step: global step of the model.
            base: the full checkpoint. It comes before ``step``.
            draws: how often each iterator was drawn from since ``base``, by its name.
            digests: digest of the last element drawn from each iterator that was drawn from, in hexadecimal.
            model_digest: digest of the model checkpoint of this step, in hexadecimal; None if it is unknown.
            check_fence: whether to check first that no newer run has begun. False saves a listing. Pass it
                only if a mark or save that checks follows: until then, a superseded run is not noticed.

        Raises:
            TypeError: ``step`` or a number of draws is no whole number.
            ValueError: ``base`` does not come before ``step``, or ``draws`` and ``digests`` contradict each
                other.
            CheckpointTooLargeError: the mark would be larger than the format allows.
            WriterSupersededError: a newer run of this worker has begun. Nothing was written.
            BackendError: the storage failed.

        Example:
            >>> from input_checkpoint import CheckpointStore
            >>> run = CheckpointStore.open("memory://mark-example", create=True).begin_run("main")
            >>> base = run.save(500, []).ref
            >>> print(run.mark(530, base, draws={"Iterator": 30}, digests={"Iterator": "9f3c"}))
            mark at step 530 (worker main, lineage 1, from step 500)
        """
        ref = MarkRef(CheckpointRef(self._lineage.worker, self._lineage.number, step), base)
        data = encode_mark(Mark(ref, draws, digests, model_digest))
        if check_fence:
            self._fence.check_may_save()
        self._catalog.backend.put(mark_key(ref), data)
        return ref

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
            InconsistentListingError: the storage's answers contradict each other. No data was removed.
            BackendError: the storage failed. The next call removes what is left.
        """
        self._fence.check_may_save()
        pruner = Pruner(self._catalog, self._lineage, self._fence, self._released, self._saver)
        report = pruner.prune(policy, orphan_age, dry_run)
        if not dry_run and not self._has_removed_leftovers:
            remove_leftovers(self._catalog.backend, self._lineage.worker)
            self._has_removed_leftovers = True
        return report

    def begin_again(self, parent: CheckpointRef) -> Run:
        """Begin the run that follows this one, so that the step of ``parent`` can be saved once more.

        Both checkpoints of that step are then in the history, the new one after the old one.

        Args:
            parent: the newest checkpoint of this run.

        Raises:
            WriterSupersededError: a newer run of this worker has begun. It is left alone.
            BackendError: the storage failed.
        """
        worker = self._lineage.worker
        lineage = replace(
            next_lineage(worker, self._lineage, parent, saved_refs(self._catalog.list_checkpoints(worker))),
            run_id=self._lineage.run_id,
            start_step=parent.step,
        )
        self._fence.check_may_save()
        if not _create_record(self._catalog, lineage):
            self._fence.check_may_save()  # raises, since somebody has just taken the number
            raise _unlisted(self._catalog, worker, lineage.number)
        return Run(self._catalog, lineage, self._options, self._released)

    def _prepare_first_save(self) -> None:
        """Let the first save build on the checkpoint that was restored."""
        # Before any data is uploaded: a full save is wasted work if the run is superseded.
        check, read = self._fence.check_may_save, self._read_base
        if self._options.concurrency > 1:
            _, base = run_both(check, read)
        else:
            check()
            base = read()
        if base is not None:
            self._saver.add_manifest(base)
        self._has_saved = True

    def _read_base(self) -> Optional[Manifest]:
        """Return the manifest to build on. None: the first save is a full one."""
        if self._base is None:
            return None
        try:
            return self._catalog.manifest(self._base)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return None


def check_base(base: Optional[CheckpointRef], parent: Optional[CheckpointRef]) -> None:
    """Raise ValueError unless a run that continues from ``parent`` can have restored ``base``."""
    if base is not None and parent is None:
        raise ValueError(f"begin_run(base) is {base}, so parent must be the step that was reached from it")
    if base is not None and parent is not None:
        mark_key(MarkRef(parent, base))  # raises if the base does not come before it


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
        parent: the checkpoint, or the step of a mark, that the run was resumed from; None if the input starts
            from its beginning.
        listing: what the worker has stored, if it is known; None: list it. An outdated listing does no harm:
            if another run has begun since, its number is taken, and the worker is listed again.
        run_id: of the training. None: that of the lineage that ``parent`` belongs to, or a new one.
        start_step: step of the model at which the run begins, if it is known.

    Raises:
        CheckpointNotFoundError: nothing is left of the run that ``parent`` belongs to.
        InconsistentListingError: the storage's answers contradict each other. No run was begun.
    """
    check_worker(worker)
    taken = 0
    for _ in range(_ATTEMPTS):
        if listing is None:
            listing = _list_after(catalog, worker, taken)
        line = listing.lineage
        if line is not None and parent is not None and not line.holds(parent):
            # The run goes back to a checkpoint that the newest run had left behind.
            line = catalog.lineage_holding(parent, saved_refs(listing))
        lineage = replace(
            next_lineage(worker, listing.lineage, parent, saved_refs(listing), line),
            run_id=run_id or _inherited_run_id(line, parent),
            start_step=start_step,
        )
        if _create_record(catalog, lineage):
            return lineage
        taken, listing = lineage.number, None
    raise WriterSupersededError(
        f"{catalog.backend.uri}: {_ATTEMPTS} other runs of worker {worker!r} began while this one tried to. "
        "Stop whatever starts them.",
        uri=catalog.backend.uri,
    )


def _list_after(catalog: Catalog, worker: str, taken: int) -> WorkerListing:
    """List a worker that is known to have a lineage of this number.

    Raises:
        InconsistentListingError: the listing shows only lower numbers.
    """
    listing = catalog.list_worker(worker)
    newest = listing.lineage.number if listing.lineage else 0
    if newest < taken:
        raise _unlisted(catalog, worker, taken)
    return listing


def _unlisted(catalog: Catalog, worker: str, taken: int) -> InconsistentListingError:
    uri, key = catalog.backend.uri, lineage_key(worker, taken)
    return inconsistent_listing(
        f"{uri}: {key} could not be created because it exists, but the listing of {lineages_prefix(worker)} "
        "does not contain it",
        "No run was begun.",
        uri=uri,
        key=key,
    )


def _inherited_run_id(line: Optional[Lineage], parent: Optional[CheckpointRef]) -> str:
    continues = line is not None and parent is not None and line.run_id
    return line.run_id if line is not None and continues else uuid.uuid4().hex


def _create_record(catalog: Catalog, lineage: Lineage) -> bool:
    """Return False if the number of the lineage is taken."""
    if lineage.number > MAX_LINEAGE:
        uri, key = catalog.backend.uri, lineage_key(lineage.worker, MAX_LINEAGE)
        raise CorruptCheckpointError(
            f"{uri}: worker {lineage.worker!r} has no number left for another run, because {key} exists. "
            "Unless it has run a hundred million times, that record is not genuine: delete it, or choose "
            "another URI.",
            uri=uri,
            key=key,
        )
    try:
        catalog.backend.create(lineage.key, encode_lineage(lineage))
    except ObjectExistsError:
        # It may be our own, if the response to a first attempt was lost.
        try:
            return catalog.lineage(lineage.worker, lineage.number) == lineage
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return False
    return True
