"""Training with a `tf.distribute` strategy that records which examples each replica was trained on."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import tensorflow as tf

import input_checkpoint as ic
from tests.support.kills import Outcome, RunningTraining
from tests.support.train_child import EachStep
from tests.support.training import BATCH, MAX_STEPS

v1 = tf.compat.v1
Dataset = tf.data.Dataset

REPLICAS = 2

ReplicaIds = list[list[list[int]]]
"""For each step, the ids that each replica was trained on."""


def _mirrored() -> Any:
    return tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(REPLICAS)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


STRATEGIES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "mirrored": _mirrored,
    "one device": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
    "one worker": tf.distribute.MultiWorkerMirroredStrategy,
}


def _sparse(ids: Any) -> Any:
    return {"sparse": tf.sparse.from_dense(ids[tf.newaxis] + 1)}


def _ragged(ids: Any) -> Any:
    return {"ragged": tf.RaggedTensor.from_row_lengths(ids, [1, tf.size(ids) - 1])}


@dataclass(frozen=True)
class Structure:
    """A structure of elements: what is made of a batch of ids, and how the model gets the ids back."""

    make: Callable[[Any], Any]
    ids: Callable[[Any, Any], Any]


STRUCTURES = {
    "ids": Structure(lambda ids: ids, lambda features, labels: features),
    "a dict and labels": Structure(
        lambda ids: ({"id": ids, "text": tf.strings.as_string(ids)}, ids * 2),
        lambda features, labels: labels - tf.strings.to_number(features["text"], tf.int64),
    ),
    "nested tuples": Structure(
        lambda ids: ({"nested": (ids * 0, (ids, [ids * 0]))}, ids),
        lambda features, labels: features["nested"][1][0] + features["nested"][0],
    ),
    "sparse and ragged in tuples": Structure(
        lambda ids: ((_sparse(ids), (_ragged(ids * 2), ids)), (ids, ids * 0)),
        lambda features, labels: (
            features[1][0]["ragged"].flat_values
            - (tf.sparse.to_dense(features[0]["sparse"])[0] - 1)
            + labels[1]
        ),
    ),
}


def ids_dataset(batches: Optional[int] = None, structure: str = "ids") -> Any:
    """Return a dataset of shuffled ids. It is endless unless it has a number of batches."""
    ids = Dataset.range(300 if batches is None else batches * BATCH).shuffle(100, seed=7)
    ids = ids.repeat() if batches is None else ids
    return ids.batch(BATCH).map(STRUCTURES[structure].make).prefetch(3)


def looked_up() -> Any:
    """Return an endless dataset of ids from a lookup table."""
    keys = tf.range(300, dtype=tf.int64)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, 299 - keys), -1)
    return ids_dataset().map(table.lookup)


def drawn_ids(build: Callable[[], Any], count: int) -> list[list[int]]:
    """Return the first batches of a dataset."""
    with tf.Graph().as_default():
        iterator = v1.data.make_initializable_iterator(build())
        batch = iterator.get_next()
        with v1.Session() as session:
            session.run([v1.tables_initializer(), iterator.initializer])
            return [session.run(batch).tolist() for _ in range(count)]


def record(ids: Any) -> Any:
    """Record the ids of a replica in the model, then increment the step."""
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    step = v1.train.get_or_create_global_step()
    history = v1.get_variable(
        "history",
        [MAX_STEPS, REPLICAS * BATCH],
        tf.int64,
        v1.zeros_initializer(),
        trainable=False,
        use_resource=True,
        aggregation=tf.VariableAggregation.SUM,
    )
    before = replica * BATCH
    row = tf.pad(ids + 1, [[before, REPLICAS * BATCH - before - tf.size(ids)]])
    with tf.control_dependencies([history.assign_add(tf.scatter_nd([[step]], [row], history.shape))]):
        return step.assign_add(1)


def trained_on_by_replica(model_dir: Path) -> ReplicaIds:
    """Return what the newest model was trained on."""
    reader = tf.train.load_checkpoint(str(model_dir))
    rows = reader.get_tensor("history")[: int(reader.get_tensor("global_step"))]
    return [
        [
            [int(number) - 1 for number in row[first : first + BATCH] if number]
            for first in range(0, REPLICAS * BATCH, BATCH)
        ]
        for row in rows
    ]


def _model_fn(features: Any, labels: Any, mode: str, params: dict[str, Any]) -> Any:
    ids = STRUCTURES[params["structure"]].ids(features, labels)
    loss = tf.reduce_mean(tf.cast(ids, tf.float32))
    if mode == tf.estimator.ModeKeys.EVAL:
        return tf.estimator.EstimatorSpec(
            mode, loss=loss, eval_metric_ops={"examples": v1.metrics.true_positives(ids >= 0, ids >= 0)}
        )
    scaffold = None
    if params["own_local_init"]:
        own = v1.get_variable("own", [], collections=[v1.GraphKeys.LOCAL_VARIABLES], trainable=False)
        scaffold = v1.train.Scaffold(local_init_op=own.initializer)
    return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=record(ids), scaffold=scaffold)


@dataclass(frozen=True)
class ReplicatedTraining:
    """What a process trains."""

    model_dir: Path
    backend: Optional[str]
    """None: without the hook."""
    steps: int = 30
    strategy: str = "mirrored"
    """Name in `STRATEGIES`."""
    structure: str = "ids"
    """Name in `STRUCTURES`."""
    batches: Optional[int] = None
    """How many batches the data has. None: it is endless."""
    with_table: bool = False
    own_local_init: bool = False
    """Whether the model has a Scaffold with a ``local_init_op`` that initializes no table."""
    is_wrapped: bool = True
    """Whether the ``input_fn`` is wrapped in `checkpointable_input_fn`."""
    model_every: int = 5
    step_seconds: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the hook."""


