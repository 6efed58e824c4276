"""Everybody who saves an input pipeline, side by side on one and the same pipeline.

Those that are hooks share one monitored session. Each is let save only when it is its turn, and the time that
it keeps the training thread is taken: in the call after the step of the save, and in the one before the next.
"""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import s3fs
import tensorflow as tf

import input_checkpoint as ic
from benchmarks.observed import ObservedBackend
from benchmarks.pipelines import Pipeline
from input_checkpoint import CheckpointInputPipelineHook
from input_checkpoint.tensorflow.iterators import external_state_policy_number
from integration.servers.server import Place

v1 = tf.compat.v1

FLOOR = "SerializeIterator"
OURS = "ours"
OURS_S3 = "ours on slow S3"
TF_HOOK = "TensorFlow's hook"
TF_PUT = "TensorFlow's hook + s3fs.put"
TF_CHECKPOINT = "tf.train.Checkpoint"
TF_ASYNC = "tf.train.Checkpoint, async"


class Competitor(abc.ABC):
    """One way to save the state of an input pipeline."""

    name: str
    stalled: float = 0.0
    """Seconds for which the last save kept the training thread."""
    durable: float = 0.0
    """Seconds from the beginning of the last save until it was stored for good."""

    @abc.abstractmethod
    def save(self) -> None:
        """Save now. Returns when training may go on."""

    def warm_up(self) -> None:
        """Save once untold: TensorFlow prepares an operation when it is run first."""
        self.save()
        self.settle()

    def settle(self) -> None:  # noqa: B027 - most have nothing left to do
        """Wait for what goes on in the background."""


class HookCompetitor(Competitor, tf.estimator.SessionRunHook):  # type: ignore[misc]  # untyped base
    """A hook in a session of its own or shared with others."""

    def __init__(self, name: str, hook: Any) -> None:
        self.name = name
        self.hook = hook
        self.session: Optional[TrainingSession] = None
        self._its_turn = False
        self._seconds = 0.0
        self._began = 0.0

    def save(self) -> None:
        """See `Competitor.save`: takes one step, saves, and gets ready for the next."""
        assert self.session is not None
        self._seconds = 0.0
        self._its_turn = True
        self.session.step()
        self._its_turn = False
        self.session.step()
        self.stalled = self._seconds
        self.durable = self._seconds

    def warm_up(self) -> None:
        """See `Competitor.warm_up`: hooks have saved when training began; `Floor` warms up for all."""

    def begin(self) -> None:
        """Called by TensorFlow."""
        self.hook.begin()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Called by TensorFlow."""
        self.hook.after_create_session(session, coord)

    def before_run(self, run_context: Any) -> Any:
        """Called by TensorFlow."""
        started = time.perf_counter()
        arguments = self.hook.before_run(run_context)
        self._seconds += time.perf_counter() - started
        return arguments

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Called by TensorFlow."""
        if not self._its_turn:
            return
        self._began = started = time.perf_counter()
        self.hook.after_run(run_context, run_values)
        self._seconds += time.perf_counter() - started

    def end(self, session: Any) -> None:
        """Called by TensorFlow. A last save is not made."""


class Ours(HookCompetitor):
    """This library's hook.

    Args:
        name: of the competitor.
        backend: where to.
        retention: as in the hook.
    """

    def __init__(
        self, name: str, backend: ic.Backend, retention: Optional[ic.RetentionPolicy] = None
    ) -> None:
        self.backend = ObservedBackend(backend)
        hook = CheckpointInputPipelineHook.for_session(
            backend=self.backend, save_steps=1, resume="latest", retention=retention or ic.KeepLast(2)
        )
        super().__init__(name, hook)

    def settle(self) -> None:
        """See `Competitor.settle`."""
        # The hook itself waits only when training ends.
        self.hook._current_writer.wait()
        self.durable = self.backend.committed_at - self._began


