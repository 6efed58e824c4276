"""Resuming works for any input that can save and restore its state, without TensorFlow."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.training.resuming import Resumer
from tests.support.counting import Counter

WORKER = "main"


@pytest.fixture
def store(memory: MemoryBackend) -> ic.CheckpointStore:
    return ic.CheckpointStore.open(memory, create=True)


@pytest.fixture
def saved(store: ic.CheckpointStore) -> list[ic.CheckpointRef]:
    """Checkpoints of steps 10, 20 and 30. The value of the counter is ten times the step."""
    run, counter, saved = store.begin_run(WORKER), Counter(), []
    for step in (10, 20, 30):
        counter.value = 10 * step
        saved.append(run.save(step, counter.snapshot().states()).ref)
    return saved


def resume(store: ic.CheckpointStore, step: int, mode: str = "aligned", counter=None):
    counter = counter or Counter()
    resumed = Resumer(store, WORKER, mode).restore(counter, step, store.list_worker(WORKER))
    return resumed and resumed.ref, counter.value


def test_the_input_is_restored_to_the_step_of_the_model(store, saved):
    assert resume(store, 20) == (saved[1], 200)


def test_a_new_model_starts_its_input_from_the_beginning(store):
    assert resume(store, 0) == (None, 0)


def test_between_two_checkpoints_the_older_one_is_restored_and_the_repeated_steps_are_logged(
    store, saved, caplog
):
    assert resume(store, 25) == (saved[1], 200)
    assert "5 steps of data will be seen again" in caplog.text


def test_a_damaged_checkpoint_is_skipped_with_a_warning(store, saved, memory, caplog):
    memory.put(manifest_key(saved[2]), b"damaged")
    assert resume(store, 30) == (saved[1], 200)
    assert "Trying an older input checkpoint, because" in caplog.text


def test_latest_restores_the_newest_checkpoint_and_logs_the_skipped_steps(store, saved, caplog):
    assert resume(store, 10, "latest") == (saved[2], 300)
    assert "the data of 20 steps is skipped" in caplog.text


def test_exact_raises_if_the_step_has_no_checkpoint(store, saved):
    with pytest.raises(ic.CheckpointNotFoundError, match=r"at step 25.*it has steps 10, 20, 30") as raised:
        resume(store, 25, "exact")
    assert raised.value.uri == store.uri


def test_exact_raises_if_the_checkpoint_of_the_step_is_damaged(store, saved, memory):
    memory.put(manifest_key(saved[2]), b"damaged")
    with pytest.raises(ic.CorruptCheckpointError) as raised:
        resume(store, 30, "exact")
    assert (raised.value.ref, raised.value.step) == (saved[2], 30)


def test_the_error_about_another_inputs_state_names_the_checkpoint_and_a_way_out(store, saved):
    other = Counter()
    other.names = ("Another",)
    with pytest.raises(ic.PipelineMismatchError, match=r"step 20.*resume='fresh'") as raised:
        resume(store, 20, counter=other)
    assert (raised.value.uri, raised.value.ref) == (store.uri, saved[1])


def test_fresh_starts_over_once_and_resumes_from_what_it_saved_afterwards(store, saved):
    resumer, counter = Resumer(store, WORKER, "fresh"), Counter()
    assert resumer.restore(counter, 30, store.list_worker(WORKER)) is None
    run = store.begin_run(WORKER, parent=None)
    counter.value = 7
    ref = run.save(40, counter.snapshot().states()).ref
    resumed = resumer.restore(counter, 40, store.list_worker(WORKER))
    assert resumed is not None
    assert resumed.ref == ref


def test_a_fresh_start_logs_which_checkpoints_will_be_deleted(store, saved, caplog):
    with caplog.at_level(logging.WARNING):
        resume(store, 30, "fresh")
    assert "(steps 10, 20, 30) will be deleted after this run's second save" in caplog.text


def test_resuming_and_saving_import_no_tensorflow():
    program = (
        "import sys, input_checkpoint.training.resuming, input_checkpoint.training.background_saver\n"
        "print('tensorflow' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
