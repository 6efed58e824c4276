"""The numbers of a policy may be numpy numbers, and are shown as plain ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import input_checkpoint as ic
from tests.support.retention import of_steps, reason

WITH_NUMPY = {
    "last": (ic.KeepLast(np.int64(2)), ic.KeepLast(2)),
    "every steps": (ic.KeepEverySteps(np.int32(20)), ic.KeepEverySteps(20)),
    "steps": (ic.KeepSteps(np.int64(10), np.uint8(30)), ic.KeepSteps(10, 30)),
    "bytes": (ic.KeepBytes(np.int64(100)), ic.KeepBytes(100)),
    "every": (ic.KeepEvery(np.int64(2)), ic.KeepEvery(2)),
    "every fraction": (ic.KeepEvery(np.float32(0.5)), ic.KeepEvery(0.5)),
    "within": (ic.KeepWithin(hours=np.int64(1), days=np.float64(0.5)), ic.KeepWithin(hours=1, days=0.5)),
    "periodic": (ic.KeepPeriodic(hourly=np.int64(2), daily=np.uint8(1)), ic.KeepPeriodic(hourly=2, daily=1)),
}


@pytest.mark.parametrize("name", WITH_NUMPY)
def test_a_numpy_number_means_the_same_and_is_shown_as_a_plain_one(name: str) -> None:
    policy, plain = WITH_NUMPY[name]
    assert repr(policy) == repr(plain)
    checkpoints = of_steps(5, 10, 20, 30, 40)
    assert policy.keep(checkpoints) == plain.keep(checkpoints)


def test_reasons_show_plain_numbers() -> None:
    assert reason(ic.KeepLast(np.int64(5)), of_steps(10), 10) == "one of the last 5"


@pytest.mark.parametrize("policy", [ic.KeepLast, ic.KeepEverySteps, ic.KeepSteps])
@pytest.mark.parametrize("value", [True, np.bool_(True), 2.0, np.float64(2)])
def test_bools_and_floats_are_refused(policy: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        policy(value)


@pytest.mark.parametrize("value", [True, 2.0])
def test_bools_and_floats_are_no_periods(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number"):
        ic.KeepPeriodic(daily=value)
