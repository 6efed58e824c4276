"""The hook for any MonitoredSession."""

from __future__ import annotations

import logging
import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Optional

import tensorflow as tf

from input_checkpoint.checkpoint import CheckpointRef, SaveContext
from input_checkpoint.errors import CheckpointNotFoundError, CorruptCheckpointError
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.store.run import Run
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.draw_guard import DrawGuard
from input_checkpoint.tensorflow.draws import check_queue_runners
from input_checkpoint.tensorflow.due_saves import DueSaves
from input_checkpoint.tensorflow.iterators import (
    GraphIterators,
    external_state_policy_number,
)
from input_checkpoint.tensorflow.model_checkpoints import (
    add_latest,
    index_digest,
)
from input_checkpoint.tensorflow.model_link import ModelLink
from input_checkpoint.tensorflow.preempted_end import PreemptedEnd
from input_checkpoint.tensorflow.saving_listener import SavingListener, check_listener
from input_checkpoint.tensorflow.session_marks import GraphMarks
from input_checkpoint.tensorflow.session_state import SessionState, StepSave
from input_checkpoint.tensorflow.unfinished_step import model_beside
from input_checkpoint.training.background_saver import BackgroundSaver
from input_checkpoint.training.fast_forward import FastForward, MarkRefusedError
from input_checkpoint.training.model_directory import default_backend_uri
from input_checkpoint.training.pipeline_check import PipelineCheck
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.read_ahead import ReadAhead
from input_checkpoint.training.resuming import Resumed, Resumer
from input_checkpoint.training.schedule import SaveSchedule
from input_checkpoint.training.settings import TrainingSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from input_checkpoint.training.settings import TrainingOptions

logger = logging.getLogger(__name__)

_EARLY_MARK_SECONDS = 0.01
"""How long training waits for a mark before TensorFlow saves the model. A slower one is written meanwhile."""


