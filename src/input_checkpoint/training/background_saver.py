"""The background thread of a face: snapshot in, committed checkpoint out."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef
from input_checkpoint.errors import InputCheckpointError, SnapshotLostError
from input_checkpoint.format.lineage import Lineage
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.training.background_prune import BackgroundPrune
from input_checkpoint.training.source import Snapshot

logger = logging.getLogger(__name__)

BUSY_MODES = ("wait", "skip")


class BackgroundSaver:
    """Saves checkpoints of one lineage behind the training thread's back, one at a time.

    The snapshot itself is taken in the background too; `wait_for_snapshot` must return before the iterators
    move on. A save that fails is raised by the next call of `check`, `submit` or `wait`, once. Old
    checkpoints are pruned beside the saves, which never wait for it.

    Args:
        store: where to.
        lineage: the run that the checkpoints belong to.
        retention: applied after commits.
        when_busy: what `submit` does while the previous save is running: ``'wait'`` for it, or ``'skip'`` the
            new one.
    """

    def __init__(
        self,
        store: CheckpointStore,
        lineage: Lineage,
        retention: RetentionPolicy,
        when_busy: str = "wait",
    ) -> None:
        self._store = store
        self._lineage = lineage
        self._retention = retention
        self._when_busy = when_busy
        self._thread: Optional[threading.Thread] = None
        self._snapshot_taken = threading.Event()
        self._failure: Optional[BaseException] = None
        self._committed: Optional[CheckpointRef] = None
        self._pruning = BackgroundPrune(self._prune)

    @property
    def lineage(self) -> Lineage:
        """The run that this writer's checkpoints belong to."""
        return self._lineage

    @property
    def last_committed(self) -> Optional[CheckpointRef]:
        """The newest checkpoint that this writer has committed, or None."""
        return self._committed

    @property
    def busy(self) -> bool:
        """Whether a save is running."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, step: int, take_snapshot: Callable[[], Snapshot]) -> bool:
        """Start saving ``step``. Returns False if the save was skipped because another one is running."""
        if self.busy and self._when_busy == "skip":
            logger.warning(
                "Input checkpoint at step %d skipped: the previous save to %s is still running. "
                "Save less often, or pass when_busy='wait'.",
                step,
                self._store.uri,
            )
            return False
        self._wait_for_save()
        self._snapshot_taken = threading.Event()
        self._thread = threading.Thread(
            target=self._run,
            args=(step, take_snapshot, self._snapshot_taken),
            name=f"input-checkpoint-save-{step}",
        )
        self._thread.start()
        return True

    def wait_for_snapshot(self) -> None:
        """Wait until the iterators may move on. The save itself goes on."""
        if self._thread is not None:
            self._snapshot_taken.wait()
        self.check()

    def wait(self) -> None:
        """Wait until everything submitted is committed and pruned, and raise if it could not be committed."""
        self._wait_for_save()
        self._pruning.wait()
        self.check()

    def check(self) -> None:
        """Raise the failure of an earlier save, if there was one."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _wait_for_save(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _run(self, step: int, take_snapshot: Callable[[], Snapshot], taken: threading.Event) -> None:
        started = time.monotonic()
        try:
            snapshot = take_snapshot()
            stalled = time.monotonic() - started
            taken.set()
            info = self._save(step, snapshot)
        except SnapshotLostError as error:
            # Whoever closed the session knows why; what was saved before is what the next one goes on from.
            logger.warning("Input checkpoint for step %d into %s given up: %s", step, self._store.uri, error)
            return
        except BaseException as error:
            # Carried to the training thread, whatever it is: a save must not fail silently.
            logger.error("Input checkpoint for step %d into %s failed.", step, self._store.uri)
            self._failure = error
            return
        finally:
            # Last, so that who waits for the snapshot finds the failure.
            taken.set()
        logger.info(
            "Saved input checkpoint for step %d into %s: %d elements, %.1f MB in %.2f s "
            "(training waited %.3f s at most).",
            step,
            self._store.uri,
            info.elements,
            info.logical_bytes / 1e6,
            time.monotonic() - started,
            stalled,
        )
        self._pruning.request()

    def _save(self, step: int, snapshot: Snapshot) -> CheckpointInfo:
        logger.info("Saving input checkpoint for step %d into %s.", step, self._store.uri)
        try:
            info = self._store.save(self._lineage, step, snapshot.states())
        finally:
            snapshot.release()
        self._committed = info.ref
        return info

    def _prune(self) -> None:
        try:
            self._store.prune(self._retention, self._lineage.worker, lineage=self._lineage)
        except InputCheckpointError as error:
            # The checkpoint is safe. What could not be removed now is removed after a later save.
            logger.warning("Old input checkpoints could not be removed for now: %s", error)
        except BaseException as error:
            # A retention policy may be the user's own: its mistakes belong into the training thread.
            logger.error("Pruning old input checkpoints in %s failed.", self._store.uri)
            self._failure = error
