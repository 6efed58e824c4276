"""When the hook saves, and what happens if a save is slow or fails."""

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
from tests.support.hooked_training import committed_steps, wait_until
from tests.support.training import make_estimator, shuffled_ids, trained_on, uninterrupted
from tests.support.wrappers import BeforeWrites, PackGate

v1 = tf.compat.v1


class AtStep(tf.estimator.SessionRunHook):
    """Calls a function when a step is reached."""

    def __init__(self, actions: dict[int, Callable[[], None]]) -> None:
        self._actions = actions

    def begin(self) -> None:
        self._global_step = tf.identity(v1.train.get_global_step())

    def after_run(self, run_context: Any, run_values: Any) -> None:
        action = self._actions.get(int(run_context.session.run(self._global_step)))
        if action:
            action()


def failing_writes(backend: ic.Backend, key_part: str, error: ic.BackendError) -> ic.Backend:
    """Return a backend that fails to write every key that contains ``key_part``."""

    def fail(key: str) -> None:
        if key_part in key:
            raise error

    return BeforeWrites(backend, fail)


def test_training_continues_while_a_save_is_uploaded(tmp_path: Path, memory: MemoryBackend) -> None:
    gate, seen = PackGate(10), []
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, gate))
    actions = {
        11: lambda: gate.reached.wait(60),
        18: lambda: (seen.append(committed_steps(memory)), gate.open()),
    }
    estimator.train(shuffled_ids, hooks=[hook, AtStep(actions)], steps=20)
    assert seen == [[0]]
    assert committed_steps(memory) == [0, 10, 20]


def test_a_slow_upload_still_saves_the_state_of_its_step(tmp_path: Path, memory: MemoryBackend) -> None:
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
    assert committed_steps(memory) == [0, 3, 6, 9]


def test_when_busy_skip_skips_with_a_warning_and_still_saves_the_last_step(
    tmp_path: Path, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    gate = PackGate(3)
    estimator = make_estimator(tmp_path / "model", save_checkpoints_steps=3)
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, gate), when_busy="skip")
    actions = {
        1: lambda: wait_until(lambda: committed_steps(memory) == [0]),
        4: lambda: gate.reached.wait(60),
        11: gate.open,
    }
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        estimator.train(shuffled_ids, hooks=[hook, AtStep(actions)], steps=12)
    assert "at step 6 skipped" in caplog.text
    assert 6 not in committed_steps(memory)
    assert committed_steps(memory)[-1] == 12


def test_a_save_that_fails_in_the_background_raises_in_the_training_thread(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    backend = failing_writes(memory, "/000000000010-", ic.BackendPermissionError("withdrawn"))
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=backend)
    with pytest.raises(ic.BackendPermissionError, match="withdrawn"):
        estimator.train(shuffled_ids, hooks=[hook], steps=60)
    assert committed_steps(memory) == [0]


def test_a_failure_of_the_last_save_is_raised(tmp_path: Path, memory: MemoryBackend) -> None:
    backend = failing_writes(memory, "/000000000007.", ic.BackendPermissionError("withdrawn"))
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=backend)
    with pytest.raises(ic.BackendPermissionError, match="withdrawn"):
        estimator.train(shuffled_ids, hooks=[hook], steps=7)


def test_a_short_outage_of_the_storage_is_retried(tmp_path: Path, memory: MemoryBackend) -> None:
    outages = iter([True, True, False])

    def fail_twice(key: str) -> None:
        if "/000000000010." in key and next(outages):
            raise ic.BackendUnavailableError("no answer")

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=BeforeWrites(memory, fail_twice))
    estimator.train(shuffled_ids, hooks=[hook], steps=20)
    assert committed_steps(memory) == [0, 10, 20]


def test_a_long_outage_of_the_storage_raises_after_the_retry_timeout(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    backend = failing_writes(memory, "/000000000010.", ic.BackendUnavailableError("no answer"))
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=backend, retry=ic.RetryPolicy(timeout=0.5))
    with pytest.raises(ic.BackendUnavailableError, match=r"no answer.*gave up"):
        estimator.train(shuffled_ids, hooks=[hook], steps=20)


def test_a_superseded_run_stops_with_an_error_that_names_the_newer_run(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    def another_run_begins() -> None:
        wait_until(lambda: committed_steps(memory) == [0, 10])
        store = ic.CheckpointStore.open(memory)
        store.begin_run("main", parent=store.newest("main").ref)

    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory)
    with pytest.raises(
        ic.WriterSupersededError, match=rf"taken over \(host \S+, pid {os.getpid()}, \d{{4}}-"
    ):
        estimator.train(shuffled_ids, hooks=[hook, AtStep({15: another_run_begins})], steps=60)
    assert committed_steps(memory) == [0, 10]


def test_an_exception_in_training_lets_the_save_in_progress_finish(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    slow = BeforeWrites(memory, lambda key: time.sleep(0.5) if key.startswith("packs/") else None)
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=slow)

    def crash() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        estimator.train(shuffled_ids, hooks=[hook, AtStep({10: crash})], steps=20)
    assert committed_steps(memory) == [0, 10]


def test_timed_saves_coincide_with_those_of_the_model(tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model", save_checkpoints_secs=1, keep_checkpoint_max=50)
    hook = ic.CheckpointInputPipelineHook(estimator, retention=ic.KeepAll())
    slowly = AtStep({step: lambda: time.sleep(0.15) for step in range(100)})
    estimator.train(shuffled_ids, hooks=[hook, slowly], steps=30)
    saved = read_model_checkpoints(str(tmp_path / "model"))
    assert saved is not None
    assert len(saved.paths) >= 4
    assert committed_steps(ic.open_backend(f"{tmp_path}/model-input")) == sorted(saved.paths)


def test_save_steps_overrides_the_run_config(tmp_path: Path, memory: MemoryBackend) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator, backend=memory, save_steps=4)
    estimator.train(shuffled_ids, hooks=[hook], steps=10)
    assert committed_steps(memory) == [0, 4, 8, 10]


def test_only_checkpoints_that_the_policy_keeps_stay(tmp_path: Path, memory: MemoryBackend) -> None:
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(
        estimator, backend=memory, retention=ic.KeepLast(2) | ic.KeepEverySteps(20)
    )
    estimator.train(shuffled_ids, hooks=[hook], steps=60)
    assert committed_steps(memory) == [0, 20, 40, 50, 60]
    catalog = Catalog(memory)
    needed = {pack.key for ref in catalog.refs() for pack in catalog.header(ref).packs}
    assert {info.key for info in memory.list("packs/")} == needed
