"""The background thread that saves: snapshot in, committed checkpoint out."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from typing import Callable, Optional

from input_checkpoint.checkpoint import CheckpointInfo, CheckpointRef, SaveContext
from input_checkpoint.errors import (
    BackendError,
    InputCheckpointError,
    SaveExpiredError,
    SnapshotLostError,
)
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.store.run import Run
from input_checkpoint.training.background_prune import BackgroundPrune
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.source import InputSource, Snapshot

logger = logging.getLogger(__name__)

EXIT_SECONDS = 10.0
"""How many seconds a program that ends waits for the saves that are still running."""

_running: weakref.WeakKeyDictionary[threading.Thread, str] = weakref.WeakKeyDictionary()
"""What each thread saves, for messages."""


class BackgroundSaver:
    """Saves the checkpoints of one run behind the training thread's back, one at a time.

    The snapshot is taken in the background too: `wait_for_snapshot` must return before the iterators advance.
    A failed save is raised, once, by the next call of `check`, `submit` or `wait`. Old checkpoints are pruned
    beside the saves, which never wait for it.

    A program that ends while a save is running waits for it for `EXIT_SECONDS`, and then abandons it with a
    warning. So a storage that hangs does not keep the program from ending.

    Args:
        run: what saves and prunes.
        retention: applied after each commit.
        when_busy: what `submit` does while the previous save is running: ``'wait'`` for it, or ``'skip'`` the
            new one.
        tolerated_failures: how many saves in a row may fail because of the storage before that is raised.
        progress: reports every save. None: to this module's logger.
    """

    def __init__(
        self,
        run: Run,
        retention: RetentionPolicy,
        when_busy: str = "wait",
        tolerated_failures: int = 0,
        progress: Optional[Progress] = None,
    ) -> None:
        self._run = run
        self._retention = retention
        self._when_busy = when_busy
        self._tolerated_failures = tolerated_failures
        self._progress = progress or Progress(run.uri, logger)
        self._failures = 0
        self._thread: Optional[threading.Thread] = None
        self._snapshot_taken = threading.Event()
        self._failure: Optional[BaseException] = None
        self._committed: Optional[CheckpointRef] = None
        self._pruning = BackgroundPrune(self._prune)

    @property
    def run(self) -> Run:
        """The run that the checkpoints belong to."""
        return self._run

    @property
    def last_committed(self) -> Optional[CheckpointRef]:
        """The newest checkpoint that was committed here, or None."""
        return self._committed

    @property
    def busy(self) -> bool:
        """Whether a save is running."""
        return self._thread is not None and self._thread.is_alive()

    def submit(
        self, step: int, source: InputSource, context: Callable[[], SaveContext] = SaveContext
    ) -> bool:
        """Start saving ``step``.

        Args:
            step: global step of the model.
            source: the iterators.
            context: returns what the training knows about this save. Called in the background.

        Returns:
            False if the save was skipped because another one is running.
        """
        if self.busy and self._when_busy == "skip":
            logger.warning(
                "Input checkpoint at step %d skipped: the previous save to %s is still running. "
                "Save less often, or pass when_busy='wait'.",
                step,
                self._run.uri,
            )
            return False
        self._wait_for_save()
        self._snapshot_taken = threading.Event()
        self._thread = threading.Thread(
            target=self._save_in_thread,
            args=(step, source, context, self._snapshot_taken),
            name=f"input-checkpoint-save-{step}",
            daemon=True,
        )
        _running[self._thread] = f"Input checkpoint for step {step} in {self._run.uri}"
        self._thread.start()
        return True

    def wait_for_snapshot(self) -> None:
        """Wait until the iterators may advance. The save itself continues."""
        if self._thread is not None:
            self._snapshot_taken.wait()
        self.check()

    def wait(self) -> None:
        """Wait until everything submitted is committed and pruned. Raises if it could not be committed."""
        self._wait_for_save()
        self._pruning.wait()
        self.check()

    def check(self) -> None:
        """Raise the error of an earlier save, if there was one."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _wait_for_save(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _save_in_thread(
        self,
        step: int,
        source: InputSource,
        context: Callable[[], SaveContext],
        taken: threading.Event,
    ) -> None:
        started = time.monotonic()
        try:
            snapshot = source.snapshot()
            paused = time.monotonic() - started
            taken.set()
            info = self._save(step, snapshot, context)
        except SnapshotLostError as error:
            # Whoever closed the session knows why. The next one resumes from what was saved before.
            logger.warning("Input checkpoint for step %d in %s abandoned: %s", step, self._run.uri, error)
            return
        except BaseException as error:
            self._fail(step, error)
            return
        finally:
            # Last, so that whoever waits for the snapshot finds the failure.
            taken.set()
        self._failures = 0
        self._progress.saved(info, paused, time.monotonic() - started)
        self._pruning.request()

    def _fail(self, step: int, error: BaseException) -> None:
        """Take note of a failed save. It is raised in the training thread, unless it may be tolerated."""
        self._failures += 1
        if isinstance(error, (BackendError, SaveExpiredError)) and self._failures <= self._tolerated_failures:
            logger.warning(
                "Input checkpoint for step %d in %s failed (%d in a row; %d are tolerated): %s",
                step,
                self._run.uri,
                self._failures,
                self._tolerated_failures,
                error,
            )
            return
        logger.error("Input checkpoint for step %d in %s failed.", step, self._run.uri)
        self._failure = error

    def _save(self, step: int, snapshot: Snapshot, context: Callable[[], SaveContext]) -> CheckpointInfo:
        logger.info("Saving input checkpoint for step %d to %s.", step, self._run.uri)
        try:
            info = self._run.save(step, snapshot.states(), context)
        finally:
            snapshot.release()
        self._committed = info.ref
        return info

    def _prune(self) -> None:
        try:
            self._run.prune(self._retention)
        except InputCheckpointError as error:
            # The new checkpoint is safe. A later prune removes what this one could not.
            logger.warning("Old input checkpoints could not be removed for now: %s", error)
        except BaseException as error:
            # The retention policy may be the user's own: errors in it are raised in the training thread.
            logger.error("Pruning old input checkpoints in %s failed.", self._run.uri)
            self._failure = error


def _finish_saves() -> None:
    """Wait a little for the saves that are running when the program ends."""
    end = time.monotonic() + EXIT_SECONDS
    for thread, what in list(_running.items()):
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            logger.warning(
                "%s abandoned: the program ends, and the save was not finished within %g s. Earlier "
                "checkpoints are intact.",
                what,
                EXIT_SECONDS,
            )


atexit.register(_finish_saves)
