"""When and how the hook saves."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.store.catalog import Catalog
from input_checkpoint.tensorflow.model_checkpoints import read_model_checkpoints
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted
from tests.support.wrappers import BeforeWrites, PackGate

v1 = tf.compat.v1


class AtStep(tf.estimator.SessionRunHook):
    """Calls functions when steps are reached."""

    def __init__(self, actions: dict[int, Callable[[], None]]) -> None:
        self._actions = actions

    def begin(self) -> None:
        self._global_step = tf.identity(v1.train.get_global_step())

    def after_run(self, run_context: Any, run_values: Any) -> None:
        action = self._actions.get(int(run_context.session.run(self._global_step)))
        if action:
            action()


def committed(backend: ic.Backend) -> list[int]:
    return [info.step for info in ic.CheckpointStore.open(backend).checkpoints()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_training_goes_on_while_a_save_is_being_uploaded(tmp_path: Path, memory: MemoryBackend) -> None:
    gate, seen = PackGate(10), []
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, gate))
    actions = {
        11: lambda: gate.reached.wait(60),
        18: lambda: (seen.append(committed(memory)), gate.open()),
    }
    estimator.train(shuffled_ids, hooks=[hook, AtStep(actions)], steps=20)
    assert seen == [[0]]
    assert committed(memory) == [0, 10, 20]


def test_the_saved_state_is_that_of_the_step_however_long_the_upload_takes(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    gate = PackGate(10)
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, gate))
    estimator.train(shuffled_ids, hooks=[hook, AtStep({19: gate.open})], steps=20)
    v1.train.update_checkpoint_state(str(tmp_path / "model"), str(tmp_path / "model" / "model.ckpt-10"))
    again = ic.CheckpointInputPipelineHook(estimator, backend=memory)
    estimator.train(shuffled_ids, hooks=[again], steps=15)
    assert trained_on(tmp_path / "model") == uninterrupted(shuffled_ids, 25, tmp_path / "reference")


def test_when_busy_wait_saves_every_step_that_is_due(tmp_path: Path, memory: MemoryBackend) -> None:
    slow = BeforeWrites(memory, lambda key: time.sleep(0.2) if key.startswith("packs/") else None)
    estimator = make_estimator(tmp_path / "model", save_checkpoints_steps=3)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=slow, retention=ic.KeepAll())
    estimator.train(shuffled_ids, hooks=[hook], steps=9)
    assert committed(memory) == [0, 3, 6, 9]


def test_when_busy_skip_skips_and_says_so_and_still_saves_the_last_step(
    tmp_path: Path, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    gate = PackGate(3)
    estimator = make_estimator(tmp_path / "model", save_checkpoints_steps=3)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, gate), when_busy="skip")
    actions = {
        1: lambda: wait_until(lambda: committed(memory) == [0]),
        4: lambda: gate.reached.wait(60),
        11: gate.open,
    }
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        estimator.train(shuffled_ids, hooks=[hook, AtStep(actions)], steps=12)
    assert "at step 6 skipped" in caplog.text
    assert 6 not in committed(memory)
    assert committed(memory)[-1] == 12


def test_a_save_that_fails_in_the_background_raises_in_the_training_thread(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    def fail(key: str) -> None:
        if "/000000000010-" in key:
            raise ic.BackendPermissionError("the key has been withdrawn")

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, fail))
    with pytest.raises(ic.BackendPermissionError, match="withdrawn"):
        estimator.train(shuffled_ids, hooks=[hook], steps=60)
    assert committed(memory) == [0]


def test_a_failure_of_the_very_last_save_raises_too(tmp_path: Path, memory: MemoryBackend) -> None:
    def fail(key: str) -> None:
        if "/000000000007." in key:
            raise ic.BackendPermissionError("the key has been withdrawn")

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, fail))
    with pytest.raises(ic.BackendPermissionError, match="withdrawn"):
        estimator.train(shuffled_ids, hooks=[hook], steps=7)


def test_storage_that_is_away_for_a_moment_is_waited_for(tmp_path: Path, memory: MemoryBackend) -> None:
    outages = iter([True, True, False])

    def fail_twice(key: str) -> None:
        if "/000000000010." in key and next(outages):
            raise ic.BackendUnavailableError("no answer")

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, fail_twice))
    estimator.train(shuffled_ids, hooks=[hook], steps=20)
    assert committed(memory) == [0, 10, 20]


def test_storage_that_stays_away_raises_once_the_patience_is_over(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    def fail(key: str) -> None:
        if "/000000000010." in key:
            raise ic.BackendUnavailableError("no answer")

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(
        estimator, backend=BeforeWrites(memory, fail), retry=ic.RetryPolicy(timeout=0.5)
    )
    with pytest.raises(ic.BackendUnavailableError, match=r"no answer.*gave up"):
        estimator.train(shuffled_ids, hooks=[hook], steps=20)


def test_a_run_that_another_one_has_taken_over_from_stops_with_the_name_of_its_successor(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    def another_run_begins() -> None:
        wait_until(lambda: committed(memory) == [0, 10])
        store = ic.CheckpointStore.open(memory)
        store.begin_run("main", parent=store.newest("main").ref)

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
    with pytest.raises(
        ic.WriterSupersededError, match=rf"taken over \(host \S+, pid {os.getpid()}, \d{{4}}-"
    ):
        estimator.train(shuffled_ids, hooks=[hook, AtStep({15: another_run_begins})], steps=60)
    assert committed(memory) == [0, 10]


def test_an_exception_in_training_lets_the_save_in_flight_finish(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    slow = BeforeWrites(memory, lambda key: time.sleep(0.5) if key.startswith("packs/") else None)
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=slow)

    def crash() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        estimator.train(shuffled_ids, hooks=[hook, AtStep({10: crash})], steps=20)
    assert committed(memory) == [0, 10]


def test_timed_saves_fall_on_the_steps_of_the_model_saver(tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model", save_checkpoints_secs=1, keep_checkpoint_max=50)
    hook = ic.CheckpointInputPipelineHook(estimator, retention=ic.KeepAll())
    slowly = AtStep({step: lambda: time.sleep(0.15) for step in range(100)})
    estimator.train(shuffled_ids, hooks=[hook, slowly], steps=30)
    saved = read_model_checkpoints(str(tmp_path / "model"))
    assert saved is not None
    assert len(saved.paths) >= 4
    assert committed(ic.open_backend(f"{tmp_path}/model-input")) == sorted(saved.paths)


def test_timed_saves_happen_also_where_nobody_saves_the_model(tmp_path: Path, memory: MemoryBackend) -> None:
    hook = ic.CheckpointInputPipelineHook.for_session(
        model_dir=str(tmp_path / "never-written"), backend=memory, save_secs=0.2, retention=ic.KeepAll()
    )
    with v1.Graph().as_default():
        ids = v1.data.make_one_shot_iterator(shuffled_ids()).get_next()
        with tf.control_dependencies([ids]):
            step = v1.train.get_or_create_global_step().assign_add(1)
        stop = v1.train.StopAtStepHook(num_steps=20)
        with v1.train.MonitoredSession(hooks=[hook, stop]) as session:
            while not session.should_stop():
                session.run(step)
                time.sleep(0.1)
    steps = committed(memory)
    assert steps[0] == 0
    assert steps[-1] == 20
    assert len(steps) >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_steps": 5, "save_secs": 5}, "both save_secs and save_steps"),
        ({"save_steps": 0}, "save_steps must be positive"),
        ({"save_secs": -1}, "save_secs must be positive"),
        ({"resume": "sometimes"}, "resume must be one of 'aligned'"),
        ({"when_busy": "panic"}, "when_busy must be 'wait' or 'skip'"),
    ],
)
def test_a_wrong_argument_is_a_value_error_that_names_it(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"), **arguments)


def test_save_steps_overrides_the_run_config(tmp_path: Path, memory: MemoryBackend) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, save_steps=4)
    estimator.train(shuffled_ids, hooks=[hook], steps=10)
    assert committed(memory) == [0, 4, 8, 10]


def test_for_session_needs_to_know_where_to_put_the_state() -> None:
    with pytest.raises(ValueError, match="pass a backend, or a model_dir"):
        ic.CheckpointInputPipelineHook.for_session(save_steps=10)


def test_the_hook_refuses_to_be_passed_to_evaluate(tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model")
    estimator.train(shuffled_ids, steps=1)
    with pytest.raises(ValueError, match="do not pass it to evaluate"):
        estimator.evaluate(shuffled_ids, steps=1, hooks=[ic.CheckpointInputPipelineHook(estimator)])


def test_a_bad_backend_is_known_when_the_hook_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ic.BackendNotFoundError, match="is a file"):
        ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"), backend=str(tmp_path / "file"))


def test_only_as_many_checkpoints_stay_as_the_policy_says(tmp_path: Path, memory: MemoryBackend) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(
        estimator, backend=memory, retention=ic.KeepLast(2) | ic.KeepEverySteps(20)
    )
    estimator.train(shuffled_ids, hooks=[hook], steps=60)
    assert committed(memory) == [0, 20, 40, 50, 60]
    catalog = Catalog(memory)
    needed = {pack.key for ref in catalog.refs() for pack in catalog.header(ref).packs}
    assert {info.key for info in memory.list("packs/")} == needed
