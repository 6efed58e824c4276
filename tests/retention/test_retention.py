"""Which checkpoints a policy keeps."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import reduce
from operator import or_

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import (
    CheckpointInfo,
    CheckpointRef,
    KeepAll,
    KeepEvery,
    KeepEverySteps,
    KeepLast,
    RetentionPolicy,
)

START = datetime(2024, 1, 1, tzinfo=timezone.utc)


def checkpoint(step: int, hour: float = 0.0, lineage: int = 1) -> CheckpointInfo:
    return CheckpointInfo(
        step=step,
        worker="main",
        lineage=lineage,
        created=START + timedelta(hours=hour),
        logical_bytes=0,
        stored_bytes=0,
        elements=0,
        iterators=(),
        host="host",
        pid=1,
    )


def hourly(*hours: float) -> list[CheckpointInfo]:
    return [checkpoint(step, hour) for step, hour in enumerate(hours)]


def kept_steps(policy: RetentionPolicy, checkpoints: list[CheckpointInfo]) -> list[int]:
    return sorted(ref.step for ref in policy.keep(checkpoints))


def pruned(policy: RetentionPolicy, checkpoints: list[CheckpointInfo]) -> list[CheckpointInfo]:
    kept = policy.keep(checkpoints)
    return [info for info in checkpoints if info.ref in kept]


simple_policies = st.one_of(
    st.just(KeepAll()),
    st.integers(1, 10).map(KeepLast),
    st.integers(1, 200).map(KeepEverySteps),
    st.floats(0.1, 20.0).map(KeepEvery),
)
policies = st.lists(simple_policies, min_size=1, max_size=3).map(lambda some: reduce(or_, some))
histories = st.lists(
    st.tuples(st.integers(0, 1000), st.floats(-5.0, 100.0)), max_size=25, unique_by=lambda pair: pair[0]
).map(lambda pairs: [checkpoint(step, hour) for step, hour in sorted(pairs)])


@pytest.mark.parametrize(
    ("n", "kept"), [(1, [40]), (2, [30, 40]), (4, [10, 20, 30, 40]), (9, [10, 20, 30, 40])]
)
def test_keep_last_keeps_the_newest(n, kept):
    assert kept_steps(KeepLast(n), [checkpoint(step) for step in (10, 20, 30, 40)]) == kept


@pytest.mark.parametrize(
    ("n", "steps", "kept"),
    [
        (10, [0, 5, 10, 15, 20], [0, 10, 20]),
        (10, [7, 9, 11, 19, 21, 23], [7, 11, 21]),
        (100, [1, 50, 99], [1]),
        (10, [5, 95, 99], [5, 95]),
        (1, [1, 2, 3], [1, 2, 3]),
    ],
)
def test_keep_every_steps_keeps_the_first_of_each_period(n, steps, kept):
    assert kept_steps(KeepEverySteps(n), [checkpoint(step) for step in steps]) == kept


@pytest.mark.parametrize(
    ("hours", "created", "kept"),
    [
        (1, [0.0, 0.5, 1.0, 1.5, 2.0], [0, 2, 4]),
        (1, [0.0, 0.9, 1.8, 2.7], [0, 2]),
        (0.5, [0.0, 0.5, 0.75, 1.0], [0, 1, 3]),
        (24, [0.0, 5.0, 23.9], [0]),
    ],
)
def test_keep_every_keeps_checkpoints_that_are_far_enough_apart(hours, created, kept):
    assert kept_steps(KeepEvery(hours), hourly(*created)) == kept


def test_keep_all_keeps_all():
    assert kept_steps(KeepAll(), hourly(0, 1, 2)) == [0, 1, 2]


@given(policies)
def test_nothing_is_kept_of_nothing(policy):
    assert policy.keep([]) == {}


@given(policies, histories)
def test_pruning_twice_keeps_the_same(policy, checkpoints):
    once = pruned(policy, checkpoints)
    assert pruned(policy, once) == once


@given(policies, histories)
def test_pruning_after_every_save_keeps_what_pruning_once_would_keep(policy, checkpoints):
    survivors: list[CheckpointInfo] = []
    for info in checkpoints:
        survivors = pruned(policy, [*survivors, info])
    assert survivors == pruned(policy, checkpoints)


@given(policies, histories)
def test_only_what_was_given_is_kept(policy, checkpoints):
    assert set(policy.keep(checkpoints)) <= {info.ref for info in checkpoints}


@given(policies, histories)
def test_what_is_kept_has_a_reason(policy, checkpoints):
    assert all(policy.keep(checkpoints).values())


@given(simple_policies, histories.filter(len))
def test_every_policy_keeps_something(policy, checkpoints):
    assert policy.keep(checkpoints)


@given(simple_policies, simple_policies, histories)
def test_a_union_keeps_what_either_keeps(one, other, checkpoints):
    assert set((one | other).keep(checkpoints)) == {*one.keep(checkpoints), *other.keep(checkpoints)}


@given(histories, st.floats(0.1, 20.0))
def test_keep_every_leaves_no_gap_that_a_checkpoint_could_have_filled(checkpoints, hours):
    ordered = sorted(checkpoints, key=lambda info: info.created)
    kept = pruned(KeepEvery(hours), ordered)
    for earlier, later in zip(kept, kept[1:]):
        assert later.created - earlier.created >= timedelta(hours=hours)
        between = [info for info in ordered if earlier.created < info.created < later.created]
        assert all(info.created - earlier.created < timedelta(hours=hours) for info in between)


def test_the_reason_says_which_rule_kept_a_checkpoint():
    kept = (KeepLast(1) | KeepEverySteps(20)).keep([checkpoint(step) for step in (5, 10, 25, 30)])
    assert {ref.step: reason for ref, reason in kept.items()} == {
        5: "the first since step 0",
        25: "the first since step 20",
        30: "one of the last 1",
    }


def test_every_policy_that_keeps_a_checkpoint_gives_its_reason():
    kept = (KeepLast(2) | KeepAll()).keep([checkpoint(1)])
    assert kept == {CheckpointRef("main", 1, 1): "one of the last 2; everything is kept"}


def test_a_checkpoint_of_the_same_step_in_another_lineage_is_another_checkpoint():
    history = [checkpoint(10, lineage=1), checkpoint(10, lineage=2)]
    assert list(KeepLast(1).keep(history)) == [CheckpointRef("main", 2, 10)]


def test_a_policy_shows_how_it_was_written():
    assert repr(KeepLast(3) | KeepEvery(2) | KeepEverySteps(100)) == (
        "KeepLast(n=3) | KeepEvery(hours=2) | KeepEverySteps(n=100)"
    )


@pytest.mark.parametrize("policy", [KeepLast, KeepEverySteps, KeepEvery])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("-inf")])
def test_a_policy_that_would_keep_nothing_is_refused(policy, value):
    with pytest.raises(ValueError, match="must be positive"):
        policy(value)


@pytest.mark.parametrize("hours", [1e13, float("inf")])
def test_keep_every_of_an_endless_time_keeps_the_first(hours):
    assert kept_steps(KeepEvery(hours), hourly(0, 1000)) == [0]
