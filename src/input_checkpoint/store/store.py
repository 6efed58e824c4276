"""The store: the collection of checkpoints under one backend URI. Knows nothing about TensorFlow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from input_checkpoint.backends import probing
from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.opening import BackendLocation, open_backend
from input_checkpoint.backends.retrying import DEFAULT_RETRY_POLICY, RetryingBackend, RetryPolicy
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, MarkRef, with_marks
from input_checkpoint.errors import (
    BackendNotFoundError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
)
from input_checkpoint.format.keys import FORMAT_KEY, check_worker, manifest_key, pin_key
from input_checkpoint.format.lineage import (
    Lineage,
    infer_lineage,
)
from input_checkpoint.format.manifest import Manifest
from input_checkpoint.format.mark import Mark
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.state import StoredState
from input_checkpoint.store.catalog import Catalog, WorkerListing
from input_checkpoint.store.copying import CopyProgress, CopyReport, copy
from input_checkpoint.store.fencing import Fence
from input_checkpoint.store.format_version import create_store, is_store
from input_checkpoint.store.leftovers import remove_leftovers
from input_checkpoint.store.pins import read_pins, write_pin
from input_checkpoint.store.pruning import ORPHAN_AGE_SECONDS, Pruner, PruneReport, ReleasedPacks
from input_checkpoint.store.run import Run, begin_lineage, check_base
from input_checkpoint.store.saving import SaveOptions
from input_checkpoint.store.verification import VerifyReport, verify
from input_checkpoint.whole_numbers import optional_whole_number

_DEFAULT_OPTIONS = SaveOptions()


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that is about to be restored."""

    info: CheckpointInfo
    states: Iterator[StoredState]
    """Its iterators. Read all batches of one before you ask for the next."""


