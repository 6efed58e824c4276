"""The face for Estimator and MonitoredSession, a drop-in for TensorFlow's hook of the same name."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Optional, Union

import tensorflow as tf

from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.retrying import DEFAULT_RETRY_POLICY, RetryPolicy
from input_checkpoint.checkpoint import CheckpointRef
from input_checkpoint.retention.by_count import KeepLast
from input_checkpoint.retention.policy import RetentionPolicy
from input_checkpoint.store.store import CheckpointStore
from input_checkpoint.tensorflow.iterators import GraphIterators, external_state_policy
from input_checkpoint.tensorflow.model_checkpoints import default_backend_uri, latest_model_step
from input_checkpoint.tensorflow.resuming import Resumption
from input_checkpoint.training.background_saver import BackgroundSaver
from input_checkpoint.training.schedule import SaveSchedule
from input_checkpoint.training.settings import HookSettings

logger = logging.getLogger(__name__)

_DEFAULT_RETENTION = KeepLast(5)
# Estimator reads the global step in train() only, and keeps the operation in this collection:
# tensorflow/python/training/training_util.py, GLOBAL_STEP_READ_KEY.
_READ_IN_TRAINING = "global_step_read_op_cache"


class CheckpointInputPipelineHook(tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Saves the state of a graph's input pipeline, away from the model directory, and resumes it exactly.

    Replaces ``tf.data.experimental.CheckpointInputPipelineHook``, which TensorFlow 2.16 removed
    (tensorflow/python/data/experimental/ops/iterator_ops.py): the positional arguments, the five hook methods
    and the ``ValueError``s are the same. All iterators of the graph are saved at the first step, every N
    steps or seconds, and at the end. Training waits only while TensorFlow takes the in-memory snapshot;
    upload, commit and clean-up happen in the background.

    When training resumes, the input goes to the step of the restored model, so that no example is lost and
    none is seen twice. If a crash came between the model's checkpoint and the input's, the model's
    ``checkpoint`` file is turned back to the newest step that has both.

    Pass the hook to ``train`` only, not to ``evaluate`` or ``predict``.

    Args:
        estimator: the Estimator that is trained.
        external_state_policy: what to do about state outside of the pipeline, such as random number
            generators: ``'fail'`` (default), ``'warn'`` or ``'ignore'`` (it is not saved).
        backend: URI (``s3://bucket/run-7/input``, ``/data/run-7-input``, …) or an open `Backend`. None means
            ``<model_dir>-input``, beside the model directory.
        storage_options: handed to the fsspec filesystem.
        save_steps: save when this many global steps have passed. None for both this and ``save_secs`` means:
            as the estimator's RunConfig says, at the same steps as the model.
        save_secs: save when this many seconds have passed, at a step at which the model was saved.
        retention: which checkpoints to keep.
        resume: ``'aligned'``: at the model's step, or failing that at the newest older checkpoint, with a
            warning. ``'exact'``: at the model's step or not at all. ``'latest'``: the newest, as TensorFlow's
            hook does. ``'fresh'``: from the beginning, the first time that this hook is used.
        when_busy: if a save is due while the previous one is running: ``'wait'`` for it, or ``'skip'`` the
            new one.
        retry: how long the background save goes on trying while the storage is away. None: not at all.
        probe: write, read and delete a small object now, so that what is wrong with the storage is known
            before training begins.

    Raises:
        ValueError: both or neither of ``save_steps`` and ``save_secs`` (RunConfig included), or an unknown
            value for ``external_state_policy``, ``resume`` or ``when_busy``.
        BackendError: the backend cannot be used.

    Example:
        ```python
        estimator = tf.estimator.Estimator(model_fn, model_dir="/models/run-7")
        hook = CheckpointInputPipelineHook(estimator, backend="s3://bucket/run-7/input")
        estimator.train(input_fn, hooks=[hook], max_steps=100_000)
        ```
    """

    def __init__(
        self,
        estimator: Any,
        external_state_policy: Optional[Any] = None,
        *,
        backend: Optional[Union[str, Backend]] = None,
        storage_options: Optional[Mapping[str, Any]] = None,
        save_steps: Optional[int] = None,
        save_secs: Optional[float] = None,
        retention: RetentionPolicy = _DEFAULT_RETENTION,
        resume: str = "aligned",
        when_busy: str = "wait",
        retry: Optional[RetryPolicy] = DEFAULT_RETRY_POLICY,
        probe: bool = True,
    ) -> None:
        config = estimator.config
        self._for_estimator = True
        if save_steps is None and save_secs is None:
            save_steps, save_secs = config.save_checkpoints_steps, config.save_checkpoints_secs
        worker = "main"
        if config.num_worker_replicas > 1:
            worker = f"{config.task_type}-{config.task_id}"
        self._configure(
            external_state_policy,
            backend,
            storage_options,
            HookSettings(
                model_dir=estimator.model_dir,
                schedule=SaveSchedule(save_steps, save_secs),
                retention=retention,
                resume=resume,
                when_busy=when_busy,
                retry=retry,
                probe=probe,
                worker=worker,
                num_workers=config.num_worker_replicas,
            ),
        )

    @classmethod
    def for_session(
        cls,
        *,
        model_dir: Optional[str] = None,
        backend: Optional[Union[str, Backend]] = None,
        storage_options: Optional[Mapping[str, Any]] = None,
        save_steps: Optional[int] = None,
        save_secs: Optional[float] = None,
        external_state_policy: Optional[Any] = None,
        retention: RetentionPolicy = _DEFAULT_RETENTION,
        resume: str = "aligned",
        when_busy: str = "wait",
        retry: Optional[RetryPolicy] = DEFAULT_RETRY_POLICY,
        probe: bool = True,
        worker: str = "main",
        num_workers: int = 1,
    ) -> CheckpointInputPipelineHook:
        """Return the hook for a ``tf.compat.v1.train.MonitoredTrainingSession``, without an Estimator.

        Args:
            model_dir: the session's ``checkpoint_dir``. None if the model is not checkpointed; then
                ``backend`` is required and ``resume`` should be ``'latest'``.
            backend: as in the class; None means ``<model_dir>-input``.
            storage_options: as in the class.
            save_steps: as in the class. Give the model saver's value.
            save_secs: as in the class. Give the model saver's value.
            external_state_policy: as in the class.
            retention: as in the class.
            resume: as in the class.
            when_busy: as in the class.
            retry: as in the class.
            probe: as in the class.
            worker: name of this task, unique in the cluster.
            num_workers: how many tasks save input state.

        Raises:
            ValueError: as in the class; or neither ``model_dir`` nor ``backend``.
            BackendError: the backend cannot be used.

        Example:
            ```python
            hook = CheckpointInputPipelineHook.for_session(model_dir="/models/run-7", save_steps=1000)
            with tf.compat.v1.train.MonitoredTrainingSession(
                checkpoint_dir="/models/run-7", save_checkpoint_steps=1000, hooks=[hook]
            ) as session:
                while not session.should_stop():
                    session.run(train_op)
            ```
        """
        if model_dir is None and backend is None:
            raise ValueError("for_session needs a backend or a model_dir to put the state beside")
        hook = cls.__new__(cls)
        hook._for_estimator = False
        hook._configure(
            external_state_policy,
            backend,
            storage_options,
            HookSettings(
                model_dir=model_dir,
                schedule=SaveSchedule(save_steps, save_secs),
                retention=retention,
                resume=resume,
                when_busy=when_busy,
                retry=retry,
                probe=probe,
                worker=worker,
                num_workers=num_workers,
            ),
        )
        return hook

    def _configure(
        self,
        policy: Optional[Any],
        backend: Optional[Union[str, Backend]],
        storage_options: Optional[Mapping[str, Any]],
        settings: HookSettings,
    ) -> None:
        self._policy = external_state_policy(policy)
        self._settings = settings
        if backend is None:
            backend = default_backend_uri(str(settings.model_dir))
        # Opened now: what is wrong with the backend should be known before hours of building and loading.
        self._store = CheckpointStore.open(
            backend, storage_options, create=True, retry=settings.retry, probe=settings.probe
        )
        self._resumption = Resumption(self._store, settings)
        self._writer: Optional[BackgroundSaver] = None
        self._schedule = settings.schedule

    def begin(self) -> None:
        """Add the save and restore operations to the graph. Called by TensorFlow."""
        graph = tf.compat.v1.get_default_graph()
        self._check_trains(graph)
        step = tf.compat.v1.train.get_global_step(graph)
        if step is None:
            raise RuntimeError("Global step should be created to use CheckpointInputPipelineHook.")
        self._iterators = GraphIterators(graph, self._policy)
        self._global_step = tf.identity(step, name="input_checkpoint/global_step")
        self._let_earlier_training_end()
        self._resumption.turn_model_back()
        self._sessions = 0
        self._turned_back_from: Optional[int] = None
        self._round_started = time.time()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Note that the iterators are new. Called by TensorFlow, again after each recovered error."""
        self._resumed = False
        self._sessions += 1
        self._steps_run = 0
        # An exception closes the session without end(): the coordinator then waits for the save in flight.
        coord.register_thread(_SaveInFlight(self))

    def before_run(self, run_context: Any) -> None:
        """Restore before the first step; make sure that the snapshot is taken before the next one."""
        if not self._resumed:
            self._resume(run_context.session)
        else:
            self._current_writer.check()
            # Here, and not in after_run(): the model's saver may come after this hook in the list.
            if self._saves_with_model and self._model_saved_at(self._step_reached):
                self._save(run_context.session, self._step_reached)
            self._current_writer.wait_for_snapshot()
        self._round_started = time.time()

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Start a save if one is due. Called by TensorFlow."""
        self._current_writer.check()
        self._steps_run += 1
        self._step_reached = self._step(run_context.session)
        if self._saves_with_model:
            return
        if self._schedule.due(self._step_reached, time.time()):
            self._save(run_context.session, self._step_reached)

    def end(self, session: Any) -> None:
        """Save the last state and wait until everything is stored. Called by TensorFlow."""
        if not self._resumed:
            return
        if self._steps_run == 0:
            logger.warning(
                "No step was run at global step %d. If the input had already ended when it was saved (in "
                "%s), it stays so: pass resume='fresh' or another backend to train on it again.",
                self._step(session),
                self._store.uri,
            )
        self._current_writer.wait()
        step = self._step(session)
        if step != self._saved_step:
            self._save(session, step)
            self._current_writer.wait()

    @property
    def _current_writer(self) -> BackgroundSaver:
        assert self._writer is not None, "begin() and before_run() come first"
        return self._writer

    def _step(self, session: Any) -> int:
        return int(session.run(self._global_step))

    @property
    def _saves_with_model(self) -> bool:
        """Whether saves follow the model's, whose timer fires at steps that cannot be told beforehand."""
        return self._schedule.every_secs is not None and self._settings.model_dir is not None

    def _model_saved_at(self, step: int) -> bool:
        now = time.time()
        if not self._schedule.due(step, now):
            return False
        # Late by a whole interval: nobody saves the model here, so there is nothing to match.
        if self._schedule.overdue(step, now):
            return True
        return latest_model_step(str(self._settings.model_dir)) == step

    def _save(self, session: Any, step: int) -> None:
        if self._current_writer.submit(step, lambda: self._iterators.snapshot(session)):
            self._saved_step = step
        # Also if it was skipped: the next try then falls on the model saver's next step.
        self._schedule = self._schedule.after(step, self._round_started)

    def _check_trains(self, graph: Any) -> None:
        """Refuse graphs whose input is not that of the training."""
        if graph.get_collection(tf.compat.v1.GraphKeys.EVAL_STEP):
            raise ValueError(
                "CheckpointInputPipelineHook checkpoints training input: do not pass it to evaluate()"
            )
        if self._for_estimator and not graph.get_collection(_READ_IN_TRAINING):
            raise ValueError(
                "CheckpointInputPipelineHook checkpoints training input: do not pass it to predict()"
            )

    def _let_earlier_training_end(self) -> None:
        """Wait for the last save of an earlier `train`; what went wrong with it is not this one's error."""
        if self._writer is None:
            return
        try:
            self._writer.wait()
        except Exception as error:
            # It may be anything, also a mistake in the user's own retention policy.
            logger.warning(
                "The last save of the training before this one failed: %s Going on from what is in %s.",
                error,
                self._store.uri,
            )

    def _resume(self, session: Any) -> None:
        if self._writer is not None:
            self._writer.wait()
        step = self._step(session)
        self._turn_model_back_in_new_session(step)
        source = self._resumption.restore(session, self._iterators, step)
        self._writer = self._writer_from(source, step)
        self._resumed = True
        self._schedule = self._settings.schedule.after(step, self._round_started)
        self._step_reached = self._saved_step = step
        if source is None or source.step != step:
            self._save(session, step)
            self._writer.wait_for_snapshot()

    def _turn_model_back_in_new_session(self, step: int) -> None:
        """If TensorFlow has restored, after an error, a model without its input, have it restore another."""
        if self._sessions < 2 or step == self._turned_back_from:
            return
        if self._resumption.turn_model_back(restored_step=step):
            self._turned_back_from = step
            # MonitoredSession answers this error with a new session, restored from the checkpoint file.
            raise tf.errors.AbortedError(
                None, None, f"The model of step {step} has no input checkpoint: restoring an older one."
            )

    def _writer_from(self, source: Optional[CheckpointRef], step: int) -> BackgroundSaver:
        """Return the writer that continues from ``source``: the current one, if nothing came in between."""
        settings = self._settings
        if (
            self._writer is not None
            and source is not None
            and source == self._writer.last_committed
            and source.step <= step
        ):
            newest = self._store.newest_lineage(settings.worker)
            if newest == self._writer.lineage:
                return self._writer
        return BackgroundSaver(
            self._store,
            self._store.open_lineage(settings.worker, parent=source),
            settings.retention,
            when_busy=settings.when_busy,
        )


class _SaveInFlight:
    """The save in flight, with as much of a thread's interface as ``tf.train.Coordinator`` asks for."""

    name = "input-checkpoint-save"

    def __init__(self, hook: CheckpointInputPipelineHook) -> None:
        self._hook = hook

    def is_alive(self) -> bool:
        """Whether the session must stay open a little longer."""
        writer = self._hook._writer
        return writer is not None and writer.busy
