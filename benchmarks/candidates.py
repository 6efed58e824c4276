"""The ways to save an input pipeline that the benchmarks compare, all on the same pipeline.

The hooks share one monitored session. Each one saves only when it is its turn. Its stall is the time that it
spends on the training thread: in `after_run` of the step that it saves, and in `before_run` of the next one.
TensorFlow calls the hooks of a session in the order of a list. If another hook came first, part of a save
that runs in the background would pass unnoticed during its call. So `_Together` calls the hook whose turn it
is first, and no result depends on the order of the candidates.
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
from benchmarks.names import FLOOR
from benchmarks.pipelines import Pipeline, consumed
from benchmarks.traffic import TrafficBackend
from input_checkpoint import CheckpointInputPipelineHook
from input_checkpoint.tensorflow.iterators import external_state_policy_number
from integration.servers.server import Place

v1 = tf.compat.v1


class Candidate(abc.ABC):
    """One way to save the state of an input pipeline."""

    name: str
    stall_seconds: float = 0.0
    """For how long the last save blocked the training thread."""
    durable_seconds: float = 0.0
    """From the start of the last save until it was durable."""

    @abc.abstractmethod
    def save(self) -> None:
        """Save now. Return when training can continue."""

    def warm_up(self) -> None:
        """Save once without measuring: TensorFlow prepares an operation on its first run."""
        self.save()
        self.wait_until_durable()

    def wait_until_durable(self) -> None:  # noqa: B027 - most save synchronously
        """Wait for the background work of the last save."""


class HookCandidate(Candidate, tf.estimator.SessionRunHook):  # type: ignore[misc]  # untyped base
    """A hook in a training session that it may share with other hooks."""

    def __init__(self, name: str, hook: Any) -> None:
        self.name = name
        self.hook = hook
        self.session: Optional[TrainingSession] = None
        self.comes_first = False
        """Whether it is called before all other hooks: in the step that it saves, and in the next one."""
        self._is_its_turn = False
        self._seconds = 0.0
        self._started_at = 0.0

    def save(self) -> None:
        """See `Candidate.save`. Trains a step, saves, and trains one more, which waits for the snapshot."""
        assert self.session is not None
        self._seconds = 0.0
        self.comes_first = self._is_its_turn = True
        self.session.step()
        self._is_its_turn = False
        self.session.step()
        self.comes_first = False
        self.stall_seconds = self._seconds
        self.durable_seconds = self._seconds

    def warm_up(self) -> None:
        """See `Candidate.warm_up`. Does nothing: hooks save at the start, and `Floor` does the rest."""

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
        if not self._is_its_turn:
            return
        self._started_at = started = time.perf_counter()
        self.hook.after_run(run_context, run_values)
        self._seconds += time.perf_counter() - started

    def end(self, session: Any) -> None:
        """Called by TensorFlow. Makes no final save."""


class _Together(tf.estimator.SessionRunHook):  # type: ignore[misc]  # untyped base
    """The candidates of a session as one hook, which calls the one that saves first."""

    def __init__(self, hooks: Sequence[HookCandidate]) -> None:
        self._hooks = hooks

    def begin(self) -> None:
        """Called by TensorFlow."""
        for hook in self._hooks:
            hook.begin()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Called by TensorFlow."""
        for hook in self._hooks:
            hook.after_create_session(session, coord)

    def before_run(self, run_context: Any) -> Any:
        """Called by TensorFlow."""
        wanted = {}
        for hook in self._in_order():
            arguments = hook.before_run(run_context)
            if arguments is not None:
                wanted[hook.name] = arguments.fetches
        return v1.train.SessionRunArgs(wanted)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Called by TensorFlow."""
        for hook in self._in_order():
            hook.after_run(run_context, run_values._replace(results=run_values.results.get(hook.name)))

    def end(self, session: Any) -> None:
        """Called by TensorFlow."""
        for hook in self._hooks:
            hook.end(session)

    def _in_order(self) -> list[HookCandidate]:
        return sorted(self._hooks, key=lambda hook: not hook.comes_first)


class Ours(HookCandidate):
    """This library's hook.

    Args:
        name: name in the results.
        backend: where the hook saves to.
        retention: as in the hook.
    """

    def __init__(
        self, name: str, backend: ic.Backend, retention: Optional[ic.RetentionPolicy] = None
    ) -> None:
        self.backend = TrafficBackend(backend)
        hook = CheckpointInputPipelineHook.for_session(
            backend=self.backend, save_steps=1, resume="latest", retention=retention or ic.KeepLast(2)
        )
        super().__init__(name, hook)

    def wait_until_durable(self) -> None:
        """See `Candidate.wait_until_durable`."""
        # The hook itself waits only at the end of training.
        self.hook._running_saver.wait()
        self.durable_seconds = self.backend.committed_at - self._started_at


class TensorFlowHook(HookCandidate):
    """TensorFlow's hook of the same name, which saves into the model directory.

    Args:
        name: name in the results.
        folder: the model directory.
        remote: where to upload each save afterwards. None uploads nothing.
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
        if not self._is_its_turn or self._remote is None:
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


