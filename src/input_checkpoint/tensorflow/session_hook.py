"""The hook for any MonitoredSession."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Optional

import tensorflow as tf

from input_checkpoint.checkpoint import CheckpointRef, SaveContext
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy_number
from input_checkpoint.tensorflow.model_checkpoints import default_backend_uri, latest_model_step
from input_checkpoint.tensorflow.model_link import ModelLink
from input_checkpoint.training.background_saver import BackgroundSaver
from input_checkpoint.training.pipeline_check import PipelineCheck
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.resuming import Resumer
from input_checkpoint.training.schedule import SaveSchedule
from input_checkpoint.training.settings import TrainingSettings
from input_checkpoint.training.source import InputSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from input_checkpoint.training.settings import TrainingOptions

logger = logging.getLogger(__name__)


class SessionHook(tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Saves and resumes the input of a ``tf.compat.v1.train.MonitoredTrainingSession``, without an Estimator.

    Behaves as `CheckpointInputPipelineHook`, which is this hook with its settings taken from an Estimator.

    Args:
        model_dir: the session's ``checkpoint_dir``. None if the model is not checkpointed: ``backend`` is
            then required, and ``resume`` should be ``'latest'``.
        worker: name of this task, unique in the cluster.
        num_workers: how many tasks save input state.
        model_schedule: when the session's own saver saves the model, if that is at other steps than
            ``save_steps`` or ``save_secs`` say. The input is then saved at the model's steps as well.
        external_state_policy: as for `CheckpointInputPipelineHook`.
        **options: as for `CheckpointInputPipelineHook`. For ``save_steps`` or ``save_secs``, give the value
            of the session's own saver.

    Raises:
        TypeError, ValueError: as for `CheckpointInputPipelineHook`; or neither ``model_dir`` nor ``backend``
            is given.
        BackendError: the backend cannot be used.

    Example:
        ```python
        hook = SessionHook(model_dir="/models/run-7", save_steps=1000)
        with tf.compat.v1.train.MonitoredTrainingSession(
            checkpoint_dir="/models/run-7", save_checkpoint_steps=1000, hooks=[hook]
        ) as session:
            while not session.should_stop():
                session.run(train_op)
        ```
    """

    def __init__(
        self,
        *,
        model_dir: Optional[str] = None,
        worker: str = "main",
        num_workers: int = 1,
        model_schedule: Optional[SaveSchedule] = None,
        external_state_policy: Optional[Any] = None,
        **options: Unpack[TrainingOptions],
    ) -> None:
        settings = TrainingSettings(
            model_dir=model_dir,
            worker=worker,
            num_workers=num_workers,
            model_schedule=model_schedule,
            **options,
        )
        self._policy = external_state_policy_number(external_state_policy)
        backend = settings.backend
        if backend is None:
            if model_dir is None:
                raise ValueError("pass a backend, or a model_dir beside which to put the input state")
            backend = default_backend_uri(model_dir)
        # Opened now: a problem with the backend should show before hours of building and loading.
        self._store = CheckpointStore.open(
            backend, settings.storage_options, create=True, retry=settings.retry, probe=settings.probe
        )
        self._settings = settings
        self._progress = Progress(self._store.uri, tf.get_logger())
        self._resumer = Resumer(self._store, settings.worker, settings.resume, self._progress)
        self._link = ModelLink(self._store, settings)
        self._saver: Optional[BackgroundSaver] = None
        self._schedules = settings.schedules

    def begin(self) -> None:
        """Add the save and restore operations to the graph. Called by TensorFlow."""
        graph = tf.compat.v1.get_default_graph()
        self._check_graph(graph)
        step = tf.compat.v1.train.get_global_step(graph)
        if step is None:
            raise RuntimeError("Global step should be created to use CheckpointInputPipelineHook.")
        self._iterators = GraphIterators(graph, self._policy)
        self._global_step = tf.identity(step, name="input_checkpoint/global_step")
        self._finish_earlier_training()
        self._check_pipeline = PipelineCheck(
            self._iterators.fingerprints, self._settings.on_pipeline_change, self._store.uri
        )
        self._link.prepare(self._resumer.mode, self._check_pipeline)
        self._rolled_back_from: Optional[int] = None
        self._current: Optional[_SessionState] = None
        self._last_run_started = time.time()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Note that the iterators are new. Called by TensorFlow, again after each recovered error."""
        self._current = _SessionState(self._iterators.bind(session), is_first=self._current is None)
        # An exception closes the session without end(): the coordinator then waits for a running save.
        coord.register_thread(_SaveThreadProxy(self))

    def before_run(self, run_context: Any) -> None:
        """Restore before the first step, wait for the snapshot before later ones. Called by TensorFlow."""
        state = self._state
        if not state.resumed:
            self._resume(run_context.session, state)
        else:
            self._running_saver.check()
            # Here, and not in after_run(): the model's saver may come after this hook in the list.
            self._save_if_due(state, with_model=True)
            self._running_saver.wait_for_snapshot()
        self._last_run_started = time.time()

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Start a save if one is due. Called by TensorFlow."""
        state = self._state
        self._running_saver.check()
        state.runs += 1
        state.step = self._read_step(run_context.session)
        self._save_if_due(state, with_model=False)

    def end(self, session: Any) -> None:
        """Save the last state and wait until everything is stored. Called by TensorFlow."""
        state = self._state
        if not state.resumed:
            return
        step = self._read_step(session)
        if state.runs == 0:
            logger.warning(
                "No step was run at global step %d. If the input had already ended when it was saved to %s, "
                "it has ended now too: pass resume='fresh' or another backend to train on it again.",
                step,
                self._store.uri,
            )
        self._running_saver.wait()
        if step != state.saved_step:
            self._save(state, step)
            self._running_saver.wait()
        self._link.run_ended(self._running_saver.run, step)

    def _check_graph(self, graph: Any) -> None:
        """Raise ValueError if the graph's input is not that of a training."""
        if graph.get_collection(tf.compat.v1.GraphKeys.EVAL_STEP):
            raise ValueError(
                "CheckpointInputPipelineHook checkpoints training input: do not pass it to evaluate()"
            )

    @property
    def _state(self) -> _SessionState:
        assert self._current is not None, "after_create_session() comes first"
        return self._current

    @property
    def _running_saver(self) -> BackgroundSaver:
        assert self._saver is not None, "begin() and before_run() come first"
        return self._saver

    def _read_step(self, session: Any) -> int:
        return int(session.run(self._global_step))

    def _save_if_due(self, state: _SessionState, *, with_model: bool) -> None:
        # Two schedules may be due at one step, which is saved once.
        if self._is_due(state.step, with_model=with_model) and state.step != state.saved_step:
            self._save(state, state.step)

    def _is_due(self, step: int, *, with_model: bool) -> bool:
        """Whether a save is due by one of the schedules, which then begin to count anew.

        They do so even if the save is skipped: the next attempt then coincides with the model saver's next
        step.

        Args:
            step: the global step.
            with_model: whether to ask the schedules that follow the model's timer, or the others.
        """
        due = [
            schedule
            for schedule in self._schedules
            if self._follows_model(schedule) == with_model and self._is_due_by(schedule, step)
        ]
        started = self._last_run_started
        self._schedules = tuple(
            schedule.after(step, started) if schedule in due else schedule for schedule in self._schedules
        )
        return bool(due)

    def _follows_model(self, schedule: SaveSchedule) -> bool:
        """Whether saves follow the model's, whose timer fires at steps that cannot be predicted."""
        return schedule.every_secs is not None and self._settings.model_dir is not None

    def _is_due_by(self, schedule: SaveSchedule, step: int) -> bool:
        now = time.time()
        if not schedule.due(step, now):
            return False
        # Late by a whole interval: the model is not being saved, so there is nothing to match.
        if not self._follows_model(schedule) or schedule.overdue(step, now):
            return True
        return latest_model_step(str(self._settings.model_dir)) == step

    def _save(self, state: _SessionState, step: int) -> None:
        draws = state.runs
        if self._running_saver.submit(step, state.source, lambda: self._context(step, draws)):
            state.saved_step = step

    def _context(self, step: int, draws: int) -> SaveContext:
        """Return what is known about the save of ``step``. Called in the background."""
        fingerprints = self._iterators.fingerprints.items()
        pipeline = {name: fingerprint.to_json() for name, fingerprint in fingerprints}
        return replace(self._link.context(step), pipeline=pipeline, draws=draws)

    def _finish_earlier_training(self) -> None:
        """Wait for the last save of an earlier ``train`` call. Its failure is not an error of this one."""
        if self._saver is None:
            return
        try:
            self._saver.wait()
        except Exception as error:
            # It may be anything, even an error in the user's own retention policy.
            logger.warning(
                "The last save of the previous training failed: %s Resuming from what is in %s.",
                error,
                self._store.uri,
            )

    def _resume(self, session: Any, state: _SessionState) -> None:
        if self._saver is not None:
            self._saver.wait()
        step = self._read_step(session)
        if not state.is_first:
            self._roll_back_in_new_session(step)
        listing = self._link.listing_for(step)
        restored = self._resumer.restore(
            state.source, step, listing, self._link.evidence, self._check_pipeline
        )
        self._saver = self._saver_after(restored, step, listing)
        started = self._last_run_started
        self._schedules = tuple(schedule.after(step, started) for schedule in self._settings.schedules)
        state.resumed = True
        state.step = state.saved_step = step
        if restored is None or restored.step != step:
            self._save(state, step)
            self._running_saver.wait_for_snapshot()

    def _roll_back_in_new_session(self, step: int) -> None:
        """If TensorFlow has restored, after an error, a model without its input, have it restore another."""
        if step == self._rolled_back_from or self._resumer.mode != "aligned":
            return
        if self._link.roll_back_after_error(step, self._check_pipeline):
            self._rolled_back_from = step
            # MonitoredSession answers this error with a new session, restored from the checkpoint file.
            raise tf.errors.AbortedError(
                None, None, f"The model of step {step} has no input checkpoint: restoring an older one."
            )

    def _saver_after(
        self, restored: Optional[CheckpointRef], step: int, listing: WorkerListing
    ) -> BackgroundSaver:
        """Return the saver that continues from ``restored``: the present one, if nothing came in between."""
        saver, settings = self._saver, self._settings
        if (
            saver is not None
            and restored is not None
            and restored == saver.last_committed
            and restored.step <= step
            and listing.lineage == saver.run.lineage
        ):
            return saver
        run = self._store.begin_run(
            settings.worker, restored, listing=listing, run_id=self._link.run_id, start_step=step
        )
        self._link.run_begun(run)
        self._progress.begun(settings, listing, restored)
        return BackgroundSaver(
            run,
            self._link.retention,
            when_busy=settings.when_busy,
            tolerated_failures=settings.tolerated_failures,
            progress=self._progress,
        )


@dataclass
class _SessionState:
    """How far one session has come."""

    source: InputSource
    """The iterators of the graph, in this session."""
    is_first: bool
    """Whether it is the first session of this graph. Later ones come after recovered errors."""
    resumed: bool = False
    runs: int = 0
    step: int = 0
    """The global step that was reached."""
    saved_step: Optional[int] = None


class _SaveThreadProxy:
    """A running save, with as much of a thread's interface as ``tf.train.Coordinator`` needs."""

    name = "input-checkpoint-save"

    def __init__(self, hook: SessionHook) -> None:
        self._hook = hook

    def is_alive(self) -> bool:
        """Whether the session must stay open a little longer."""
        saver = self._hook._saver
        return saver is not None and saver.busy
