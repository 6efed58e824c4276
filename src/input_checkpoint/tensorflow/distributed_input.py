"""Feeds all replicas of a ``tf.distribute`` strategy from one iterator that can be saved.

A strategy copies the elements of a dataset to its devices through datasets that TensorFlow cannot serialize.
If an ``input_fn`` returns a callable, the strategy calls it once for each replica instead, in order, and
passes what it returns to that replica (tensorflow/python/distribute/v1/input_lib.py).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import uuid
from typing import Any, Callable, Optional

import tensorflow as tf

from input_checkpoint.tensorflow.draws import GET_NEXT_TYPES

v1 = tf.compat.v1

# Two collections, because TensorFlow can export only collections of single operations or tensors.
_INITIALIZERS = "input_checkpoint/iterator_initializers"
_ARE_INITIALIZED = "input_checkpoint/iterators_are_initialized"
_SUPPORTED = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
    v1.distribute.MirroredStrategy,
    v1.distribute.OneDeviceStrategy,
    v1.distribute.experimental.MultiWorkerMirroredStrategy,
)


def checkpointable_input_fn(input_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ``input_fn`` whose input can be saved under a ``tf.distribute`` strategy.

    All replicas of this process then draw from one iterator, one after another. Which replica gets which
    element is part of the saved state. Each replica still gets an element of its own, as without this
    function. Without a strategy, nothing changes.

    The strategies are ``MirroredStrategy``, ``OneDeviceStrategy``, and ``MultiWorkerMirroredStrategy`` with
    one worker. Under any other, nothing changes, and the hook refuses the input before training begins.

    End the dataset with ``prefetch``: the strategy no longer prefetches by itself.

    Args:
        input_fn: returns a ``tf.data.Dataset``. May take the arguments that Estimator passes, such as
            ``params`` and ``input_context``, and may be a ``functools.partial``. Anything else that it
            returns is passed on unchanged.

    Returns:
        A function with the same arguments, for `Estimator.train` and `Estimator.evaluate`.

    Example:
        ```python
        config = tf.estimator.RunConfig(train_distribute=tf.distribute.MirroredStrategy())
        estimator = tf.estimator.Estimator(model_fn, model_dir="/models/run-7", config=config)
        hook = CheckpointInputPipelineHook(estimator, backend="s3://bucket/run-7/input")
        estimator.train(checkpointable_input_fn(input_fn), hooks=[hook], max_steps=100_000)
        ```
    """
    if isinstance(input_fn, functools.partial):
        # Estimator looks into a partial to learn which arguments are still to be passed.
        return functools.partial(checkpointable_input_fn(input_fn.func), *input_fn.args, **input_fn.keywords)

    @functools.wraps(input_fn, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = input_fn(*args, **kwargs)
        if isinstance(result, tf.data.Dataset) and _can_feed_replicas():
            return _ReplicaInput(result)
        return result

    # Estimator reads the names of the arguments with getfullargspec, which ignores __wrapped__.
    with contextlib.suppress(TypeError, ValueError):
        wrapped.__signature__ = inspect.signature(input_fn)  # type: ignore[attr-defined]  # not declared for functions
    return wrapped


def why_not_one_iterator(strategy: Any) -> Optional[str]:
    """Return why `checkpointable_input_fn` does nothing under a strategy, or None if it works."""
    name = strategy_name(strategy)
    if not isinstance(strategy, _SUPPORTED):
        return f"{name} is not supported"
    if has_several_workers(strategy):
        return f"{name} with several workers is not supported yet"
    return None


def strategy_name(strategy: Any) -> str:
    """Return the name under which TensorFlow publishes the class of a strategy."""
    name = type(strategy).__name__.lstrip("_").removesuffix("V1").removesuffix("Experimental")
    return "MultiWorkerMirroredStrategy" if name == "CollectiveAllReduceStrategy" else name


def has_several_workers(strategy: Any) -> bool:
    """Whether some replicas of a strategy run in other processes."""
    devices = [tf.DeviceSpec.from_string(device) for device in strategy.extended.worker_devices]
    tasks = {(device.job, device.replica, device.task) for device in devices}
    return len(tasks) > 1 or strategy.num_replicas_in_sync > len(devices)


def initialize(graph: Any, session: Any) -> None:
    """Initialize the iterators that `checkpointable_input_fn` has made, unless TensorFlow has done so."""
    pairs = zip(graph.get_collection(_ARE_INITIALIZED), graph.get_collection(_INITIALIZERS))
    for is_initialized, initializer in pairs:
        if not session.run(is_initialized):
            session.run(initializer)


def _can_feed_replicas() -> bool:
    return (
        not tf.executing_eagerly()
        and tf.distribute.has_strategy()
        and tf.distribute.in_cross_replica_context()
        and why_not_one_iterator(tf.distribute.get_strategy()) is None
    )


class _ReplicaInput:
    """Returns the input of the next replica whenever it is called.

    Args:
        dataset: what the replicas draw from.
    """

    def __init__(self, dataset: Any) -> None:
        self._iterator = v1.data.make_initializable_iterator(dataset)
        initializer = self._iterator.initializer
        (self._resource,) = (tensor for tensor in initializer.inputs if tensor.dtype == tf.resource)
        flag = tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name=f"input_checkpoint/{uuid.uuid4()}")
        with tf.control_dependencies([initializer]):
            initialize_once = tf.raw_ops.AssignVariableOp(resource=flag, value=True)
        is_initialized = tf.raw_ops.VarIsInitializedOp(resource=flag)
        # TensorFlow runs the tables' initializers when it creates a session, unless the user's Scaffold has
        # a local_init_op of its own. The hook then runs this one. Not always: it may list many files.
        v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, initialize_once)
        v1.add_to_collection(_INITIALIZERS, initialize_once)
        v1.add_to_collection(_ARE_INITIALIZED, is_initialized)

    def __call__(self) -> Any:
        earlier = [reader for reader in self._resource.consumers() if reader.type in GET_NEXT_TYPES]
        with tf.control_dependencies(earlier):
            return self._iterator.get_next()
