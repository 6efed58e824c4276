"""The store: the collection of checkpoints under one backend URI. Knows nothing of TensorFlow.

Packs first, then the manifest by an atomic create-if-absent: a checkpoint exists if and only if its manifest
does.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Callable, Optional, Union

from input_checkpoint.backends import probing
from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.opening import BackendLocation, open_backend
from input_checkpoint.backends.retrying import DEFAULT_RETRY_POLICY, RetryingBackend, RetryPolicy
from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.errors import (
    BackendNotFoundError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectExistsError,
    WriterSupersededError,
)
from input_checkpoint.format.keys import FORMAT_KEY, check_worker, lineage_key, pin_key
from input_checkpoint.format.lineage import (
    Lineage,
    decode_lineage,
    encode_lineage,
    lost_lineage,
    next_lineage,
)
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.state import IteratorState, StoredState
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.store.copying import CopyProgress, CopyReport, copy
from input_checkpoint.store.format_version import create_store, is_store
from input_checkpoint.store.pins import read_pins, write_pin
from input_checkpoint.store.pruning import ORPHAN_AGE_SECONDS, Pruner, PruneReport, ReleasedPacks
from input_checkpoint.store.saving import LineageSaver, SaveOptions, describe_process
from input_checkpoint.store.verification import VerifyReport, verify

_DEFAULT_OPTIONS = SaveOptions()


class CheckpointStore:
    """Checkpoints under one URI.

    Safe to use from several threads. Open it with `CheckpointStore.open`.

    Example:
        >>> store = CheckpointStore.open("memory://tour", create=True)
        >>> lineage = store.open_lineage("main", parent=None)
        >>> info = store.save(lineage, 100, [IteratorState("Iterator", [(b"key", b"payload")])])
        >>> [checkpoint.step for checkpoint in store.checkpoints()]
        [100]
        >>> [state.in_order() for state in store.load(info)]
        [[(b'key', b'payload')]]
    """

    def __init__(self, backend: Backend, options: SaveOptions = _DEFAULT_OPTIONS) -> None:
        self._backend = backend
        self._catalog = Catalog(backend)
        self._options = options
        self._savers: dict[tuple[str, int], LineageSaver] = {}
        self._set_free: defaultdict[str, ReleasedPacks] = defaultdict(ReleasedPacks)

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
            storage_options: handed to the fsspec filesystem.
            create: make a new store if there is none.
            options: how saves are made.
            retry: how long to go on trying when the storage becomes unavailable later. Opening is tried
                once, so that a wrong URI is an error at once. None: everything is tried once.
            probe: write, read and delete a small object, to know now what a save would run into.

        Raises:
            BackendNotFoundError: there is no store at ``uri`` and ``create`` is False.
            UnsupportedFormatError: the store was written by an unknown format version.
            BackendError: the storage cannot be used.
        """
        backend = open_backend(uri, storage_options)
        exists = is_store(backend)
        if not exists and not create:
            raise BackendNotFoundError(
                f"there is no checkpoint store at {backend.uri} (it has no {FORMAT_KEY})"
            )
        if probe:
            probing.probe(backend)
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
        found = self._catalog.refs(worker)
        self._catalog.fetch_headers(found)
        for ref in found:
            with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                infos.append(self.info(ref))
        return infos

    def history(self, worker: str) -> list[CheckpointRef]:
        """Return the checkpoints that this worker can resume from, from old to new.

        Those that an older lineage wrote past the step from which its successor restarted are not among them.
        If the newest lineage's record is damaged, which those are is guessed, and a warning names the record.
        """
        present, newest = self._catalog.checkpoints_and_lineage(worker)
        return newest.history(present) if newest else []

    def newest(self, worker: str) -> CheckpointInfo:
        """Return the newest checkpoint of the worker's history.

        Raises:
            CheckpointNotFoundError: there is none.
        """
        history = self.history(worker)
        if not history:
            raise CheckpointNotFoundError(f"{self.uri} holds no checkpoint of worker {worker!r}")
        return self.info(history[-1])

    def info(self, ref: CheckpointRef) -> CheckpointInfo:
        """Return what is known of one checkpoint. Reads the head of its manifest once.

        Raises:
            CheckpointNotFoundError: it does not exist (any more).
            CorruptCheckpointError: its manifest is damaged.
        """
        return self._catalog.header(ref).info

    def newest_lineage(self, worker: str) -> Optional[Lineage]:
        """Return the lineage that was opened last, or None if there is none.

        If its record is damaged, what can be said without it: see `LostLineage`.
        """
        return self._catalog.checkpoints_and_lineage(worker)[1]

    def open_lineage(self, worker: str, parent: Optional[CheckpointRef]) -> Lineage:
        """Begin a new run of ``worker`` that continues ``parent`` (None: from the beginning of the input).

        From now on every older lineage of the worker is superseded: its writer can no longer save.

        Raises:
            CheckpointNotFoundError: nothing is left of the run that ``parent`` belongs to.
        """
        check_worker(worker)
        while True:
            present, newest = self._catalog.checkpoints_and_lineage(worker)
            line = newest
            if newest and parent and not newest.holds(parent):
                # Back to what the newest run had left behind: the history is the one of that time.
                line = self._line_of(parent, present)
            lineage = next_lineage(worker, newest, parent, present, line)
            if self._created(lineage):
                self._forget_savers_before(lineage)
                return lineage

    def save(self, lineage: Lineage, step: int, iterators: Iterable[IteratorState]) -> CheckpointInfo:
        """Store and commit one checkpoint. It is visible completely or not at all.

        Only what the run's earlier checkpoints do not hold is uploaded. Memory stays bounded however large
        the state is: elements are taken from the streams as uploads make room.

        Raises:
            WriterSupersededError: a newer lineage of this worker has been opened. Nothing became visible.
            BackendError: the storage failed. Nothing became visible, unless it was the very answer to the
                commit that never came.
        """
        header = self._saver(lineage).save(step, iterators)
        self._catalog.remember(header)
        return header.info

    def load(self, checkpoint: Union[CheckpointInfo, CheckpointRef]) -> Iterator[StoredState]:
        """Yield the iterators of a checkpoint. Each one's pieces must be read before the next is asked for.

        Raises:
            CheckpointNotFoundError: it does not exist (any more).
            CorruptCheckpointError: a part of it is missing or damaged. May be raised by any batch, so use
                nothing before the last one.
        """
        ref = _ref(checkpoint)
        manifest = self._catalog.manifest(ref)
        for rows in manifest.iterators():
            pieces = self._catalog.batches(manifest, rows, self._options.concurrency)
            yield StoredState(rows.entry.name, rows.entry.elements, pieces)

    def verify(self, worker: Optional[str] = None, *, read_data: Union[bool, float] = True) -> VerifyReport:
        """Check every checkpoint, of one worker or of all.

        Manifests are read and checked, and the packs that they name must be there and of the right size.

        Args:
            worker: only this one.
            read_data: True reads and checks every chunk, once however many checkpoints share it. A number
                between 0 and 1 does so for that share of the packs, chosen at random. False reads no data.

        Returns:
            What was checked and what is wrong. Nothing is changed.

        Raises:
            BackendError: the storage cannot be read.
        """
        share = 1.0 if read_data is True else float(read_data)
        return verify(self._catalog, self._catalog.refs(worker), share, self._options.concurrency)

    def prune(
        self,
        policy: RetentionPolicy,
        worker: Optional[str] = None,
        *,
        dry_run: bool = False,
        lineage: Optional[Lineage] = None,
        orphan_age: float = ORPHAN_AGE_SECONDS,
    ) -> PruneReport:
        """Remove the checkpoints that ``policy`` does not keep, and what crashes have left behind.

        The newest checkpoint of each worker's history stays in any case: that is the one that a run resumed
        from, until it has committed a newer one. So does every pinned one, also where the history has left it
        behind. Manifests go before the data they name, and data only while no save is in flight. While the
        record of a worker's newest lineage is damaged, it is not known what its history is: all of its
        checkpoints stay until the next run has begun, and only what crashes have left is removed.

        Args:
            policy: what to keep.
            worker: only this one; None means every worker of the store, also those that have died before
                they committed anything.
            dry_run: only report.
            lineage: the caller's own, if the caller is a writer: it then stops if it has been superseded,
                and a save of its own that is going on meanwhile is no obstacle.
            orphan_age: seconds after which data that a crash has left is removed.

        Raises:
            WriterSupersededError: ``lineage`` is not the newest any more, or a new run has begun meanwhile.
            BackendError: the storage failed. What was not removed can be removed by the next call.
        """
        reports = [
            self._prune_worker(policy, name, dry_run, lineage, orphan_age)
            for name in ([worker] if worker is not None else self._catalog.workers())
        ]
        return PruneReport(
            kept={ref: reason for report in reports for ref, reason in report.kept.items()},
            removed=tuple(ref for report in reports for ref in report.removed),
            removed_packs=tuple(key for report in reports for key in report.removed_packs),
        )

    def copy_to(
        self,
        other: CheckpointStore,
        checkpoints: Optional[Iterable[Union[CheckpointInfo, CheckpointRef]]] = None,
        *,
        worker: Optional[str] = None,
        progress: Optional[Callable[[CopyProgress], None]] = None,
    ) -> CopyReport:
        """Copy checkpoints to another store, so that the run goes on there with only its URI changed.

        Everything is checked on the way, and what checkpoints share is copied once. Whole packs are copied,
        so chosen checkpoints bring what they share packs with. Each checkpoint is committed at the target
        when all of it is there, from old to new. A copy that was interrupted is simply made again: it goes on
        with what is missing. So does one that is repeated while the run still saves to this store.

        Pins come along. Retention is the target's own affair.

        Args:
            other: the target: empty, or copied from this store before. Open it with ``create=True``.
            checkpoints: which; None means all, also those that the history has left behind.
            worker: only this one's.
            progress: called after every pack and checkpoint, in this thread.

        Returns:
            What was copied, and what could not be since it is damaged or was removed meanwhile.

        Raises:
            DifferentHistoryError: the target holds another run of the same worker. Nothing of it was changed.
            ValueError: ``other`` is this store.
            BackendError: a storage failed. What has been committed stays; copy again.

        Example:
            >>> store = CheckpointStore.open("memory://old-house", create=True)
            >>> info = store.save(store.open_lineage("main", parent=None), 100, [])
            >>> other = CheckpointStore.open("memory://new-house", create=True)
            >>> store.copy_to(other).copied
            (CheckpointRef(worker='main', lineage=1, step=100),)
            >>> other.newest("main") == info
            True
        """
        if other is self or other.uri == self.uri:
            raise ValueError(f"{self.uri} cannot be copied to itself")
        if checkpoints is None:
            chosen = self._catalog.refs(worker)
        else:
            chosen = [ref for ref in map(_ref, checkpoints) if worker in (None, ref.worker)]
        tell = progress or _tell_nobody
        return copy(self._catalog, other._catalog, chosen, self._options.concurrency, tell)

    def pin(self, checkpoint: Union[CheckpointInfo, CheckpointRef], note: str = "") -> None:
        """Keep a checkpoint until it is unpinned, whatever the retention policy says.

        May be repeated: a note replaces the one before, no note leaves it. A pin holds for clean-ups that
        begin after this call has returned; one that is running meanwhile may have decided already.

        Args:
            checkpoint: any that exists, also one that the worker's history has left behind.
            note: why; told as the reason wherever the checkpoint is kept.

        Raises:
            CheckpointNotFoundError: it does not exist (any more). Nothing is pinned.
            BackendError: the storage failed.

        Example:
            >>> store = CheckpointStore.open("memory://pins", create=True)
            >>> info = store.save(store.open_lineage("main", parent=None), 100, [])
            >>> store.pin(info, note="best so far")
            >>> store.pins()
            {CheckpointRef(worker='main', lineage=1, step=100): 'best so far'}
        """
        ref = _ref(checkpoint)
        write_pin(self._backend, ref, note)
        # Asked after writing, so that a clean-up that came first is noticed. Listed, since what this store
        # remembers of a checkpoint outlives it, and so that a damaged one can be pinned too.
        if not self._catalog.holds(ref):
            self.unpin(ref)
            raise CheckpointNotFoundError(
                f"{self.uri}: checkpoint {ref} does not exist, so it cannot be pinned"
            )

    def unpin(self, checkpoint: Union[CheckpointInfo, CheckpointRef]) -> None:
        """Leave a checkpoint to the retention policy again. One that is not pinned stays as it is.

        Raises:
            BackendError: the storage failed.
        """
        self._backend.delete([pin_key(_ref(checkpoint))])

    def pins(self, worker: Optional[str] = None) -> dict[CheckpointRef, str]:
        """Return the pinned checkpoints, of one worker or of all, each with its note."""
        return read_pins(self._backend, worker)

    def workers(self) -> list[str]:
        """Return the names of all workers that have committed something that is still there."""
        return sorted({ref.worker for ref in self._catalog.refs()})

    def close(self) -> None:
        """Release the backend."""
        self._backend.close()

    def _line_of(self, parent: CheckpointRef, present: Collection[CheckpointRef]) -> Lineage:
        if any(ref.lineage == parent.lineage for ref in present):
            return self._catalog.lineage_of(parent)
        return self._catalog.lineage(parent.worker, parent.lineage)

    def _created(self, lineage: Lineage) -> bool:
        """Put a lineage's record into the store. False if its number is taken."""
        try:
            self._backend.create(lineage.key, encode_lineage(lineage))
        except ObjectExistsError:
            try:
                return decode_lineage(self._backend.get(lineage.key)) == lineage
            except CorruptCheckpointError:
                return False
        return True

    def _saver(self, lineage: Lineage) -> LineageSaver:
        name = lineage.worker, lineage.number
        if name not in self._savers:
            # A superseded one that was forgotten would else upload everything once more before it is told.
            self._check_not_superseded(lineage)
            saver = LineageSaver(
                self._backend,
                lineage,
                lambda: self._catalog.refs(lineage.worker),
                lambda: self._check_not_superseded(lineage),
                self._options,
            )
            if lineage.parent is not None:
                # What cannot be read cannot be built on either: the first save is then a full one.
                with contextlib.suppress(CorruptCheckpointError, CheckpointNotFoundError):
                    saver.add_manifest(self._catalog.manifest(lineage.parent))
            self._savers[name] = saver
        return self._savers[name]

    def _forget_savers_before(self, lineage: Lineage) -> None:
        """Free what the savers of superseded lineages remember: an entry for every chunk."""
        for worker, number in tuple(self._savers):
            if worker == lineage.worker and number < lineage.number:
                self._savers.pop((worker, number), None)

    def _check_not_superseded(self, lineage: Lineage) -> None:
        newest = self._catalog.newest_number(lineage.worker)
        if newest > lineage.number:
            raise WriterSupersededError(
                f"{self.uri}: a newer run of worker {lineage.worker!r} has taken over "
                f"({self._who_opened(lineage.worker, newest)}). This one (lineage {lineage.number}) "
                "can no longer save. Stop it, or give it a URI of its own."
            )

    def _check_no_run_has_begun(self, worker: str, newest: int) -> None:
        # A run that restarts from an older step may need just what the policy would remove.
        now = self._catalog.newest_number(worker)
        if now > newest:
            raise WriterSupersededError(
                f"{self.uri}: a new run of worker {worker!r} has begun while its checkpoints were "
                f"being pruned ({self._who_opened(worker, now)}). Nothing more was removed; "
                "prune again."
            )

    def _who_opened(self, worker: str, number: int) -> str:
        try:
            found = self._catalog.lineage(worker, number)
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return f"lineage {number}, whose record {lineage_key(worker, number)} cannot be read"
        return describe_process(found.host, found.pid, found.created)

    def _prune_worker(
        self,
        policy: RetentionPolicy,
        worker: str,
        dry_run: bool,
        lineage: Optional[Lineage],
        orphan_age: float,
    ) -> PruneReport:
        own = None
        if lineage is not None and lineage.worker == worker:
            self._check_not_superseded(lineage)
            newest: Lineage = lineage
            own = self._savers.get((worker, lineage.number))
        else:
            # Data without any record of a run: as if there had been one of which nothing is known.
            newest = self._catalog.checkpoints_and_lineage(worker)[1] or lost_lineage(worker, 0, None, ())
        pruner = Pruner(
            self._catalog,
            newest,
            lambda: self._check_no_run_has_begun(worker, newest.number),
            self._set_free[worker],
            own,
        )
        return pruner.prune(policy, orphan_age, dry_run)


def _tell_nobody(progress: CopyProgress) -> None:
    """Nobody wants to know."""


def _ref(checkpoint: Union[CheckpointInfo, CheckpointRef]) -> CheckpointRef:
    return checkpoint if isinstance(checkpoint, CheckpointRef) else checkpoint.ref