class TensorFlowHook(HookCompetitor):
    """TensorFlow's hook of the same name, which saves into the model directory.

    Args:
        name: of the competitor.
        folder: the model directory.
        remote: where each save is uploaded to afterwards, if at all.
    """

    def __init__(self, name: str, folder: Path, remote: Optional[Place] = None) -> None:
        config = tf.estimator.RunConfig(
            str(folder), save_checkpoints_steps=1, keep_checkpoint_max=2, save_summary_steps=0
        )
        estimator = tf.estimator.Estimator(lambda features: None, config=config)
        super().__init__(name, tf.data.experimental.CheckpointInputPipelineHook(estimator))
        self._folder = folder
        self._remote = remote
        if remote is not None:
            self._filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **remote.storage_options)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Called by TensorFlow."""
        super().after_run(run_context, run_values)
        if not self._its_turn or self._remote is None:
            return
        started = time.perf_counter()
        files = [str(path) for path in self.newest_files()]
        self._filesystem.put(files, f"{self._remote.uri}/tensorflow/")
        self._seconds += time.perf_counter() - started

    def newest_files(self) -> list[Path]:
        """Return the files of the last save."""
        return sorted(self._folder.glob(f"{Path(self.newest()).name}.*"))

    def newest(self) -> str:
        """Return the prefix of the last save."""
        prefix: str = tf.train.latest_checkpoint(str(self._folder), "checkpoint_input")
        return prefix


class Floor(HookCompetitor):
    """What no save can do without, and nothing else."""

    def __init__(self) -> None:
        super().__init__(FLOOR, SerializeHook())

    def warm_up(self) -> None:
        """See `Competitor.warm_up`.

        Hooks saved when the buffers were empty. This one takes the first full state, which finds memory that
        nobody has used yet: of a million elements it takes half as long as all that come after.
        """
        self.save()


class SerializeHook(tf.estimator.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Takes the state into memory and throws it away: no save can take less of the training thread."""

    def begin(self) -> None:
        """Called by TensorFlow."""
        resources = v1.get_default_graph().get_collection("iterators")
        self._ops = [serialize_op(one) for one in resources]

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Called by TensorFlow."""
        run_context.session.run(self._ops)


class EagerCheckpoint(Competitor):
    """``tf.train.Checkpoint`` of an iterator in an eager loop.

    Args:
        name: of the competitor.
        iterator: the loop's.
        folder: where to.
        in_background: TensorFlow's ``enable_async``.
    """

    def __init__(self, name: str, iterator: Any, folder: Path, in_background: bool = False) -> None:
        self.name = name
        self._iterator = iterator
        self._checkpoint = tf.train.Checkpoint(iterator=iterator)
        self._options = tf.train.CheckpointOptions(enable_async=in_background)
        self._prefix = str(folder / ("async" if in_background else "plain"))
        self._began = 0.0

    def save(self) -> None:
        """See `Competitor.save`."""
        next(self._iterator)
        self._began = started = time.perf_counter()
        self._checkpoint.write(self._prefix, options=self._options)
        self.stalled = self.durable = time.perf_counter() - started

    def settle(self) -> None:
        """See `Competitor.settle`."""
        if self._options.enable_async:
            self._checkpoint.sync()
            self.durable = time.perf_counter() - self._began


class TrainingSession:
    """A session that draws from a pipeline, with competitors as its hooks."""

    def __init__(self, session: Any, train_op: Any, iterator: Any, graph: Any) -> None:
        self._session = session
        self._train_op = train_op
        self.iterator = iterator
        self.graph = graph

    def step(self) -> None:
        """Train one step."""
        # TensorFlow's hook asks whether it is in a graph.
        with self.graph.as_default():
            self._session.run(self._train_op)

    def raw_session(self) -> Any:
        """Return TensorFlow's session, without the hooks."""
        return self._session._tf_sess()


def serialize_op(resource: Any) -> Any:
    """Return the operation that takes an iterator's state into memory, and throws it away."""
    policy = external_state_policy_number("fail")
    return tf.raw_ops.SerializeIterator(resource_handle=resource, external_state_policy=policy).op


def consumed(batch: Any) -> Any:
    """Return an operation that needs every byte of a batch.

    TensorFlow finds out what is not needed: of ``tf.size(batch)``, whose shape is known, it makes a pipeline
    of empty elements, and so a state of next to nothing.
    """
    return tf.reduce_sum(tf.strings.length(batch) if batch.dtype == tf.string else batch)


@contextlib.contextmanager
def training(
    pipeline: Pipeline, hooks: Sequence[HookCompetitor], train: Any = None
) -> Iterator[TrainingSession]:
    """Open a session, fill the buffers, and let every competitor make its first save.

    Args:
        pipeline: to draw from.
        hooks: the competitors.
        train: makes a step's operation from a batch; None makes `consumed` of it.
    """
    with v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(pipeline.dataset())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        step = v1.train.get_or_create_global_step()
        with tf.control_dependencies([(train or consumed)(iterator.get_next())]):
            train_op = step.assign_add(1).op
        session = v1.train.MonitoredSession(hooks=hooks)
    # Outside of the graph, since others use TensorFlow eagerly meanwhile.
    with session:
        opened = TrainingSession(session, train_op, iterator, graph)
        for hook in hooks:
            hook.session = opened
        for _ in range(pipeline.batches_to_fill):
            opened.step()
        for hook in hooks:
            hook.settle()
        yield opened
        for hook in hooks:
            hook.settle()


def turns(competitors: Sequence[Any], rounds: int) -> Iterator[tuple[int, Any]]:
    """Yield every competitor in every round, each of them first as often as the others.

    >>> [who for _, who in turns(["a", "b"], 2)]
    ['a', 'b', 'b', 'a']
    """
    for number in range(rounds):
        first = number % len(competitors)
        for competitor in [*competitors[first:], *competitors[:first]]:
            yield number, competitor
