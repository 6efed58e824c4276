"""What the comparison of hooks in the benchmarks must not depend on, and what the benchmarks measure."""

from __future__ import annotations

import doctest
import importlib
import itertools
import subprocess
import sys
from typing import Any

import pytest
import tensorflow as tf

from benchmarks import candidates, pipelines
from benchmarks.candidates import HookCandidate
from benchmarks.documentation import SHORT, Row
from benchmarks.report import MEASUREMENTS
from benchmarks.step_clock import StepClock

NAMES = ("one", "two", "three")


class Noting(tf.estimator.SessionRunHook):  # type: ignore[misc]  # untyped base
    """Notes its calls. Asks for the global step, as TensorFlow's hook does."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name = name
        self._calls = calls

    def before_run(self, run_context: Any) -> Any:
        self._calls.append(f"before, {self._name}")
        step = tf.compat.v1.train.get_global_step(run_context.session.graph)
        return tf.compat.v1.train.SessionRunArgs(step)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        assert run_values.results > 0
        self._calls.append(f"after, {self._name}")


@pytest.mark.parametrize("order", list(itertools.permutations(NAMES)), ids="-".join)
def test_the_hook_that_saves_is_called_first_in_any_order(order: tuple[str, ...]) -> None:
    calls: list[str] = []
    hooks = [HookCandidate(name, Noting(name, calls)) for name in order]
    saving = hooks[order.index("two")]
    with candidates.training(pipelines.numbers(8, batch=2), hooks):
        calls.clear()
        saving.save()
    # Two steps: the save, and the one that waits for it.
    others = [f"before, {name}" for name in order if name != "two"]
    assert calls == ["before, two", *others, "after, two", "before, two", *others]


def test_the_clock_is_read_before_another_hook_does_something_after_the_step() -> None:
    clock = StepClock()
    seen: list[float] = []

    class After(tf.estimator.SessionRunHook):  # type: ignore[misc]  # untyped base
        def before_run(self, run_context: Any) -> None:
            seen.append(clock.ended_at)

        def after_run(self, run_context: Any, run_values: Any) -> None:
            seen.append(clock.ended_at)

    with tf.Graph().as_default():
        step = tf.constant(1)
        with tf.compat.v1.train.MonitoredSession(hooks=[clock, After()]) as session:
            session.run(step)
    before, after = seen
    assert before == 0.0
    assert after > 0.0


def test_a_program_whose_start_is_measured_does_not_import_what_only_another_candidate_uses() -> None:
    imported = "import sys, benchmarks.restarted_training; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", imported], check=True, capture_output=True, text=True)
    assert {"tensorflow"} == {"tensorflow", "input_checkpoint", "s3fs", "sklearn"} & {*modules.stdout.split()}


def test_nobody_always_follows_the_same_candidate() -> None:
    order = [name for _, name in candidates.turns(NAMES, 6)]
    rounds = [order[start : start + 3] for start in range(0, 18, 3)]
    assert {tuple(turn) for turn in rounds} == set(itertools.permutations(NAMES))


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.what)
def test_the_short_table_has_only_what_is_measured(row: Row) -> None:
    measured = importlib.import_module(f"benchmarks.{row.measurement}")
    assert row.quantity in {goal.quantity for goal in measured.GOALS}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_has_goals_of_its_own(name: str) -> None:
    assert {goal.measurement for goal in importlib.import_module(f"benchmarks.{name}").GOALS} == {name}


def test_the_doctests_pass() -> None:
    assert doctest.testmod(candidates).failed == 0
