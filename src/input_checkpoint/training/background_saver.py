"""The background thread that saves: snapshot in, committed checkpoint out."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from dataclasses import dataclass, field
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
from input_checkpoint.training.low_priority import lower_priority
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.source import InputSource, Snapshot
from input_checkpoint.training.thread_on_request import ThreadOnRequest

logger = logging.getLogger(__name__)

EXIT_SECONDS = 10.0
"""How many seconds a program that ends waits for the saves that are still running."""

_running: weakref.WeakKeyDictionary[threading.Thread, str] = weakref.WeakKeyDictionary()
"""What each thread saves, for messages."""


class BackgroundSaver:
    """Saves the checkpoints of one run behind the training thread's back, one at a time.

    The snapshot is taken in the background too: `wait_for_snapshot` must return before the iterators advance.
    After that, the thread has a low priority, because training may keep all processors busy.
    A failed save is raised, once, by the next call of `check`, `submit` or `wait`. Old checkpoints are pruned
    beside the saves, which never wait for it.

    A program that ends while a save is running waits for it for `EXIT_SECONDS`, and then abandons it with a
    warning. So a storage that hangs does not keep the program from ending.

    Args:
        run: what saves and prunes.
        retention: applied after each commit.
        when_busy: what `submit` does while the previous save is running: ``'wait'`` for it, or ``'skip'`` the
            new one.
        tolerated_failures: how many saves in a row may fail because of the storage before an error is raised.
            The same number applies to marks, which are counted separately.
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
        self._failures = self._mark_failures = 0
        self._thread: Optional[threading.Thread] = None
        self._snapshot_taken = threading.Event()
        self._failure: Optional[BaseException] = None
        self._committed: Optional[CheckpointRef] = None
        self._pruning = ThreadOnRequest(self._prune, "input-checkpoint-prune")
        self._marking = ThreadOnRequest(self._write_mark, "input-checkpoint-mark")
        self._mark: Optional[_Mark] = None
        """The mark that waits until the one before it is written."""
        self._step_being_marked: Optional[int] = None
        self._mark_changed = threading.Condition()

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
        self,
        step: int,
        source: InputSource,
        context: Callable[[], SaveContext] = SaveContext,
        mark: Optional[threading.Event] = None,
    ) -> bool:
        """Start saving ``step``. Waits for the previous save, unless `skips_now` says that it is skipped.

        Args:
            step: global step of the model.
            source: the iterators.
            context: returns what the training knows about this save. Called in the background.
            mark: what `mark` has returned for ``step``. The save stores nothing before it is set.

        Returns:
            False if the save was skipped because another one is running.
        """
        if self.skips_now(step):
            return False
        self.wait_for_save()
        self._snapshot_taken = threading.Event()
        self._thread = threading.Thread(
            target=self._save_in_thread,
            args=(step, source, context, mark, self._snapshot_taken),
            name=f"input-checkpoint-save-{step}",
            daemon=True,
        )
        _running[self._thread] = f"Input checkpoint for step {step} in {self._run.uri}"
        self._thread.start()
        return True

    def skips_now(self, step: int) -> bool:
        """Whether a save of ``step`` is skipped because another one is running. Says so if it is."""
        if self._when_busy != "skip" or not self.busy:
            return False
        logger.warning(
            "Input checkpoint at step %d skipped: the previous save to %s is still running. "
            "Save less often, or pass when_busy='wait'.",
            step,
            self._run.uri,
        )
        return True

    def mark(self, step: int, write: Callable[[], None], *, is_saved_now: bool = False) -> threading.Event:
        """Start writing the mark of a step, so that its model can be resumed without a save of that step.

        Returns at once, unless the storage is so slow that the mark of an earlier step is not written yet.
        Then this waits for that, or leaves out a mark if busy saves are skipped. So at most one model is
        without its mark at a time.

        Args:
            step: global step of the model.
            write: writes it. Called in the background.
            is_saved_now: whether another mark or a save of this step follows. If so, a failure is only a
                warning.

        Returns:
            An event that is set when the mark is written, skipped or failed.
        """
        mark = _Mark(step, write, is_saved_now)
        with self._mark_changed:
            if self._when_busy == "wait":
                self._mark_changed.wait_for(lambda: self._marks_only(step))
            left_out, self._mark = self._mark, mark
        if left_out is not None:
            if left_out.step != step:
                logger.warning(
                    "Mark of step %d skipped: the storage is slower than the model is saved, and step %d is "
                    "due already. Save the model less often, or pass when_busy='wait'.",
                    left_out.step,
                    step,
                )
            left_out.done.set()
        self._marking.request()
        return mark.done

    def _marks_only(self, step: int) -> bool:
        """Whether no mark of another step is waiting or being written."""
        waiting = None if self._mark is None else self._mark.step
        return {waiting, self._step_being_marked} <= {None, step}

    def wait_for_snapshot(self) -> None:
        """Wait until the iterators may advance. The save itself continues."""
        if self._thread is not None:
            self._snapshot_taken.wait()
        self.check()

    def wait(self) -> None:
        """Wait until everything submitted is committed and pruned. Raises if it could not be committed."""
        self.wait_for_save()
        self._marking.wait()
        self._pruning.wait()
        self.check()

    def check(self) -> None:
        """Raise the error of an earlier save, if there was one."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait_for_save(self) -> None:
        """Wait until the save that is running is committed, but not for marks and prunes."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _save_in_thread(
        self,
        step: int,
        source: InputSource,
        context: Callable[[], SaveContext],
        mark: Optional[threading.Event],
        taken: threading.Event,
    ) -> None:
        started = time.monotonic()
        try:
            snapshot = source.snapshot()
            paused = time.monotonic() - started
            taken.set()
            lower_priority()
            info = self._save(step, snapshot, context, mark)
        except SnapshotLostError as error:
            # Whoever closed the session knows why. The next one resumes from what was saved before.
            logger.warning("Input checkpoint for step %d in %s abandoned: %s", step, self._run.uri, error)
            return
        except BaseException as error:
            self._failures += 1
            self._fail(f"Input checkpoint for step {step}", error, self._failures)
            return
        finally:
            # Last, so that whoever waits for the snapshot finds the failure.
            taken.set()
        self._failures = 0
        self._progress.saved(info, paused, time.monotonic() - started)
        self._pruning.request()

    def _fail(self, what: str, error: BaseException, in_a_row: int) -> None:
        """Take note of a failure. It is raised in the training thread, unless it may be tolerated."""
        if isinstance(error, (BackendError, SaveExpiredError)) and in_a_row <= self._tolerated_failures:
            logger.warning(
                "%s in %s failed (%d in a row; %d are tolerated): %s",
                what,
                self._run.uri,
                in_a_row,
                self._tolerated_failures,
                error,
            )
            return
        logger.error("%s in %s failed.", what, self._run.uri)
        self._failure = error

    def _save(
        self,
        step: int,
        snapshot: Snapshot,
        context: Callable[[], SaveContext],
        mark: Optional[threading.Event],
    ) -> CheckpointInfo:
        logger.info("Saving input checkpoint for step %d to %s.", step, self._run.uri)
        try:
            if mark is not None:
                mark.wait()
            info = self._run.save(step, snapshot.states(), context)
        finally:
            snapshot.release()
        self._committed = info.ref
        return info

    def _write_mark(self) -> None:
        with self._mark_changed:
            mark, self._mark = self._mark, None
            self._step_being_marked = None if mark is None else mark.step
        if mark is None:
            return
        try:
            mark.write()
        except BackendError as error:
            if mark.is_saved_now:
                logger.warning("The mark of step %d could not be written: %s", mark.step, error)
            else:
                self._mark_failures += 1
                self._fail(f"Mark of step {mark.step}", error, self._mark_failures)
        except BaseException as error:
            self._fail(f"Mark of step {mark.step}", error, self._mark_failures + 1)
        else:
            self._mark_failures = 0
        finally:
            with self._mark_changed:
                self._step_being_marked = None
                self._mark_changed.notify_all()
            mark.done.set()

    def _prune(self) -> None:
        lower_priority()
        try:
            self._run.prune(self._retention)
        except InputCheckpointError as error:
            # The new checkpoint is safe. A later prune removes what this one could not.
            logger.warning("Old input checkpoints could not be removed for now: %s", error)
        except BaseException as error:
            # The retention policy may be the user's own: errors in it are raised in the training thread.
            logger.error("Pruning old input checkpoints in %s failed.", self._run.uri)
            self._failure = error


@dataclass(frozen=True)
class _Mark:
    """A mark that is to be written."""

    step: int
    write: Callable[[], None]
    is_saved_now: bool
    done: threading.Event = field(default_factory=threading.Event)


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