def make_replicated(training: ReplicatedTraining) -> Any:
    """Return the Estimator of a training. Trains and evaluates with its strategy."""
    strategy = STRATEGIES[training.strategy]()
    config = tf.estimator.RunConfig(
        train_distribute=strategy,
        eval_distribute=strategy,
        save_checkpoints_steps=training.model_every,
        save_summary_steps=100,
        log_step_count_steps=None,
    )
    params = {"structure": training.structure, "own_local_init": training.own_local_init}
    return tf.estimator.Estimator(_model_fn, str(training.model_dir), config, params=params)


def input_fn_of(training: ReplicatedTraining) -> Callable[..., Any]:
    """Return the ``input_fn`` of a training."""
    data = looked_up if training.with_table else lambda: ids_dataset(training.batches, training.structure)
    return ic.checkpointable_input_fn(data) if training.is_wrapped else data


def train(training: ReplicatedTraining) -> None:
    """Train, and print a line at every step. Call it in a process that has run no operation yet."""
    estimator = make_replicated(training)
    hooks: list[Any] = [EachStep(lambda step: print("step", step, flush=True))]
    if training.step_seconds:
        hooks.append(EachStep(lambda step: time.sleep(training.step_seconds)))
    if training.backend is not None:
        hooks.insert(
            0, ic.CheckpointInputPipelineHook(estimator, backend=training.backend, **training.options)
        )
    estimator.train(input_fn_of(training), hooks=hooks, max_steps=training.steps)


def train_as_worker(training: ReplicatedTraining, addresses: Sequence[str], index: int) -> None:
    """Train as one of several workers with the hook."""
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    )
    estimator = make_replicated(training)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=training.backend)
    input_fn = input_fn_of(training)
    tf.estimator.train_and_evaluate(
        estimator,
        tf.estimator.TrainSpec(input_fn, max_steps=training.steps, hooks=[hook]),
        tf.estimator.EvalSpec(input_fn, steps=1),
    )


def free_addresses(count: int) -> list[str]:
    """Return addresses of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def evaluate(training: ReplicatedTraining) -> None:
    """Print how many examples an evaluation sees."""
    estimator = make_replicated(training)
    print("examples", int(estimator.evaluate(input_fn_of(training))["examples"]), flush=True)


def succeed(training: ReplicatedTraining, work: Callable[[ReplicatedTraining], None] = train) -> Outcome:
    """Train or evaluate in a process of its own. Fail if it raises."""
    outcome = finish(training, work)
    assert not outcome.error, outcome.output[-4000:]
    return outcome


def finish(training: ReplicatedTraining, work: Callable[[ReplicatedTraining], None] = train) -> Outcome:
    """Train or evaluate in a process of its own, to its end, which may be an error."""
    with RunningTraining(functools.partial(work, training)) as running:
        return running.finish()


def kill(training: ReplicatedTraining, step: int, seconds: float = 0.0) -> Outcome:
    """Train in a process of its own, and kill it some time after a step. Fail if it ends before."""
    with RunningTraining(functools.partial(train, training)) as running:
        for line in running.lines():
            if line == f"step {step}\n":
                threading.Timer(seconds, running.kill).start()
                break
        outcome = running.finish()
    assert outcome.killed, outcome.output[-4000:]
    return outcome