class CheckpointStore:
    """Checkpoints under one URI.

    Safe to use from several threads. Open it with `CheckpointStore.open`.

    Example:
        >>> from input_checkpoint import IteratorState
        >>> store = CheckpointStore.open("memory://tour", create=True)
        >>> run = store.begin_run("main")
        >>> info = run.save(100, [IteratorState("Iterator", [(b"key", b"payload")])])
        >>> [checkpoint.step for checkpoint in store.checkpoints()]
        [100]
        >>> [state.in_order() for state in store.load(info)]
        [[(b'key', b'payload')]]
    """

    def __init__(self, backend: Backend, options: SaveOptions = _DEFAULT_OPTIONS) -> None:
        self._backend = backend
        self._catalog = Catalog(backend)
        self._options = options
        self._released = ReleasedPacks()

    @classmethod
    def open(
        cls,
        uri: BackendLocation,
        storage_options: Optional[Mapping[str, Any]] = None,
        *,
        create: bool = False,
        options: SaveOptions = _DEFAULT_OPTIONS,
        retry: Optional[RetryPolicy] = DEFAULT_RETRY_POLICY,
        probe: bool = False,
    ) -> CheckpointStore:
        """Open the store at ``uri``.

        Args:
            uri: backend URI, a local path, or an open `Backend`.
            storage_options: passed to the fsspec filesystem.
            create: make a new store if there is none.
            options: how saves are made.
            retry: how long to retry when the storage becomes unavailable later. Opening itself is tried once,
                so that a wrong URI is reported at once. None: nothing is retried.
            probe: write, read, list and delete two small objects now, so that a problem with the storage
                shows before the first save.

        Raises:
            BackendNotFoundError: there is no store at ``uri`` and ``create`` is False.
            UnsupportedFormatError: the store has a format version that this release does not know.
            BackendError: the storage cannot be used.
        """
        backend = open_backend(uri, storage_options)
        exists = is_store(backend)
        if not exists and not create:
            raise BackendNotFoundError(
                f"there is no checkpoint store at {backend.uri} (it has no {FORMAT_KEY})",
                uri=backend.uri,
                key=FORMAT_KEY,
            )
        if probe:
            probing.probe(backend, remove_stale=exists)
        if not exists:
            create_store(backend)
        return cls(backend if retry is None else RetryingBackend(backend, retry), options)

    @property
    def uri(self) -> str:
        """URI of the store, without secrets."""
        return self._backend.uri

    def checkpoints(self, worker: Optional[str] = None) -> list[CheckpointInfo]:
        """Return every committed checkpoint, from old to new, of one worker or of all.

        A checkpoint whose manifest is damaged is left out here; loading it raises `CorruptCheckpointError`.
        """
        infos = []
        found = self._catalog.list_checkpoints(worker)
        self._catalog.fetch_headers(found.checkpoints)
        for ref in found.checkpoints:
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                infos.append(self.info(ref))
        return with_marks(infos, found.marks)

    def marks(self, worker: Optional[str] = None) -> list[MarkRef]:
        """Return every mark, from old to new, of one worker or of all.

        Some may be of no use: a restart has left them behind, or their base is gone. See
        `WorkerListing.usable_marks`.
        """
        return list(self._catalog.list_checkpoints(worker).marks)

    def read_mark(self, mark: MarkRef) -> Mark:
        """Read a mark.

        Raises:
            CheckpointNotFoundError: it does not exist (any more).
            CorruptCheckpointError: it is damaged.

        Example:
            >>> store = CheckpointStore.open("memory://marks", create=True)
            >>> run = store.begin_run("main")
            >>> base = run.save(500, []).ref
            >>> ref = run.mark(530, base, draws={"Iterator": 30}, digests={"Iterator": "9f3c"})
            >>> store.read_mark(ref).draws
            {'Iterator': 30}
        """
        return self._catalog.mark(mark)

    def history(self, worker: str) -> list[CheckpointRef]:
        """Return the checkpoints that this worker can resume from, from old to new.

        Those that an older lineage wrote past the step from which its successor restarted are not included.
        If the record of the newest lineage is damaged, its ancestors are guessed, and a warning names the
        record.
        """
        return self.list_worker(worker).history

    def list_worker(self, worker: str, *, read_ahead: bool = False) -> WorkerListing:
        """Return a worker's checkpoints, its marks, its newest lineage and its history, from one listing.

        If the record of the newest lineage is damaged, an `InferredLineage` takes its place.

        Args:
            worker: name of the worker.
            read_ahead: pass True if you are about to `read` the newest checkpoint. Its manifest is then
                requested already, unless it is larger than 1 MiB, and the next `read` does not wait for it.
        """
        return self._catalog.list_worker(worker, read_ahead=read_ahead)

    def newest(self, worker: str) -> CheckpointInfo:
        """Return the newest checkpoint of the worker's history.

        Raises:
            CheckpointNotFoundError: there is none.
        """
        history = self.history(worker)
        if not history:
            raise CheckpointNotFoundError(f"{self.uri} has no checkpoint of worker {worker!r}", uri=self.uri)
        return self.info(history[-1])

    def info(self, ref: CheckpointRef) -> CheckpointInfo:
        """Return what is known about one checkpoint. Its manifest is read once.

        Raises:
            CheckpointNotFoundError: it does not exist (any more).
            CorruptCheckpointError: its manifest is damaged.
        """
        return self._catalog.header(ref).info

    def newest_lineage(self, worker: str) -> Optional[Lineage]:
        """Return the lineage that was opened last, or None if there is none.

        If its record is damaged, an `InferredLineage` takes its place.
        """
        return self.list_worker(worker).lineage

    def begin_run(
        self,
        worker: str,
        parent: Optional[CheckpointRef] = None,
        *,
        listing: Optional[WorkerListing] = None,
        run_id: Optional[str] = None,
        start_step: Optional[int] = None,
        base: Optional[CheckpointRef] = None,
    ) -> Run:
        """Begin a new run of ``worker``: the right to save and prune its checkpoints.

        From now on every older run of the worker is superseded: it can no longer save.

        Args:
            worker: name of the worker.
            parent: the checkpoint that the run is resumed from, or the `MarkRef.ref` of a mark. None: the
                input starts from its beginning.
            listing: what `list_worker` has just returned, to save a request.
            run_id: identity of the training, the same in all of its runs. None: that of the run that
                ``parent`` belongs to, or a new one.
            start_step: step of the model at which the run begins, if it is known.
            base: the checkpoint that was restored, if ``parent`` is the step of a mark. The first save
                uploads only what this checkpoint does not contain. None: ``parent``.

        Raises:
            CheckpointNotFoundError: nothing is left of the run that ``parent`` belongs to.
            TypeError: ``start_step`` is no whole number.
            ValueError: ``worker`` cannot be part of a key, or ``base`` does not come before ``parent``.
            BackendError: the storage failed.

        Example:
            >>> from input_checkpoint import IteratorState
            >>> store = CheckpointStore.open("memory://runs", create=True)
            >>> run = store.begin_run("main")
            >>> info = run.save(100, [IteratorState("Iterator", [(b"key", b"payload")])])
            >>> store.begin_run("main", parent=info.ref).lineage.number
            2
        """
        start_step = optional_whole_number("start_step", start_step)
        check_base(base, parent)
        self._catalog.forget_read_ahead()
        lineage = begin_lineage(self._catalog, worker, parent, listing, run_id, start_step)
        return Run(self._catalog, lineage, self._options, self._released, base)

    def read(self, checkpoint: Union[CheckpointInfo, CheckpointRef]) -> StoredCheckpoint:
        """Return a checkpoint's info and a stream of its iterators, for one reading of its manifest.

        What `list_worker` has read ahead is not read again.

        Raises:
            CheckpointNotFoundError: it does not exist (any more).
            CorruptCheckpointError: its manifest is damaged. The stream may raise it as well: see `load`.
        """
        manifest = self._catalog.take_manifest(_ref(checkpoint))
        return StoredCheckpoint(manifest.header.info, self._states(manifest))

    def load(self, checkpoint: Union[CheckpointInfo, CheckpointRef]) -> Iterator[StoredState]:
        """Yield the iterators of a checkpoint. Read all batches of one before you ask for the next.

        Raises:
            CheckpointNotFoundError: it does not exist (any more).
            CorruptCheckpointError: a part of it is missing or damaged. May be raised by any batch, so use
                nothing before the last one.
        """
        yield from self.read(checkpoint).states

    def check(self, checkpoint: Union[CheckpointInfo, CheckpointRef]) -> CheckpointInfo:
        """Read and check all of one checkpoint, as a restore would.

        Raises:
            CheckpointNotFoundError: it does not exist (any more).
            CorruptCheckpointError: a part of it is missing or damaged.
        """
        ref = _ref(checkpoint)
        report = verify(self._catalog, [ref], 1.0, self._options.concurrency)
        if ref in report.problems:
            raise CorruptCheckpointError(report.problems[ref], uri=self.uri, ref=ref)
        return self.info(ref)

    def _states(self, manifest: Manifest) -> Iterator[StoredState]:
        for rows in manifest.iterators():
            batches = self._catalog.batches(manifest, rows, self._options.concurrency)
            yield StoredState(rows.entry.name, rows.entry.elements, batches)

    def verify(self, worker: Optional[str] = None, *, read_data: Union[bool, float] = True) -> VerifyReport:
        """Check every checkpoint and every mark, of one worker or of all.

        Manifests are read and checked, and the packs that they name must exist and have the right size. Marks
        are read and checked, and the checkpoints that they lean on must exist.

        Args:
            worker: only this one. None: all.
            read_data: True reads and checks every chunk, each one once. A number between 0 and 1 does so for
                that fraction of the packs, chosen at random. False reads no data.

        Returns:
            What was checked and what is wrong. Nothing is changed.

        Raises:
            BackendError: the storage cannot be read.
        """
        share = 1.0 if read_data is True else float(read_data)
        found = self._catalog.list_checkpoints(worker)
        return verify(self._catalog, found.checkpoints, share, self._options.concurrency, found.marks)

    def prune(
        self,
        policy: RetentionPolicy,
        worker: Optional[str] = None,
        *,
        dry_run: bool = False,
        orphan_age: float = ORPHAN_AGE_SECONDS,
    ) -> PruneReport:
        """Remove the checkpoints that ``policy`` does not keep, and what crashes have left behind.

        The newest checkpoint of each worker's history always stays, since a run may have been resumed from
        it. Pinned checkpoints always stay too, even if a restart has left them behind. Manifests are removed
        before the data that they name, and data only while no save is in progress. While the record of a
        worker's newest lineage is damaged, its history is unknown: all of its checkpoints stay until the next
        run has begun, and only data that crashes have left behind is removed.

        A mark is removed with the checkpoint that it leans on, or once a restart has left it behind.

        Removes only objects with names of this library, and the temporary files of crashed writers.
        Everything else in the folder or bucket stays.

        Args:
            policy: what to keep.
            worker: only this one. None: every worker, even one that crashed before its first commit.
            dry_run: only report.
            orphan_age: seconds after which data that a crash has left behind is removed.

        Raises:
            WriterSupersededError: a new run of the worker has begun meanwhile.
            ValueError: ``worker`` cannot be part of a key.
            InconsistentListingError: the storage's answers contradict each other, such as a listing that
                lacks an object that exists. No data was removed.
            BackendError: the storage failed. The next call removes what is left.
        """
        reports = [
            self._prune_worker(policy, name, dry_run, orphan_age)
            for name in ([check_worker(worker)] if worker is not None else self._catalog.workers())
        ]
        return PruneReport(
            kept={ref: reason for report in reports for ref, reason in report.kept.items()},
            removed=tuple(ref for report in reports for ref in report.removed),
            removed_marks=tuple(mark for report in reports for mark in report.removed_marks),
            removed_packs=tuple(key for report in reports for key in report.removed_packs),
            removed_bytes=sum(report.removed_bytes for report in reports),
            held_back_by=tuple(key for report in reports for key in report.held_back_by),
        )

    def copy_to(
        self,
        other: CheckpointStore,
        checkpoints: Optional[Iterable[Union[CheckpointInfo, CheckpointRef]]] = None,
        *,
        worker: Optional[str] = None,
        progress: Optional[Callable[[CopyProgress], None]] = None,
    ) -> CopyReport:
        """Copy checkpoints to another store, so that the run can continue there with only its URI changed.

        Everything is verified during the copy, and what checkpoints share is copied once. Packs are copied
        whole, so a chosen checkpoint brings data along that only others need. Each checkpoint is committed at
        the target when all of it is there, from old to new. To continue an interrupted copy, or to bring over
        what the run has saved since, call it again.

        No data at the target is replaced: a checkpoint is not copied if the target has other data under the
        name of one of its packs. Pins are copied as well, and so are the marks that lean on a copied
        checkpoint. A mark at the target is replaced by a newer one of the same run and step, and if it is
        damaged. Retention is up to the target.

        Args:
            other: the target: empty, or copied from this store before. Open it with ``create=True``.
            checkpoints: which to copy. None: all, even those that a restart has left behind.
            worker: only checkpoints of this one. None: all.
            progress: called after every pack and checkpoint, in this thread.

        Returns:
            What was copied, and what could not be copied because it is damaged or was removed meanwhile.

        Raises:
            DifferentHistoryError: the target holds another run of the same worker. It was not changed.
            SaveExpiredError: a prune of the target presumed this copy dead, because this process was
                suspended or could not reach the target for a day. Copy again.
            ValueError: ``other`` is this store, under whatever name. It was not changed.
            BackendError: a storage failed. What has been committed stays; copy again.

        Example:
            >>> store = CheckpointStore.open("memory://copied-from", create=True)
            >>> info = store.begin_run("main").save(100, [])
            >>> other = CheckpointStore.open("memory://copied-to", create=True)
            >>> store.copy_to(other).copied
            (CheckpointRef(worker='main', lineage=1, step=100),)
            >>> other.newest("main") == info
            True
        """
        if other is self:
            raise ValueError(f"{self.uri} cannot be copied to itself")
        if checkpoints is None:
            chosen = self._catalog.refs(worker)
        else:
            chosen = [ref for ref in map(_ref, checkpoints) if worker in (None, ref.worker)]
        report = progress or _ignore_progress
        return copy(self._catalog, other._catalog, chosen, self._options.concurrency, report)

    def pin(self, checkpoint: Union[CheckpointInfo, CheckpointRef], note: str = "") -> None:
        """Keep a checkpoint until it is unpinned, whatever the retention policy says.

        Pinning again with a note replaces the note; without one it keeps the note. A pin protects from
        prunes that begin after this call has returned: one that is already running may have decided.

        Args:
            checkpoint: any that exists, even one that a restart has left behind.
            note: why it is pinned. A prune reports it as the reason why the checkpoint stays.

        Raises:
            CheckpointNotFoundError: it does not exist (any more). Nothing is pinned.
            BackendError: the storage failed.

        Example:
            >>> store = CheckpointStore.open("memory://pins", create=True)
            >>> info = store.begin_run("main").save(100, [])
            >>> store.pin(info, note="best so far")
            >>> store.pins()
            {CheckpointRef(worker='main', lineage=1, step=100): 'best so far'}
        """
        ref = _ref(checkpoint)
        write_pin(self._backend, ref, note)
        # Checked after writing, so that a prune that came first is noticed; by a listing, so that a damaged
        # checkpoint can be pinned too.
        if not self._catalog.holds(ref):
            self.unpin(ref)
            raise CheckpointNotFoundError(
                f"{self.uri}: checkpoint {ref} does not exist, so it cannot be pinned",
                uri=self.uri,
                key=manifest_key(ref),
                ref=ref,
            )

    def unpin(self, checkpoint: Union[CheckpointInfo, CheckpointRef]) -> None:
        """Let the retention policy decide about a checkpoint again. Does nothing if it is not pinned.

        Raises:
            BackendError: the storage failed.
        """
        self._backend.delete([pin_key(_ref(checkpoint))])

    def pins(self, worker: Optional[str] = None) -> dict[CheckpointRef, str]:
        """Return the pinned checkpoints, of one worker or of all, each with its note."""
        return read_pins(self._backend, worker)

    def workers(self) -> list[str]:
        """Return the names of all workers that have a checkpoint."""
        return sorted({ref.worker for ref in self._catalog.refs()})

    def close(self) -> None:
        """Release the backend's connections. The store is not used afterwards."""
        self._backend.close()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CheckpointStore({self.uri!r})"

    def _prune_worker(
        self, policy: RetentionPolicy, worker: str, dry_run: bool, orphan_age: float
    ) -> PruneReport:
        # Data without any record of a run is pruned as if there had been one of which nothing is known.
        newest = self._catalog.list_worker(worker).lineage or infer_lineage(worker, 0, None, ())
        fence = Fence(self._catalog, worker, newest.number)
        report = Pruner(self._catalog, newest, fence, self._released).prune(policy, orphan_age, dry_run)
        if not dry_run:
            remove_leftovers(self._backend, worker)
        return report


def _ignore_progress(progress: CopyProgress) -> None:
    """Ignore progress."""


def _ref(checkpoint: Union[CheckpointInfo, CheckpointRef]) -> CheckpointRef:
    return checkpoint if isinstance(checkpoint, CheckpointRef) else checkpoint.ref
