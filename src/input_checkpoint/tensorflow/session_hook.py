"""The hook for any MonitoredSession."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import tensorflow as tf

from input_checkpoint.checkpoint import CheckpointRef, SaveContext
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.run import Run
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.draw_guard import DrawGuard
from input_checkpoint.tensorflow.draws import check_queue_runners
from input_checkpoint.tensorflow.iterators import (
    GraphIterators,
    SessionIterators,
    external_state_policy_number,
)
from input_checkpoint.tensorflow.model_checkpoints import (
    add_latest,
    index_digest,
    latest_model_step,
)
from input_checkpoint.tensorflow.model_link import ModelLink
from input_checkpoint.tensorflow.unfinished_step import model_beside
from input_checkpoint.training.background_saver import BackgroundSaver
from input_checkpoint.training.model_directory import default_backend_uri
from input_checkpoint.training.pipeline_check import PipelineCheck
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.resuming import Resumer
from input_checkpoint.training.schedule import SaveSchedule
from input_checkpoint.training.settings import TrainingSettings

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
        check_queue_runners(graph)
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
        source, step = self._iterators.bind(session), self._read_step(session)
        self._current = _SessionState(
            source,
            DrawGuard(source, self._store.uri, self._wait_for_snapshot),
            is_first=self._current is None,
            created_at=step,
            step=step,
        )
        # An exception closes the session without end(): the coordinator then waits for a running save.
        coord.register_thread(_SaveThreadProxy(self))

    def before_run(self, run_context: Any) -> None:
        """Restore before the first step, wait for the snapshot before later ones. Called by TensorFlow."""
        state = self._state
        state.guard.check(run_context.original_args, state.step)
        if not state.resumed:
            self._resume(run_context.session, state)
        else:
            self._running_saver.check()
            # Here, and not in after_run(): the model's saver may come after this hook in the list.
            self._save_if_due(state, with_model=True)
            self._running_saver.wait_for_snapshot()
        state.settle_save()
        state.guard.expect(run_context.original_args)
        self._last_run_started = time.time()

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Start a save if one is due. Called by TensorFlow."""
        state = self._state
        self._running_saver.check()
        step = self._read_step(run_context.session)
        if step != state.step:
            state.draws += 1
            state.step, state.draws_at_step = step, state.draws
        elif state.guard.draws(run_context.original_args):
            state.accumulates = True
            state.draws += 1
        state.guard.check(run_context.original_args, step)
        self._save_if_due(state, with_model=False)

    def end(self, session: Any) -> None:
        """Save the last state and wait until everything is stored. Called by TensorFlow."""
        state = self._state
        step = self._read_step(session)
        state.guard.end(step, state.step)
        if not state.resumed:
            return
        if state.draws == 0:
            logger.warning(
                "No step was run at global step %d. If the input had already ended when it was saved to %s, "
                "it has ended now too: pass resume='fresh' or another backend to train on it again.",
                step,
                self._store.uri,
            )
        self._running_saver.wait()
        self._save_last(session, state, step)
        state.guard.close()
        self._link.run_ended(self._running_saver.run, step)

    @property
    def _saves_model_first(self) -> bool:
        """Whether TensorFlow is known to save the model as soon as a session is created."""
        return False

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
        # Two schedules may be due at one step, which is saved once, unless the input has advanced since.
        if not self._is_due(state.step, with_model=with_model):
            return
        if state.step != state.saved_step:
            self._save(state, state.step)
        elif state.draws != state.saved_draws:
            self._save_again(state, state.step)

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

    def _save(self, state: _SessionState, step: int, model_digest: Optional[str] = None) -> None:
        """Start a save.

        Args:
            state: of the session.
            step: the global step.
            model_digest: of the model that belongs to this save; None: of the one that TensorFlow saves now.
        """
        save = _Save(self._link, state, step, state.draws, model_digest)

        def context() -> SaveContext:
            fingerprints = self._iterators.fingerprints.items()
            return SaveContext(
                model_digest=save.find_model(),
                pipeline={name: fingerprint.to_json() for name, fingerprint in fingerprints},
                save_steps=self._settings.schedule.every_steps,
                draws=save.draws,
            )

        if self._running_saver.submit(step, state.guard.source, context):
            state.save = save
            state.saved_step, state.saved_draws = step, save.draws
            state.guard.saved()

    def _save_last(self, session: Any, state: _SessionState, step: int) -> None:
        """Save the state in which training ends, unless it is saved already."""
        if (step, state.draws) == (state.saved_step, state.saved_draws):
            return
        unfinished = state.draws - state.draws_at_step if step == state.step else 0
        model_dir = self._link.model_dir
        if unfinished and model_dir is not None:
            self._save_unfinished(session, state, step, model_dir)
        elif state.saved_step != step or self._settings.resume == "latest":
            self._save_again(state, step)
        else:
            self._warn_of_repetition(state, "the hook has no model directory to write one to")

    def _save_unfinished(self, session: Any, state: _SessionState, step: int, model_dir: str) -> None:
        """Save model and input in the middle of a step, so that the runs since it was reached are in both."""
        current = self._link.current_model(step)
        if current is None:
            self._save_again(state, step)  # if TensorFlow saves the model at all, it does so after this hook
            return
        with model_beside(session, model_dir, current) as model:
            digest = index_digest(current)
            if model is None and state.saved_step == step:
                self._warn_of_repetition(state, "no saver of the graph can write one")
            elif model is not None and model.digest != digest:
                # The input first: until its model is current, the earlier pair of this step is used.
                if self._save_again(state, step, model.digest):
                    add_latest(model_dir, model.path)
            elif state.saved_step == step and digest == self._saved_model_digest():
                self._warn_of_repetition(state, "these runs changed nothing that it would contain")
            else:
                self._save_again(state, step)

    def _save_again(self, state: _SessionState, step: int, model_digest: Optional[str] = None) -> bool:
        """Save ``step``, even if this run has saved it already, and wait.

        Returns:
            Whether it is stored. A failure of the storage may be tolerated.
        """
        saved = self._running_saver.last_committed
        if saved is not None and saved.step == step:
            # A run commits a step once.
            run = self._running_saver.run.begin_again(saved)
            self._link.run_begun(run)
            self._saver = self._saver_for(run)
        self._save(state, step, model_digest)
        saver = self._running_saver
        saver.wait()
        return saver.last_committed == CheckpointRef(saver.run.lineage.worker, saver.run.lineage.number, step)

    def _saved_model_digest(self) -> Optional[str]:
        """Return the digest of the model that this run was last saved with, or restored with."""
        ref = self._running_saver.last_committed or self._running_saver.run.lineage.parent
        try:
            return None if ref is None else self._store.info(ref).context.model_digest
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return None

    def _warn_of_repetition(self, state: _SessionState, reason: str) -> None:
        logger.warning(
            "Training ended in the middle of a step: no model checkpoint contains what was run after global "
            "step %d (runs: %d), because %s. Training will resume before these runs and repeat them. Their "
            "input is not saved to %s.",
            state.step,
            state.draws - state.saved_draws,
            reason,
            self._store.uri,
        )

    def _wait_for_snapshot(self) -> None:
        if self._saver is not None:
            self._saver.wait_for_snapshot()

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
        step = self._read_step(session)
        if self._saver is not None:
            self._saver.wait()
        if state.is_first:
            self._link.check_session({state.created_at, step}, self._saves_model_first)
        else:
            self._roll_back_in_new_session(step)
        listing = self._link.listing_for(step)
        restored = self._resumer.restore(
            state.source, step, listing, self._link.evidence, self._check_pipeline
        )
        self._saver = self._saver_after(restored, step, listing)
        started = self._last_run_started
        self._schedules = tuple(schedule.after(step, started) for schedule in self._settings.schedules)
        state.resumed = True
        state.guard.restored()
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
        return self._saver_for(run)

    def _saver_for(self, run: Run) -> BackgroundSaver:
        return BackgroundSaver(
            run,
            self._link.retention,
            when_busy=self._settings.when_busy,
            tolerated_failures=self._settings.tolerated_failures,
            progress=self._progress,
        )


