"""Policies combine, and what every policy promises."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import input_checkpoint as ic
from input_checkpoint.retention.policy import AnyOf
from input_checkpoint.retention.with_model import needed_by_model
from tests.support.retention import NOON, histories, info, of_steps, reason, store_with

few = st.integers(1, 5)


class WithModelSteps(ic.RetentionPolicy):
    """`KeepWithModel` with the steps given instead of listed."""

    def __init__(self, steps: set[int]) -> None:
        self._steps = steps

    def keep(self, checkpoints: Sequence[ic.CheckpointInfo]) -> Any:
        return needed_by_model(checkpoints, self._steps)

    def __repr__(self) -> str:
        return f"WithModelSteps({self._steps})"


simple_policies = st.one_of(
    st.builds(ic.KeepAll),
    st.builds(ic.KeepLast, few),
    st.builds(ic.KeepEverySteps, st.integers(1, 100)),
    st.builds(ic.KeepEvery, st.floats(0.1, 100)),
    st.builds(ic.KeepWithin, hours=st.floats(0.1, 100), days=st.integers(0, 2)),
    st.builds(ic.KeepPeriodic, hourly=few, daily=st.integers(0, 3), weekly=st.integers(0, 3)),
    st.lists(st.integers(0, 500), min_size=1, max_size=5).map(lambda steps: ic.KeepSteps(*steps)),
    st.builds(ic.KeepBytes, st.integers(1, 500)),
    st.builds(WithModelSteps, st.sets(st.integers(0, 500), max_size=5)),
)
policies = st.one_of(
    simple_policies,
    st.lists(simple_policies, min_size=2, max_size=4).map(lambda parts: AnyOf(tuple(parts))),
)

stepwise_simple_policies = st.one_of(
    st.just(ic.KeepAll()),
    st.integers(1, 10).map(ic.KeepLast),
    st.integers(1, 200).map(ic.KeepEverySteps),
    st.floats(0.1, 20.0).map(ic.KeepEvery),
)
"""Policies that keep the same whether a store is pruned after every save or once at the end."""
stepwise_policies = st.lists(stepwise_simple_policies, min_size=1, max_size=3).map(
    lambda parts: reduce(or_, parts)
)
histories_with_random_dates = st.lists(
    st.tuples(st.integers(0, 1000), st.floats(-5.0, 100.0)), max_size=25, unique_by=lambda pair: pair[0]
).map(lambda pairs: [info(step, NOON + timedelta(hours=hour)) for step, hour in sorted(pairs)])


def kept_by(policy: ic.RetentionPolicy, checkpoints: Sequence[ic.CheckpointInfo]) -> list[ic.CheckpointInfo]:
    keep = policy.keep(checkpoints)
    return [each for each in checkpoints if each.ref in keep]


def pruned(policy: ic.RetentionPolicy, checkpoints: Sequence[ic.CheckpointInfo]) -> list[ic.CheckpointInfo]:
    """What a prune leaves: what the policy keeps, and the newest."""
    keep = policy.keep(checkpoints)
    return [each for each in checkpoints if each.ref in keep or each is checkpoints[-1]]


class TestCombining:
    def test_the_reasons_of_all_policies_are_listed(self) -> None:
        policy = ic.KeepLast(5) | ic.KeepSteps(10)
        assert reason(policy, of_steps(10, 20), 10) == "one of the last 5; step 10 was chosen"

    def test_a_repeated_reason_is_listed_once(self) -> None:
        assert reason(ic.KeepLast(5) | ic.KeepLast(5), of_steps(10), 10) == "one of the last 5"

    def test_grouping_does_not_matter(self) -> None:
        first, second, third = ic.KeepLast(1), ic.KeepSteps(10), ic.KeepBytes(100)
        assert (first | second) | third == first | (second | third)

    def test_the_representation_is_what_a_user_writes(self) -> None:
        policy = (
            ic.KeepWithin(days=2)
            | ic.KeepPeriodic(hourly=24, weekly=4)
            | ic.KeepSteps(1, 2)
            | ic.KeepBytes(100)
            | ic.KeepWithModel("/models/run-7")
        )
        assert repr(policy) == (
            "KeepWithin(days=2) | KeepPeriodic(hourly=24, weekly=4) | KeepSteps(1, 2) | KeepBytes(budget=100)"
            " | KeepWithModel('/models/run-7')"
        )

    def test_the_representation_names_the_fields_of_simple_policies(self) -> None:
        assert repr(ic.KeepLast(3) | ic.KeepEvery(2) | ic.KeepEverySteps(100)) == (
            "KeepLast(n=3) | KeepEvery(hours=2) | KeepEverySteps(n=100)"
        )

    def test_only_policies_combine(self) -> None:
        with pytest.raises(TypeError, match="unsupported operand"):
            ic.KeepLast(1) | 5

    def test_each_checkpoint_has_the_reason_of_the_policy_that_keeps_it(self) -> None:
        keep = (ic.KeepLast(1) | ic.KeepEverySteps(20)).keep(of_steps(5, 10, 25, 30))
        assert {ref.step: text for ref, text in keep.items()} == {
            5: "the first since step 0",
            25: "the first since step 20",
            30: "one of the last 1",
        }

    def test_a_checkpoint_kept_by_two_policies_has_both_reasons(self) -> None:
        keep = (ic.KeepLast(2) | ic.KeepAll()).keep(of_steps(1))
        assert keep == {ic.CheckpointRef("main", 1, 1): "one of the last 2; everything is kept"}

    @settings(deadline=None)
    @given(first=policies, second=policies, checkpoints=histories())
    def test_a_union_keeps_what_each_policy_keeps_and_nothing_else(
        self, first: ic.RetentionPolicy, second: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        assert set((first | second).keep(checkpoints)) == {
            *first.keep(checkpoints),
            *second.keep(checkpoints),
        }

    @given(stepwise_simple_policies, stepwise_simple_policies, histories_with_random_dates)
    def test_a_union_keeps_what_each_policy_keeps_even_if_dates_are_wrong(
        self, one: ic.RetentionPolicy, other: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        assert set((one | other).keep(checkpoints)) == {*one.keep(checkpoints), *other.keep(checkpoints)}


class TestEveryPolicy:
    @settings(deadline=None)
    @given(policy=policies, checkpoints=histories())
    def test_pruning_twice_keeps_the_same(
        self, policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        once = pruned(policy, checkpoints)
        assert pruned(policy, once) == once

    @settings(deadline=None)
    @given(policy=policies, checkpoints=histories())
    def test_keeps_only_existing_checkpoints_and_gives_a_reason_for_each(
        self, policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        keep = policy.keep(checkpoints)
        assert set(keep) <= {each.ref for each in checkpoints}
        assert all(keep.values())

    @settings(max_examples=40, deadline=None)
    @given(policy=policies, steps=st.lists(st.integers(0, 500), min_size=1, max_size=8, unique=True))
    def test_a_prune_never_removes_the_newest_checkpoint(
        self, policy: ic.RetentionPolicy, steps: list[int]
    ) -> None:
        store = store_with(sorted(steps))
        store.prune(policy)
        assert store.newest("main").step == max(steps)


class TestStepwisePolicies:
    @given(stepwise_policies)
    def test_an_empty_history_keeps_nothing(self, policy: ic.RetentionPolicy) -> None:
        assert policy.keep([]) == {}

    @given(stepwise_policies, histories_with_random_dates)
    def test_applying_the_policy_twice_keeps_the_same(
        self, policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        once = kept_by(policy, checkpoints)
        assert kept_by(policy, once) == once

    @given(stepwise_policies, histories_with_random_dates)
    def test_pruning_after_every_save_keeps_what_pruning_once_keeps(
        self, policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        survivors: list[ic.CheckpointInfo] = []
        for each in checkpoints:
            survivors = kept_by(policy, [*survivors, each])
        assert survivors == kept_by(policy, checkpoints)

    @given(stepwise_policies, histories_with_random_dates)
    def test_keeps_only_existing_checkpoints(
        self, policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        assert set(policy.keep(checkpoints)) <= {each.ref for each in checkpoints}

    @given(stepwise_policies, histories_with_random_dates)
    def test_gives_a_reason_for_each_kept_checkpoint(
        self, policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]
    ) -> None:
        assert all(policy.keep(checkpoints).values())

    @given(stepwise_simple_policies, histories_with_random_dates.filter(len))
    def test_keeps_something(self, policy: ic.RetentionPolicy, checkpoints: list[ic.CheckpointInfo]) -> None:
        assert policy.keep(checkpoints)