class SessionHook(tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Saves and resumes the input of a ``tf.compat.v1.train.MonitoredTrainingSession``, without an Estimator.

    Behaves as `CheckpointInputPipelineHook`, which is this hook with its settings taken from an Estimator.

    Args:
        model_dir: the session's ``checkpoint_dir``. None if the model is not checkpointed: ``backend`` is
            then required, and ``resume`` should be ``'latest'``.
        worker: name of this task, unique in the cluster.
        num_workers: how many tasks save input state.
        model_schedule: when the session's own saver saves the model, if that is not when ``save_steps`` or
            ``save_secs`` say. Each model then gets a mark, or its input is saved in full.
        external_state_policy: as for `CheckpointInputPipelineHook`.
        **options: as for `CheckpointInputPipelineHook`. Without ``model_schedule``, give ``save_steps`` or
            ``save_secs`` the value of the session's own saver.

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

        To save the input more rarely than the model:

        ```python
        hook = SessionHook(
            model_dir="/models/run-7", save_steps=20_000, model_schedule=SaveSchedule(every_steps=1000)
        )
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
        self._read_ahead = ReadAhead(self._store)
        self._resumer = Resumer(
            self._store, settings.worker, settings.resume, self._progress, self._read_ahead
        )
        self._link = ModelLink(self._store, settings)
        self._listener: Optional[SavingListener] = None
        self._graph: Optional[Any] = None
        self._saver: Optional[BackgroundSaver] = None
        # Weakly: a hook whose session is never created must go, with what it has read ahead.
        hook = weakref.proxy(self)
        self._preempted_end = PreemptedEnd(settings, self._store.uri, lambda: hook._newest_checkpoint())
        self._mark_seconds = 0.0
        """How long the storage took for the last mark before a model."""

    def saving_listener(self, mode: str = "background") -> SavingListener:
        """Return a listener that saves the input whenever TensorFlow saves the model, at exactly its steps.

        Pass it to ``train(saving_listeners=[...])`` or to a ``CheckpointSaverHook``, and the hook itself to
        ``hooks``, because it restores the input. With a listener, the hook no longer saves by its own
        schedule, except when training begins and ends. ``save_steps`` then only says how often the model is
        expected to be saved.

        Args:
            mode: ``'background'`` (default): the snapshot is taken before the model is written, uploaded
                while training continues, and committed once the model is written. ``'before'``: the input is
                committed before the model is written, so a crash leaves no model without its input, and
                training waits for each upload. Such a checkpoint has no digest of its model.

        Returns:
            A ``tf.estimator.CheckpointSaverListener``, the same one at each call.

        Raises:
            ValueError: ``mode`` is unknown or differs from that of an earlier call; there are several
                workers; the input is to be saved at other times than the model; or busy saves are skipped
                with ``mode='before'``.

        Training raises ``RuntimeError`` if it is given the listener without the hook, or the hook without the
        listener.

        Example:
            ```python
            hook = CheckpointInputPipelineHook(estimator, backend="s3://bucket/run-7/input")
            estimator.train(input_fn, hooks=[hook], saving_listeners=[hook.saving_listener()])
            ```

            Without an Estimator:

            ```python
            hook = SessionHook(model_dir="/models/run-7", save_secs=600)
            saver = tf.compat.v1.train.CheckpointSaverHook(
                "/models/run-7", save_secs=600, listeners=[hook.saving_listener(mode="before")]
            )
            with tf.compat.v1.train.MonitoredTrainingSession(
                checkpoint_dir="/models/run-7",
                save_checkpoint_steps=None,
                save_checkpoint_secs=None,
                hooks=[saver, hook],
            ) as session:
                ...
            ```
        """
        check_listener(self._settings, mode)
        if self._listener is None:
            self._listener = SavingListener(
                mode, self._store.uri, lambda graph: graph is self._graph, self._save_before_model
            )
        elif self._listener.mode != mode:
            raise ValueError(f"this hook has a saving listener already, with mode={self._listener.mode!r}")
        return self._listener

    def begin(self) -> None:
        """Add the save and restore operations to the graph. Called by TensorFlow."""
        graph = tf.compat.v1.get_default_graph()
        self._check_graph(graph)
        self._graph = graph
        step = tf.compat.v1.train.get_global_step(graph)
        if step is None:
            raise RuntimeError("Global step should be created to use CheckpointInputPipelineHook.")
        check_queue_runners(graph)
        self._iterators = GraphIterators(graph, self._policy)
        self._global_step = tf.identity(step, name="input_checkpoint/global_step")
        self._read_ahead.cancel()
        self._finish_earlier_training()
        self._check_pipeline = PipelineCheck(
            self._iterators.fingerprints, self._settings.on_pipeline_change, self._store.uri
        )
        self._marking = GraphMarks(graph, self._iterators, self._policy, self._settings)
        self._fast_forward = FastForward(
            self._store,
            self._settings.fast_forward_limit,
            self._progress,
            is_possible=self._marking.why_not is None,
            read_ahead=self._read_ahead,
        )
        self._due_saves = DueSaves(
            self._settings,
            with_marks=self._marking.why_not is None,
            marks_are_enough=self._marking.why_not_alone is None,
        )
        self._explain_full_saves(self._marking.why_not_alone)
        self._link.prepare(self._resumer.mode, self._check_pipeline, self._fast_forward)
        self._begin_to_read()
        self._rolled_back_from: Optional[int] = None
        self._current: Optional[SessionState] = None
        self._last_run_started = time.time()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Note that the iterators are new. Called by TensorFlow, again after each recovered error."""
        if self._listener is not None:
            self._listener.check_used(session.graph)
        self._iterators.initialize(session)
        source = self._iterators.bind(session)
        # Before the session is watched, and much faster than `run`.
        read_step = session.make_callable(self._global_step)
        step = int(read_step())
        guard = DrawGuard(source, self._store.uri, self._wait_for_snapshot)
        self._current = SessionState(
            session,
            guard,
            self._marking.bind(source, guard),
            lambda: int(read_step()),
            is_first=self._current is None,
            created_at=step,
            step=step,
        )
        # An exception closes the session without end(): the coordinator then waits for a running save.
        self._coordinator = coord
        coord.register_thread(_SaveThreadProxy(self, self._current))

    def before_run(self, run_context: Any) -> None:
        """Restore before the first step, wait for the snapshot before later ones. Called by TensorFlow."""
        state = self._state
        state.settle_model()
        state.guard.check(run_context.original_args, state.step)
        if not state.resumed:
            self._preempted_end.watch()
            try:
                self._resume(run_context.session, state)
            finally:
                self._read_ahead.cancel()
        else:
            self._running_saver.check()
            # Here, and not in after_run(): the model's saver may come after this hook in the list.
            self._save_if_due(state, with_model=True)
            self._running_saver.wait_for_snapshot()
        state.settle_save()
        state.arguments, state.is_running = run_context.original_args, True
        self._last_run_started = time.time()
        state.guard.expect(
            run_context.original_args, with_digests=self._due_saves.mark_may_follow(self._last_run_started)
        )

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Start a save if one is due. Called by TensorFlow."""
        state = self._state
        self._running_saver.check()
        self._count_run(state)
        self._save_if_due(state, with_model=False)
        if self._preempted_end.is_due(state):
            self._save_before_last_model(state)
            run_context.request_stop()

    def end(self, session: Any) -> None:
        """Save the last state and wait until everything is stored. Called by TensorFlow."""
        self._read_ahead.cancel()
        state = self._state
        state.settle_model()
        step = state.read_step()
        state.guard.end(step, state.step)
        if state.resumed:
            self._save_all(session, state, step)
            self._preempted_end.ended(self._coordinator, step)

    def _save_all(self, session: Any, state: SessionState, step: int) -> None:
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
    def _state(self) -> SessionState:
        assert self._current is not None, "after_create_session() comes first"
        return self._current

    @property
    def _running_saver(self) -> BackgroundSaver:
        assert self._saver is not None, "begin() and before_run() come first"
        return self._saver

    def _count_run(self, state: SessionState) -> None:
        """Take note of the run that has just ended, unless a saving listener has come first."""
        if not state.is_running:
            return
        state.is_running = False
        step = state.read_step()
        self._due_saves.ran(step, time.time() - self._last_run_started)
        if step != state.step:
            state.draws += 1
            state.step, state.draws_at_step = step, state.draws
        elif state.guard.draws(state.arguments):
            state.accumulates = True
            state.draws += 1
        state.guard.check(state.arguments, step)

    def _save_if_due(self, state: SessionState, *, with_model: bool) -> None:
        if self._listener is not None:
            return
        # Two schedules may be due at one step, which is saved once, unless the input has advanced since.
        due = self._due_saves.due(state.step, self._last_run_started, with_model=with_model)
        if state.step == state.saved_step and state.draws != state.saved_draws:
            if due.full or due.mark:
                self._save_again(state, state.step)
        elif state.step != state.saved_step and (due.full or due.mark):
            self._save_or_mark(state, full=due.full, is_model_saved=with_model)

    def _save_or_mark(self, state: SessionState, *, full: bool, is_model_saved: bool) -> None:
        """Save the present step in full if that is due or necessary. Otherwise, write a mark.

        Args:
            state: of the session.
            full: whether a save in full is due.
            is_model_saved: whether all hooks have seen the last run, so that its model is saved if at all.
        """
        saver = self._running_saver
        if self._settings.when_busy == "wait" and not state.marks.have_base(saver):
            # The first checkpoint of a training, which is small: nothing had been drawn yet.
            saver.wait_for_save()
        full = state.marks.is_far(state.step, saver) or full
        save = StepSave(self._link, state, state.step, state.draws)
        if is_model_saved:
            save.settled.set()
        mark = state.marks.prepare(save.step, save, saver, is_saved_now=full)
        if (full or mark is None) and self._submit(state, save, mark):
            return
        if mark is None:
            return
        state.save = save
        saver.mark(save.step, mark)

    def _save_before_model(self, session: Any, step: int, commit: bool) -> Callable[[], None]:
        """Save the input because TensorFlow is about to write the model. `SavingListener` calls this.

        Args:
            session: whose model it is.
            step: the global step.
            commit: whether to wait until the input is stored.

        Returns:
            What to call once the model is written.
        """
        state = self._current
        if state is None or state.session is not session or not state.resumed:
            return lambda: None  # the session has just been created
        self._count_run(state)
        if step != state.step:
            state.guard.check(state.arguments, state.step)
        if (step, state.draws) == (state.saved_step, state.saved_draws):
            return lambda: None
        if step == state.saved_step:
            self._allow_again(step)
        saver = self._running_saver
        save = StepSave(
            self._link, state, step, state.draws, precedes_model=True, commits_after_model=not commit
        )
        if self._settings.when_busy == "wait" and not state.marks.have_base(saver):
            saver.wait_for_save()
        mark = state.marks.prepare(step, save, saver, is_saved_now=True)
        if not commit:
            self._mark_early(state, step)
        is_saved = self._submit(state, save)
        if commit:
            saver.wait_for_save()
        self._due_saves.restart(step, self._last_run_started)

        def model_written() -> None:
            state.save = save
            save.settled.set()
            if mark is not None:
                saver.mark(step, mark, is_saved_now=is_saved and not commit)

        return model_written

    def _save(self, state: SessionState, step: int, model_digest: Optional[str] = None) -> None:
        """Start a save.

        Args:
            state: of the session.
            step: the global step.
            model_digest: of the model that belongs to this save; None: of the one that TensorFlow saves now.
        """
        self._submit(state, StepSave(self._link, state, step, state.draws, model_digest))

    def _mark_before_model(self) -> None:
        """Write the mark of a step before TensorFlow saves the model, so that no model is without its input.

        It lacks the digest of the model, and is replaced by one that has it as soon as the model is there.
        """
        state = self._state
        step = state.read_step()
        if self._listener is None and step != state.step and self._due_saves.is_model_saved_at(step):
            self._mark_early(state, step)

    def _mark_early(self, state: SessionState, step: int) -> None:
        """Write the mark of a step whose model is not there yet."""
        saver = self._running_saver
        mark = state.marks.prepare(step, None, saver, is_saved_now=True)
        if mark is not None:
            written = saver.mark(step, lambda: self._write_timed(mark), is_saved_now=True)
            if self._mark_seconds < _EARLY_MARK_SECONDS:
                written.wait(_EARLY_MARK_SECONDS)

    def _write_timed(self, write: Callable[[], None]) -> None:
        started = time.monotonic()
        write()
        self._mark_seconds = time.monotonic() - started

    def _save_before_last_model(self, state: SessionState) -> None:
        """Commit the input of the last step before TensorFlow saves its model at the end of training.

        So if there is not enough time for both, the older pair remains, and no model without its input.
        """
        # If anything is due at this step, TensorFlow saves the model now, not at the end.
        if state.save is None and (state.step, state.draws) != (state.saved_step, state.saved_draws):
            self._running_saver.wait_for_save()
            self._save(state, state.step)
            self._running_saver.wait_for_save()

    def _submit(
        self, state: SessionState, save: StepSave, write_mark: Optional[Callable[[], None]] = None
    ) -> bool:
        """Start a save, and write its mark first. Return False if it was skipped, without its mark."""
        saver = self._running_saver

        def context() -> SaveContext:
            fingerprints = self._iterators.fingerprints.items()
            return SaveContext(
                model_digest=save.model_at_commit(),
                pipeline={name: fingerprint.to_json() for name, fingerprint in fingerprints},
                save_steps=self._settings.mark_schedule.every_steps,
                draws=save.draws,
            )

        if saver.skips_now(save.step):
            return False
        marked = None if write_mark is None else saver.mark(save.step, write_mark, is_saved_now=True)
        # A mark is waiting for its model already.
        state.save = save
        saver.submit(save.step, state.guard.source, context, marked)
        state.saved_step, state.saved_draws = save.step, save.draws
        state.marks.saving(save.step)
        state.guard.saved()
        return True

    def _save_last(self, session: Any, state: SessionState, step: int) -> None:
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

    def _save_unfinished(self, session: Any, state: SessionState, step: int, model_dir: str) -> None:
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

    def _save_again(self, state: SessionState, step: int, model_digest: Optional[str] = None) -> bool:
        """Save ``step``, even if this run has saved it already, and wait.

        Returns:
            Whether it is stored. A failure of the storage may be tolerated.
        """
        self._allow_again(step)
        self._save(state, step, model_digest)
        saver = self._running_saver
        saver.wait()
        return saver.last_committed == CheckpointRef(saver.run.lineage.worker, saver.run.lineage.number, step)

    def _allow_again(self, step: int) -> None:
        """If the run has saved ``step`` already, begin the run that follows it: a run commits a step once."""
        self._running_saver.wait_for_save()
        saved = self._running_saver.last_committed
        if saved is not None and saved.step == step:
            run = self._running_saver.run.begin_again(saved)
            self._link.run_begun(run)
            self._saver = self._saver_for(run)

    def _saved_model_digest(self) -> Optional[str]:
        """Return the digest of the model that this run was last saved with, or restored with."""
        ref = self._newest_checkpoint()
        try:
            return None if ref is None else self._store.info(ref).context.model_digest
        except (CorruptCheckpointError, CheckpointNotFoundError):
            return None

    def _newest_checkpoint(self) -> Optional[CheckpointRef]:
        """Return the checkpoint that this run has committed last, or was resumed from."""
        saver = self._saver
        return None if saver is None else saver.last_committed or saver.run.base

    def _warn_of_repetition(self, state: SessionState, reason: str) -> None:
        logger.warning(
            "Training ended in the middle of a step: no model checkpoint contains what was run after global "
            "step %d (runs: %d), because %s. Training will resume before these runs and repeat them. Their "
            "input is not saved to %s.",
            state.step,
            state.draws - state.saved_draws,
            reason,
            self._store.uri,
        )

    def _explain_full_saves(self, why_no_marks: Optional[str]) -> None:
        """Say why the input is saved in full whenever the model is."""
        settings = self._settings
        if why_no_marks is None or settings.fast_forward_limit.forbids_all:
            return
        logger.log(
            logging.WARNING if settings.schedule.is_rarer_than(settings.mark_schedule) else logging.INFO,
            "The input is saved in full whenever the model is: %s.",
            why_no_marks,
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

    def _begin_to_read(self) -> None:
        """Read the checkpoint that will probably be restored while TensorFlow restores the model."""
        expected = self._link.expected
        if expected is not None:
            step, listing = expected
            ref = self._resumer.expected(step, listing, self._fast_forward)
            self._read_ahead.expect(ref, self._marking.prepare_batches)

    def _resume(self, session: Any, state: SessionState) -> None:
        step = state.read_step()
        if self._saver is not None:
            self._saver.wait()
        if state.is_first:
            self._link.check_session({state.created_at, step}, self._saves_model_first)
        else:
            self._roll_back_in_session(step)
        listing = self._link.listing_for(step)
        resumed = self._restore(state, step, listing)
        self._saver = self._saver_after(resumed, step, listing)
        state.resumed = True
        state.guard.restored()
        if self._fast_forward.has_failed:
            state.marks.stop()
        state.marks.resumed(resumed, step, self._mark_before_model)
        state.step = state.saved_step = step
        if resumed is None or resumed.base.step != step:
            self._save(state, step)
            self._running_saver.wait_for_snapshot()
        self._due_saves.restart(step, self._last_run_started)

    def _restore(self, state: SessionState, step: int, listing: WorkerListing) -> Optional[Resumed]:
        while True:
            try:
                return self._resumer.restore(
                    state.marks.source,
                    step,
                    listing,
                    self._link.evidence,
                    self._check_pipeline,
                    self._fast_forward,
                )
            except MarkRefusedError:
                self._roll_back_in_session(step)

    def _roll_back_in_session(self, step: int) -> None:
        """If the restored model has no usable input, have TensorFlow restore an older one."""
        if step == self._rolled_back_from or self._resumer.mode != "aligned":
            return
        if self._link.roll_back_in_session(step, self._check_pipeline, self._fast_forward):
            self._rolled_back_from = step
            # MonitoredSession answers this error with a new session, restored from the checkpoint file.
            raise tf.errors.AbortedError(
                None,
                None,
                f"The input of the model of step {step} cannot be restored: restoring an older model.",
            )

    def _saver_after(self, resumed: Optional[Resumed], step: int, listing: WorkerListing) -> BackgroundSaver:
        """Return the saver that continues from there: the present one, if nothing came in between."""
        saver, settings = self._saver, self._settings
        restored = None if resumed is None else resumed.ref
        if (
            saver is not None
            and restored is not None
            and resumed is not None
            and resumed.mark is None
            and restored == saver.last_committed
            and restored.step <= step
            and listing.lineage == saver.run.lineage
            # A mark that was written just before the session failed is not one of what is trained now.
            and not any(mark.ref.step > step for mark in listing.usable_marks)
        ):
            return saver
        run = self._store.begin_run(
            settings.worker,
            restored,
            base=None if resumed is None or resumed.mark is None else resumed.base,
            listing=listing,
            run_id=self._link.run_id,
            start_step=step,
        )
        self._link.run_begun(run)
        is_rarer = settings.schedule.is_rarer_than(settings.mark_schedule)
        with_model = self._listener is not None or (is_rarer and self._marking.why_not_alone is not None)
        self._progress.begun(settings, listing, restored, with_model)
        return self._saver_for(run)

    def _saver_for(self, run: Run) -> BackgroundSaver:
        return BackgroundSaver(
            run,
            self._link.retention,
            when_busy=self._settings.when_busy,
            tolerated_failures=self._settings.tolerated_failures,
            progress=self._progress,
        )


class _SaveThreadProxy:
    """A running save, with as much of a thread's interface as ``tf.train.Coordinator`` needs."""

    name = "input-checkpoint-save"

    def __init__(self, hook: SessionHook, state: SessionState) -> None:
        self._hook = hook
        self._state = state

    def is_alive(self) -> bool:
        """Whether the session must stay open a little longer."""
        # The coordinator asks when the session is over. If it has failed, its last model is never saved.
        self._state.settle_model()
        self._hook._preempted_end.closed()
        saver = self._hook._saver
        return saver is not None and saver.busy