@dataclass
class _SessionState:
    """How far one session has come."""

    source: SessionIterators
    """The iterators of the graph, in this session."""
    guard: DrawGuard
    is_first: bool
    """Whether it is the first session of this graph. Later ones come after recovered errors."""
    created_at: int
    """The global step when it was created."""
    step: int
    """The global step that was reached."""
    resumed: bool = False
    draws: int = 0
    """How many runs have drawn from the input."""
    accumulates: bool = False
    """Whether a run has drawn from the input without finishing a step."""
    draws_at_step: int = 0
    """``draws`` when it was reached. The runs since then belong to a step that is not finished."""
    saved_step: Optional[int] = None
    saved_draws: int = 0
    """``draws`` when ``saved_step`` was saved."""
    save: Optional[_Save] = None
    """The last save, until the next run begins."""

    def settle_save(self) -> None:
        """Look at the model of the last save while it is certain which runs it contains.

        Only if several runs may make up a step: otherwise, there is time until the commit.
        """
        save, self.save = self.save, None
        if save is not None and (self.accumulates or self.draws == 0):
            save.find_model()


@dataclass
class _Save:
    """One save, and the model that belongs to it."""

    link: ModelLink
    state: _SessionState
    step: int
    draws: int
    """``draws`` of the session when its snapshot was taken."""
    model_digest: Optional[str] = None

    def find_model(self) -> Optional[str]:
        """Return the digest of the model that was saved together with this snapshot, if it is known."""
        if self.model_digest is None:
            found = self.link.model_digest(self.step)
            # With several runs to a step, TensorFlow may have saved this model after more of them.
            if not self.state.accumulates or self.state.draws == self.draws:
                self.model_digest = found
        return self.model_digest


class _SaveThreadProxy:
    """A running save, with as much of a thread's interface as ``tf.train.Coordinator`` needs."""

    name = "input-checkpoint-save"

    def __init__(self, hook: SessionHook) -> None:
        self._hook = hook

    def is_alive(self) -> bool:
        """Whether the session must stay open a little longer."""
        saver = self._hook._saver
        return saver is not None and saver.busy