class Floor(HookCandidate):
    """The part that no save can avoid: taking the state into memory."""

    def __init__(self) -> None:
        super().__init__(FLOOR, SerializeHook())

    def warm_up(self) -> None:
        """See `Candidate.warm_up`.

        The hooks have saved empty buffers so far. This takes the first full state, which gets memory that the
        process has never used: with a million elements it takes half as long as every later one.
        """
        self.save()


class SerializeHook(tf.estimator.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Takes the state into memory and discards it: no save can block the training thread for less."""

    def begin(self) -> None:
        """Called by TensorFlow."""
        resources = v1.get_default_graph().get_collection("iterators")
        self._ops = [serialize_op(resource) for resource in resources]

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Called by TensorFlow."""
        run_context.session.run(self._ops)


class EagerCheckpoint(Candidate):
    """``tf.train.Checkpoint`` of an iterator in an eager loop.

    Args:
        name: name in the results.
        iterator: the iterator that the loop draws from.
        folder: where to save to.
        in_background: TensorFlow's ``enable_async``.
    """

    def __init__(self, name: str, iterator: Any, folder: Path, in_background: bool = False) -> None:
        self.name = name
        self._iterator = iterator
        self._checkpoint = tf.train.Checkpoint(iterator=iterator)
        self._options = tf.train.CheckpointOptions(enable_async=in_background)
        self._prefix = str(folder / ("async" if in_background else "plain"))
        self._started_at = 0.0

    def save(self) -> None:
        """See `Candidate.save`."""
        next(self._iterator)
        self._started_at = started = time.perf_counter()
        self._checkpoint.write(self._prefix, options=self._options)
        self.stall_seconds = self.durable_seconds = time.perf_counter() - started

    def wait_until_durable(self) -> None:
        """See `Candidate.wait_until_durable`."""
        if self._options.enable_async:
            self._checkpoint.sync()
            self.durable_seconds = time.perf_counter() - self._started_at


class TrainingSession:
    """A session that draws from a pipeline, with the candidates as its hooks."""

    def __init__(self, session: Any, train_op: Any, iterator: Any, graph: Any) -> None:
        self._session = session
        self._train_op = train_op
        self.iterator = iterator
        self.graph = graph

    def step(self) -> None:
        """Train one step."""
        # TensorFlow's hook checks that there is a default graph.
        with self.graph.as_default():
            self._session.run(self._train_op)

    def global_step(self) -> int:
        """Return the number of steps that the model has been trained for."""
        return int(self.raw_session().run(v1.train.get_global_step(self.graph)))

    def raw_session(self) -> Any:
        """Return the underlying TensorFlow session, which runs no hooks."""
        return self._session._tf_sess()


def serialize_op(resource: Any) -> Any:
    """Return the operation that takes an iterator's state into memory and discards it."""
    policy = external_state_policy_number("fail")
    return tf.raw_ops.SerializeIterator(resource_handle=resource, external_state_policy=policy).op


@contextlib.contextmanager
def training(
    pipeline: Pipeline, hooks: Sequence[HookCandidate], train: Any = None
) -> Iterator[TrainingSession]:
    """Open a session, fill the buffers, and let every candidate make its first save.

    Args:
        pipeline: what to draw from.
        hooks: the candidates.
        train: returns the result of one step, given a batch. Defaults to `consumed`.
    """
    with v1.Graph().as_default() as graph:
        iterator = v1.data.make_initializable_iterator(pipeline.dataset())
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
        step = v1.train.get_or_create_global_step()
        result = tf.cast((train or consumed)(iterator.get_next()), tf.float32)
        # TensorFlow does not compute what changes nothing.
        total = v1.get_variable("total", [], tf.float32)
        with tf.control_dependencies([total.assign_add(result)]):
            train_op = step.assign_add(1).op
        session = v1.train.MonitoredSession(hooks=[_Together(hooks)])
    # Outside the graph, because other candidates use TensorFlow eagerly in the meantime.
    with session:
        opened = TrainingSession(session, train_op, iterator, graph)
        for hook in hooks:
            hook.session = opened
        for _ in range(pipeline.batches_to_fill):
            opened.step()
        for hook in hooks:
            hook.wait_until_durable()
        yield opened
        for hook in hooks:
            hook.wait_until_durable()


def turns(candidates: Sequence[Any], rounds: int) -> Iterator[tuple[int, Any]]:
    """Yield every candidate in every round.

    The first one changes from round to round, and the direction too, so that no candidate always follows the
    same other one.

    >>> [candidate for _, candidate in turns(["a", "b"], 2)]
    ['a', 'b', 'b', 'a']
    >>> "".join(candidate for _, candidate in turns("abc", 6))
    'abccbabcaacbcabbac'
    """
    for number in range(rounds):
        first = number // 2 % len(candidates)
        order = [*candidates[first:], *candidates[:first]]
        for candidate in reversed(order) if number % 2 else order:
            yield number, candidate
