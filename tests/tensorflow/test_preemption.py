"""A training that is told to stop saves input and model, and resumes exactly where it stopped."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.tensorflow.model_checkpoints import latest_model_step
from tests.support.accumulation import MICRO, accumulated
from tests.support.hooked_training import Steps, committed_steps, input_steps, slow_upload, train
from tests.support.kills import Outcome, RunningTraining
from tests.support.preempted import Preempted, accumulate_until_preempted, preempted, reach
from tests.support.training import FailAt, make_estimator, shuffled_ids, trained_on
from tests.support.wrappers import BeforeWrites

ON = {"save_on_preemption": True}


@pytest.fixture
def training(tmp_path: Path) -> Preempted:
    return Preempted(tmp_path)


def finish_in(running: RunningTraining, seconds: float) -> Outcome:
    """Wait for the end of a process, which must come within some seconds."""
    started = time.monotonic()
    outcome = running.finish()
    assert time.monotonic() - started < seconds, outcome.output[-3000:]
    return outcome


def steps_of(outcome: Outcome) -> list[int]:
    """Return the steps that a process has printed."""
    return [int(line.split()[1]) for line in outcome.output.splitlines() if line.startswith("step ")]


def stored_steps(training: Preempted) -> list[int]:
    """Return the steps of the input checkpoints."""
    return [ref.step for ref in ic.CheckpointStore.open(str(training.store)).history("main")]


def is_input_first(store: Path, model: Path, step: int) -> bool:
    """Whether the input of a step was committed before its model was written."""
    (manifest,) = (store / "checkpoints" / "main").rglob(f"{step:012d}*")
    return manifest.stat().st_mtime_ns < (model / f"model.ckpt-{step}.index").stat().st_mtime_ns


def resume_exactly(training: Preempted, reference: Steps, *, from_step: int) -> None:
    """Train on in a new process, and check that nothing is lost and no step runs twice."""
    training.is_going.unlink(missing_ok=True)
    training.slow.unlink(missing_ok=True)
    more = Preempted(
        training.folder,
        steps=15 if training.model_after else from_step + 15,
        step_seconds=0,
        model_after=training.model_after,
    )
    with preempted(more) as running:
        second = running.finish()
    assert second.exit_code == 0, second.output[-3000:]
    assert steps_of(second) == list(range(from_step + 1, from_step + 16))
    assert trained_on(training.model) == reference[: from_step + 15]


def stop_and_resume(training: Preempted, reference: Steps, at: int) -> None:
    """Stop a training by SIGTERM at a step. Its last step is stored, and it resumes exactly there."""
    with preempted(training) as running:
        reach(running, at)
        running.terminate()
        outcome = finish_in(running, 20)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    last = steps_of(outcome)[-1]
    assert stored_steps(training)[-1] == latest_model_step(str(training.model)) == last
    resume_exactly(training, reference, from_step=last)


@pytest.mark.parametrize("model_after", [False, True])
def test_after_sigterm_input_and_model_are_stored_and_training_resumes_exactly(
    tmp_path: Path, reference: Steps, model_after: bool
) -> None:
    training = Preempted(tmp_path, model_after=model_after)
    with preempted(training) as running:
        reach(running, 13)
        running.terminate()
        outcome = finish_in(running, 20)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    last = steps_of(outcome)[-1]
    assert 13 <= last < 50
    assert stored_steps(training)[-1] == last
    assert latest_model_step(str(training.model)) == last
    assert "train returned" not in outcome.output
    assert f"The input of step {last} is stored in {training.store}, and the model of step {last} in" in (
        outcome.output
    )
    resume_exactly(training, reference, from_step=last)


@pytest.mark.parametrize("at", [9, 10, 11])
def test_sigterm_near_a_step_at_which_the_model_is_saved_anyway_is_exact(
    tmp_path: Path, reference: Steps, at: int
) -> None:
    stop_and_resume(Preempted(tmp_path, step_seconds=0.3), reference, at)


@pytest.mark.parametrize("mode", ["background", "before"])
@pytest.mark.parametrize("at", [9, 13])
def test_with_a_saving_listener_too_sigterm_is_exact(
    tmp_path: Path, reference: Steps, mode: str, at: int
) -> None:
    stop_and_resume(Preempted(tmp_path, step_seconds=0.2, listener=mode), reference, at)


def test_the_input_is_committed_before_the_model_is_written(training: Preempted) -> None:
    with preempted(training) as running:
        reach(running, 13)
        training.slow.write_text("1")
        running.terminate()
        outcome = running.finish()
    assert outcome.exit_code == 143
    assert is_input_first(training.store, training.model, stored_steps(training)[-1])


def test_three_signals_during_a_slow_save_change_nothing(training: Preempted, reference: Steps) -> None:
    with preempted(training) as running:
        reach(running, 13)
        training.slow.write_text("3")
        for _ in range(3):
            running.terminate()
            time.sleep(0.7)
        outcome = finish_in(running, 20)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    last = steps_of(outcome)[-1]
    assert stored_steps(training)[-1] == latest_model_step(str(training.model)) == last
    assert outcome.output.count("SIGTERM: training stops") == 1
    resume_exactly(training, reference, from_step=last)


def test_a_signal_during_a_long_operation_is_noticed_at_once_and_the_step_ends_first(
    tmp_path: Path, reference: Steps
) -> None:
    training = Preempted(tmp_path, op_seconds=2, step_seconds=0)
    with preempted(training) as running:
        reach(running, 3)
        time.sleep(0.7)
        running.terminate()
        sent = time.monotonic()
        for line in running.lines():
            if "SIGTERM: training stops" in line:
                break
        assert time.monotonic() - sent < 0.9
        outcome = finish_in(running, 20)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    assert steps_of(outcome) == [1, 2, 3, 4]
    resume_exactly(training, reference, from_step=4)


def test_a_function_that_sees_the_end_coming_has_the_same_effect(tmp_path: Path, reference: Steps) -> None:
    training = Preempted(tmp_path, options={**ON, "termination_watcher_fn": True})
    with preempted(training) as running:
        reach(running, 13)
        training.is_going.touch()
        outcome = finish_in(running, 20)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    assert "termination_watcher_fn: training stops" in outcome.output
    resume_exactly(training, reference, from_step=steps_of(outcome)[-1])


def test_in_another_thread_a_warning_says_that_sigterm_is_not_caught(tmp_path: Path) -> None:
    training = Preempted(tmp_path, in_thread=True)
    with preempted(training) as running:
        reach(running, 3)
        running.terminate()
        outcome = finish_in(running, 20)
    assert outcome.exit_code == -signal.SIGTERM
    assert "SIGTERM cannot be caught in thread 'trainer'" in outcome.output
    assert "Train in the main thread, or pass termination_watcher_fn." in outcome.output


def test_in_another_thread_a_function_still_stops_training(tmp_path: Path, reference: Steps) -> None:
    training = Preempted(tmp_path, in_thread=True, options={**ON, "termination_watcher_fn": True})
    with preempted(training) as running:
        reach(running, 13)
        training.is_going.touch()
        outcome = finish_in(running, 20)
    assert "train returned" not in outcome.output
    resume_exactly(training, reference, from_step=steps_of(outcome)[-1])


def test_if_the_storage_hangs_the_process_ends_in_time_and_the_older_pair_is_used(
    tmp_path: Path, reference: Steps
) -> None:
    training = Preempted(tmp_path, options={**ON, "grace_seconds": 3}, step_seconds=0.2)
    with preempted(training) as running:
        reach(running, 13)
        assert stored_steps(training)[-1] == 10
        training.slow.write_text("1000")
        running.terminate()
        outcome = finish_in(running, 8)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    assert "The process ends now, 3 s after SIGTERM, before everything is stored." in outcome.output
    assert f"The input of step 10 is stored in {training.store}" in outcome.output
    assert f"the model of step 10 in {training.model}" in outcome.output
    assert latest_model_step(str(training.model)) == 10
    resume_exactly(training, reference, from_step=10)


def test_a_step_that_is_longer_than_the_time_of_grace_ends_with_the_process(
    tmp_path: Path, reference: Steps
) -> None:
    training = Preempted(tmp_path, options={**ON, "grace_seconds": 1}, op_seconds=30, step_seconds=0)
    with preempted(training) as running:
        for line in running.lines():
            if "Saving input checkpoint for step 0" in line:
                break
        time.sleep(1)
        running.terminate()
        outcome = finish_in(running, 10)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    assert "The process ends now, 1 s after SIGTERM" in outcome.output
    resume_exactly(training, reference, from_step=0)


def test_a_step_that_accumulates_gradients_is_finished_first(tmp_path: Path, reference: Steps) -> None:
    def runs_until(end: int) -> RunningTraining:
        return RunningTraining(functools.partial(accumulate_until_preempted, tmp_path, end))

    with runs_until(60) as running:
        reach(running, 3)
        reach(running, 3)  # the second run of the fourth step
        running.terminate()
        outcome = finish_in(running, 20)
    assert outcome.exit_code == 143, outcome.output[-3000:]
    assert steps_of(outcome)[-1] == 4
    assert accumulated(tmp_path / "model") == reference[: 4 * MICRO]
    with runs_until(6) as running:
        assert running.finish().exit_code == 0
    assert accumulated(tmp_path / "model") == reference[: 4 * MICRO + 6]


def test_without_the_option_sigterm_has_its_usual_effect(tmp_path: Path) -> None:
    with preempted(Preempted(tmp_path, options={})) as running:
        reach(running, 3)
        running.terminate()
        outcome = finish_in(running, 20)
    assert outcome.exit_code == -signal.SIGTERM


def test_after_training_the_handlers_of_the_program_are_back(tmp_path: Path, reference: Steps) -> None:
    mine = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        train(tmp_path / "model", 3, save_on_preemption=True)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, mine)
    assert trained_on(tmp_path / "model") == reference[:3]


def test_after_training_has_failed_the_handlers_of_the_program_are_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="no more"):
        train(tmp_path / "model", 10, hooks=[FailAt(3, ValueError("no more"))], save_on_preemption=True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1


class Terminate(tf.estimator.SessionRunHook):
    """Sends SIGTERM to this process once, after a step, and does something else."""

    def __init__(self, step: int, then: Callable[[], object] = lambda: None) -> None:
        self._left = step
        self._then = then

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)  # a thread takes note of it
            self._then()


def stop(model_dir: Path, *hooks: Any, **options: Any) -> Any:
    """Train until this process is told to stop. Return its exit code."""
    with pytest.raises(SystemExit) as raised:
        train(model_dir, 100, hooks=hooks, **ON, **options)
    return raised.value.code


def test_a_handler_of_the_program_that_ends_it_does_so_after_the_save(model: Path, reference: Steps) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    try:
        assert stop(model, Terminate(13)) == 7
    finally:
        signal.signal(signal.SIGTERM, before)
    assert input_steps(model)[-1] == 14
    assert trained_on(model) == reference[:14]


def test_an_error_of_another_hook_at_the_end_is_logged(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    class FailAtEnd(tf.estimator.SessionRunHook):
        def end(self, session: Any) -> None:
            raise ValueError("no disk for the report")

    assert stop(model, Terminate(3), FailAtEnd()) == 143
    assert "A hook failed at the end of training." in caplog.text
    assert "no disk for the report" in caplog.text
    assert input_steps(model)[-1] == 4


def test_a_signal_just_before_a_recovered_error_stops_the_next_session(model: Path, reference: Steps) -> None:
    def fail() -> None:
        raise tf.errors.AbortedError(None, None, "preempted")

    assert stop(model, Terminate(13, fail)) == 143
    assert input_steps(model)[-1] == 11  # restored at 10
    assert trained_on(model) == reference[:11]
    train(model, 9)
    assert trained_on(model) == reference[:20]


def test_a_training_whose_model_is_saved_by_time_is_stored(model: Path, reference: Steps) -> None:
    estimator = make_estimator(model, save_checkpoints_secs=600)
    hook = ic.CheckpointInputPipelineHook(estimator, **ON)
    with pytest.raises(SystemExit):
        estimator.train(shuffled_ids, hooks=[hook, Terminate(13)], max_steps=100)
    assert input_steps(model)[-1] == 14
    train(model, 6)
    assert trained_on(model) == reference[:20]


def test_train_and_evaluate_ends_too(model: Path, reference: Steps) -> None:
    estimator = make_estimator(model)
    hooks = [ic.CheckpointInputPipelineHook(estimator, **ON), Terminate(13)]
    with pytest.raises(SystemExit):
        tf.estimator.train_and_evaluate(
            estimator,
            tf.estimator.TrainSpec(shuffled_ids, max_steps=100, hooks=hooks),
            tf.estimator.EvalSpec(shuffled_ids, steps=1),
        )
    assert input_steps(model)[-1] == 14
    assert trained_on(model) == reference[:14]


def test_an_input_saved_more_rarely_than_the_model_is_saved_in_full(model: Path, reference: Steps) -> None:
    assert stop(model, Terminate(19), save_steps=1000) == 143  # the model of step 20 is saved anyway
    assert input_steps(model) == [0, 20]
    train(model, 5, save_steps=1000)
    assert trained_on(model) == reference[:25]


def test_if_busy_saves_are_skipped_the_last_one_is_not(model: Path, store: Path, reference: Steps) -> None:
    backend = slow_upload(0, ic.open_backend(str(store)), 3)
    assert stop(model, Terminate(3), backend=backend, when_busy="skip") == 143
    assert committed_steps(backend) == [0, 4]
    assert is_input_first(store, model, 4)
    train(model, 16, backend=backend)
    assert trained_on(model) == reference[:20]


def test_a_tolerated_failure_of_the_last_save_leaves_the_older_pair(
    model: Path, store: Path, reference: Steps
) -> None:
    is_down = threading.Event()

    def fail(key: str) -> None:
        if is_down.is_set():
            raise ic.BackendUnavailableError("down", uri=str(store))

    backend = BeforeWrites(ic.open_backend(str(store)), fail)
    options = {"backend": backend, "on_save_failure": "warn", "retry": None, "save_steps": 10}
    assert stop(model, Terminate(13, is_down.set), **options) == 143
    is_down.clear()
    train(model, 10, **options)
    assert committed_steps(backend)[-1] == 20
    assert trained_on(model) == reference[:20]


def test_several_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_on_preemption works with one worker, and this training has 2"):
        ic.SessionHook(
            model_dir=str(tmp_path / "model"), num_workers=2, worker="worker-0", save_steps=10, **ON
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({**ON, "grace_seconds": "20"}, TypeError, "grace_seconds must be a number of seconds, got '20'"),
        ({**ON, "grace_seconds": 0}, ValueError, "grace_seconds must be positive"),
        ({**ON, "termination_watcher_fn": True}, TypeError, "must be a function without arguments, got True"),
        ({"termination_watcher_fn": bool}, ValueError, "needs save_on_preemption=True"),
    ],
)
def test_an_invalid_option_is_refused(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"), **options)
