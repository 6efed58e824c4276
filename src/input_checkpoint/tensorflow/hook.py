"""The hook for Estimator, a drop-in for TensorFlow's hook of the same name."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Optional

import tensorflow as tf

from input_checkpoint.errors import UnsupportedPipelineError
from input_checkpoint.tensorflow.distributed_input import has_several_workers, strategy_name
from input_checkpoint.tensorflow.session_hook import SessionHook
from input_checkpoint.training.schedule import SaveSchedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from input_checkpoint.training.settings import TrainingOptions

# Estimator reads the global step in train() only, and keeps the operation in this collection:
# tensorflow/python/training/training_util.py, GLOBAL_STEP_READ_KEY.
_READ_IN_TRAINING = "global_step_read_op_cache"

_MIN_MODELS = 3
"""One whose input is being uploaded, one whose input waits for that, and the pair to go back to."""
_MIN_MARKED_MODELS = 2
"""One whose mark is being written, and one that has a mark."""

logger = logging.getLogger(__name__)


class CheckpointInputPipelineHook(SessionHook):
    """Saves the state of an Estimator's input pipeline away from the model directory, and resumes it exactly.

    Replaces ``tf.data.experimental.CheckpointInputPipelineHook``, which TensorFlow 2.16 removed
    (tensorflow/python/data/experimental/ops/iterator_ops.py): the positional arguments, the five hook methods
    and the ``ValueError``s are the same. All iterators of the graph are saved at the first step, every N
    steps or seconds, and at the end. Training waits only while TensorFlow takes the in-memory snapshot;
    upload, commit and pruning happen in the background.

    When training resumes, the input is restored to the step of the restored model, so that no example is lost
    and none is seen twice. If that model has no input checkpoint, the missing batches are drawn without
    training on them. If that is not possible, and a crash is the reason, the model's ``checkpoint`` file is
    turned back to the newest step that has both.

    Pass the hook to ``train`` only, not to ``evaluate`` or ``predict``. Under ``MirroredStrategy``, wrap the
    ``input_fn`` in `checkpointable_input_fn`.

    Args:
        estimator: the Estimator that is trained.
        external_state_policy: what to do about state outside the pipeline, such as random number generators:
            ``'fail'`` (default), ``'warn'`` or ``'ignore'`` (it is not saved).
        backend: URI (``s3://bucket/run-7/input``, ``/data/run-7-input``, …), path, or an open `Backend`,
            outside the model directory. None means ``<model_dir>-input``, beside it.
        storage_options: passed to the fsspec filesystem.
        save_steps: number of global steps between two saves in full. None for both this and ``save_secs``
            means: as the estimator's RunConfig says, at the same steps as the model. It may be much larger:
            at each model checkpoint in between, the hook writes a small mark. A resume from there draws the
            batches since the last save without training on them. If the pipeline may return other batches,
            such as those of a shuffle without a seed in its next pass, the input is saved in full whenever
            the model is.
        save_secs: seconds between two saves in full, each at a step at which the model was saved.
        retention: which checkpoints to keep; ``KeepLast(5)`` by default.
        resume: ``'aligned'`` (default): at the model's step or, failing that, from the newest older
            checkpoint, with a warning. ``'exact'``: at the model's step, or an error. ``'latest'``: from the
            newest, as TensorFlow's hook does. ``'fresh'``: from the beginning, the first time that this hook
            is used.
        when_busy: what to do if a save is due while the previous one is running: ``'wait'`` for it (default),
            or ``'skip'`` the new one.
        retry: how long the background save retries while the storage is unavailable; two minutes by default.
            None: not at all.
        probe: write, read, list and delete two small objects now, so that a problem with the storage shows
            before training begins. True by default.
        on_pipeline_change: what to do if the pipeline is not the one that a checkpoint was saved from.
            ``'refuse'`` (default): an error if TensorFlow could not restore the state, a warning if it would
            continue in other data. ``'warn'``: a warning in both cases. ``'ignore'``: nothing is compared.
        max_fast_forward: how far a resume may draw the input without training on it. A number of global
            steps: the input is then saved in full often enough that no model is farther from a save. A
            ``timedelta``: a resume stops drawing after this time, and goes back to an older model. None
            (default): no limit. 0: never, and the input is saved in full whenever the model is.
        adopt: resume from the input state of another training that the store holds, which is refused
            otherwise. False by default.
        on_save_failure: ``'raise'`` (default): a failed save or mark stops training. ``'warn'``: training
            continues until ``max_failed_saves`` saves, or marks, in a row have failed.
        max_failed_saves: at least 1; 3 by default.
        save_on_preemption: on SIGTERM, finish the present step, store input and model, and end the process
            with exit code 143. False by default. Needs a training with one worker, in the main thread.
        termination_watcher_fn: returns True once the machine is about to go, which then has the same effect
            as SIGTERM. Called once a second in a thread of its own. None (default): only SIGTERM counts.
        grace_seconds: how many seconds after the signal the process ends in any case, even if a save hangs;
            20 by default. Choose less than the platform gives.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: both or neither of ``save_steps`` and ``save_secs`` are given (RunConfig included), a
            value is not allowed, ``save_on_preemption`` is used with several workers, or the backend lies
            inside the model directory.
        BackendError: the backend cannot be used.

    Training raises `DifferentRunError` if the store holds the input state of another training,
    `DifferentModelError` if another Estimator is trained, and `UntrackedDrawError` if a run outside of the
    hooks draws from the input.

    Example:
        ```python
        estimator = tf.estimator.Estimator(model_fn, model_dir="/models/run-7")
        hook = CheckpointInputPipelineHook(estimator, backend="s3://bucket/run-7/input")
        estimator.train(input_fn, hooks=[hook], max_steps=100_000)
        ```
    """

    for_session = SessionHook
    """The same hook for a ``MonitoredTrainingSession``, without an Estimator: see `SessionHook`."""

    def __init__(
        self,
        estimator: Any,
        external_state_policy: Optional[Any] = None,
        **options: Unpack[TrainingOptions],
    ) -> None:
        config = getattr(estimator, "config", None)
        if config is None or not hasattr(estimator, "model_dir"):
            raise TypeError(
                f"CheckpointInputPipelineHook needs an Estimator, got {estimator!r}. For a "
                "MonitoredTrainingSession use CheckpointInputPipelineHook.for_session(model_dir=...)."
            )
        if options.get("save_steps") is None and options.get("save_secs") is None:
            options["save_steps"] = config.save_checkpoints_steps
            options["save_secs"] = config.save_checkpoints_secs
        _warn_of_parameter_servers(config)
        self._models_kept: Optional[int] = config.keep_checkpoint_max
        super().__init__(
            model_dir=estimator.model_dir,
            worker=_worker_name(config),
            num_workers=config.num_worker_replicas,
            model_schedule=_model_schedule(config),
            external_state_policy=external_state_policy,
            **options,
        )

    def begin(self) -> None:
        """See `SessionHook.begin`."""
        _check_strategy()
        super().begin()
        _check_models_kept(
            self._models_kept, _MIN_MARKED_MODELS if self._marking.why_not_alone is None else _MIN_MODELS
        )

    @property
    def _saves_model_first(self) -> bool:
        # Estimator adds a CheckpointSaverHook if its RunConfig has an interval.
        return self._settings.model_schedule is not None

    def _check_graph(self, graph: Any) -> None:
        super()._check_graph(graph)
        if not graph.get_collection(_READ_IN_TRAINING):
            raise ValueError(
                "CheckpointInputPipelineHook checkpoints training input: do not pass it to predict()"
            )


def _check_strategy() -> None:
    """Raise UnsupportedPipelineError if the strategy trains one model in several processes."""
    if not tf.distribute.has_strategy():
        return
    strategy = tf.distribute.get_strategy()
    if has_several_workers(strategy):
        raise UnsupportedPipelineError(
            f"{strategy_name(strategy)} with several workers is not supported yet: nothing would make all "
            "workers resume from the same step. Use one worker, or train without this hook."
        )


def _warn_of_parameter_servers(config: Any) -> None:
    """Warn of what a restart of some of the tasks does to a training with parameter servers."""
    if config.num_ps_replicas:
        logger.warning(
            "If the chief or a parameter server restarts, the model goes back to its last checkpoint, but "
            "the input of the workers that keep running does not: the model misses what they have drawn "
            "since then. Restart all tasks together."
        )


def _check_models_kept(keep_checkpoint_max: Optional[int], needed: int) -> None:
    """Warn if too few model checkpoints are kept for a model to go back to after a crash."""
    if keep_checkpoint_max and keep_checkpoint_max < needed:
        logger.warning(
            "RunConfig(keep_checkpoint_max=%d) may leave no model checkpoint whose input is stored after a "
            "crash. Keep at least %d.",
            keep_checkpoint_max,
            needed,
        )


def _model_schedule(config: Any) -> Optional[SaveSchedule]:
    """Return when the Estimator saves its model, or None if it never does."""
    steps, secs = config.save_checkpoints_steps, config.save_checkpoints_secs
    return SaveSchedule(steps, secs) if steps or secs else None


def _worker_name(config: Any) -> str:
    """Return the name of this task in the cluster of a RunConfig."""
    return "main" if config.num_worker_replicas <= 1 else f"{config.task_type}-{config.task_id}"
