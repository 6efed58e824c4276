"""At which steps a checkpoint or a mark is due."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Optional

import pytest
import tensorflow as tf

from input_checkpoint.tensorflow.due_saves import Due, DueSaves
from input_checkpoint.training.schedule import SaveSchedule
from input_checkpoint.training.settings import TrainingSettings


def due_saves(
    save_steps: Optional[int] = None,
    model: Optional[SaveSchedule] = None,
    with_marks: bool = True,
    marks_are_enough: bool = True,
    **settings: Any,
) -> DueSaves:
    chosen = TrainingSettings(backend="memory://due", save_steps=save_steps, model_schedule=model, **settings)
    found = DueSaves(chosen, with_marks, marks_are_enough)
    found.restart(0, time.time())
    return found


def due_steps(saves: DueSaves, last: int = 40) -> tuple[list[int], list[int]]:
    """Return at which steps a checkpoint is due, and at which a mark."""
    found: dict[int, Due] = {}
    for step in range(1, last + 1):
        saves.ran(step, seconds=0.01)
        found[step] = saves.due(step, time.time(), with_model=False)
    full = [step for step, due in found.items() if due.full]
    return full, [step for step, due in found.items() if due.mark]


EVERY_10 = SaveSchedule(every_steps=10)


def test_without_a_schedule_of_the_model_both_are_due_at_the_same_steps():
    assert due_steps(due_saves(10)) == ([10, 20, 30, 40], [10, 20, 30, 40])


def test_a_checkpoint_may_be_due_more_rarely_than_a_mark():
    assert due_steps(due_saves(20, EVERY_10)) == ([20, 40], [10, 20, 30, 40])


def test_a_checkpoint_may_be_due_at_steps_of_its_own():
    assert due_steps(due_saves(15, EVERY_10)) == ([15, 30], [10, 20, 30, 40])


def test_without_marks_a_checkpoint_is_due_whenever_the_model_is_saved():
    saves = due_saves(15, EVERY_10, with_marks=False, marks_are_enough=False)
    assert due_steps(saves) == ([10, 15, 20, 30, 40], [])


def test_if_marks_are_not_enough_both_are_due_whenever_the_model_is_saved():
    saves = due_saves(15, EVERY_10, marks_are_enough=False)
    assert due_steps(saves) == ([10, 15, 20, 30, 40], [10, 20, 30, 40])


def test_digests_are_wanted_only_for_the_last_run_before_a_mark():
    saves, wanted = due_saves(10), []
    for step in range(1, 21):
        if saves.mark_may_follow(time.time()):
            wanted.append(step)
        saves.ran(step, seconds=0.01)
        saves.due(step, time.time(), with_model=False)
    assert wanted == [10, 20]


def test_a_run_that_advances_by_several_steps_is_expected_to_do_so_again():
    saves, wanted = due_saves(10), []
    for step in range(4, 41, 4):
        if saves.mark_may_follow(time.time()):
            wanted.append(step)
        saves.ran(step, seconds=0.01)
        saves.due(step, time.time(), with_model=False)
    assert wanted == [12, 24, 36]


def test_near_the_time_of_a_timed_save_every_digest_is_wanted():
    saves = due_saves(model=SaveSchedule(every_secs=100.0), save_secs=1000.0)
    now = time.time()
    assert not saves.mark_may_follow(now + 90)
    assert saves.mark_may_follow(now + 99.5)
    saves.ran(1, seconds=10.0)
    assert saves.mark_may_follow(now + 90)


@pytest.mark.parametrize(("step", "expected"), [(9, False), (10, True), (12, True)])
def test_the_steps_at_which_the_model_is_saved_are_known_before(step, expected):
    assert due_saves(100, EVERY_10).is_model_saved_at(step) is expected


def test_the_steps_at_which_a_model_is_saved_by_time_are_not():
    saves = due_saves(100, SaveSchedule(every_secs=0.001))
    assert not saves.is_model_saved_at(10)


def test_a_timed_save_waits_for_the_model_however_long_training_took_to_start(tmp_path: Path) -> None:
    settings = TrainingSettings(model_dir=str(tmp_path), save_secs=50.0)
    saves = DueSaves(settings, with_marks=True, marks_are_enough=True)
    saves.restart(0, time.time() - 1000)
    assert saves.due(1, time.time(), with_model=True) == Due(full=False, mark=False)
    tf.compat.v1.train.update_checkpoint_state(str(tmp_path), str(tmp_path / "model.ckpt-2"))
    (tmp_path / "model.ckpt-2.index").touch()
    assert saves.due(2, time.time(), with_model=True) == Due(full=True, mark=True)
