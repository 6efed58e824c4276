"""Which checkpoints are kept by number, step and size."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.checkpoint import PackEntry
from tests.support.retention import at_hours, info, kept, of_steps, reason


class TestKeepAll:
    def test_keeps_everything(self) -> None:
        assert kept(ic.KeepAll(), at_hours(0, 1, 2)) == [0, 1, 2]


class TestKeepLast:
    @pytest.mark.parametrize(
        ("n", "expected"), [(1, [40]), (2, [30, 40]), (4, [10, 20, 30, 40]), (9, [10, 20, 30, 40])]
    )
    def test_keeps_the_newest(self, n: int, expected: list[int]) -> None:
        assert kept(ic.KeepLast(n), of_steps(10, 20, 30, 40)) == expected

    def test_a_step_saved_by_two_lineages_counts_as_two_checkpoints(self) -> None:
        history = [info(10, lineage=1), info(10, lineage=2)]
        assert list(ic.KeepLast(1).keep(history)) == [ic.CheckpointRef("main", 2, 10)]


class TestKeepEverySteps:
    @pytest.mark.parametrize(
        ("n", "steps", "expected"),
        [
            (10, [0, 5, 10, 15, 20], [0, 10, 20]),
            (10, [7, 9, 11, 19, 21, 23], [7, 11, 21]),
            (100, [1, 50, 99], [1]),
            (10, [5, 95, 99], [5, 95]),
            (1, [1, 2, 3], [1, 2, 3]),
        ],
    )
    def test_keeps_the_first_of_each_period(self, n: int, steps: list[int], expected: list[int]) -> None:
        assert kept(ic.KeepEverySteps(n), of_steps(*steps)) == expected


class TestKeepSteps:
    def test_keeps_the_given_steps(self) -> None:
        assert kept(ic.KeepSteps(30, 10), of_steps(10, 20, 30, 40)) == [10, 30]

    def test_a_step_that_was_never_saved_keeps_nothing(self) -> None:
        assert kept(ic.KeepSteps(25), of_steps(10, 20, 30)) == []

    def test_a_step_saved_by_two_lineages_is_kept_twice(self) -> None:
        assert kept(ic.KeepSteps(10), [info(10), info(10, lineage=2)]) == [10, 10]

    def test_the_order_of_the_steps_does_not_matter(self) -> None:
        assert ic.KeepSteps(1, 2, 2) == ic.KeepSteps(2, 1)

    def test_the_reason_names_the_step(self) -> None:
        assert reason(ic.KeepSteps(10), of_steps(10), 10) == "step 10 was chosen"


class TestKeepBytes:
    def test_keeps_the_newest_that_fit(self) -> None:
        assert kept(ic.KeepBytes(60), sized(10, 10, 20, 30)) == [1, 2, 3]

    def test_keeps_the_newest_whatever_its_size(self) -> None:
        assert kept(ic.KeepBytes(60), sized(10, 100)) == [1]

    def test_stops_at_the_first_that_does_not_fit(self) -> None:
        assert kept(ic.KeepBytes(60), sized(1, 100, 30)) == [2]

    def test_a_shared_pack_counts_once(self) -> None:
        full = PackEntry("full", 50, False)
        checkpoints = [info(step, stored_bytes=5, shared=[full]) for step in range(4)]
        assert kept(ic.KeepBytes(65), checkpoints) == [1, 2, 3]

    def test_a_pack_that_an_older_save_uploaded_counts(self) -> None:
        checkpoints = [
            info(0, stored_bytes=5),
            info(1, stored_bytes=5, shared=[PackEntry("full", 50, False)]),
        ]
        assert kept(ic.KeepBytes(57), checkpoints) == [1]

    def test_chunk_tables_count(self) -> None:
        checkpoints = [info(step, stored_bytes=10, table_bytes=5) for step in range(4)]
        assert kept(ic.KeepBytes(44), checkpoints) == [2, 3]

    def test_a_store_stays_within_the_budget_save_after_save(self) -> None:
        chance = random.Random(1)
        buffer, budget = [chance.randbytes(5_000) for _ in range(200)], 3_000_000
        backend = MemoryBackend(f"memory://{uuid.uuid4().hex}")
        ic.CheckpointStore.open(backend, create=True)
        store = ic.CheckpointStore(backend, ic.SaveOptions(pack_bytes=1 << 17))
        run = store.begin_run("main")
        for step in range(40):
            keyed = ((b"slot %d" % slot, payload) for slot, payload in enumerate(buffer))
            run.save(step, [ic.IteratorState("Iterator", keyed)])
            run.prune(ic.KeepBytes(budget))
            # A little more for objects that are neither packs nor chunk tables.
            assert sum(found.size for found in backend.list()) <= 1.03 * budget
            for slot in chance.sample(range(200), 10):
                buffer[slot] = chance.randbytes(5_000)
        assert len(store.checkpoints()) > 3

    def test_the_reason_gives_the_sum(self) -> None:
        assert reason(ic.KeepBytes(6000), sized(2000, 1500), 0) == (
            "3,500 of 6,000 bytes, including newer checkpoints"
        )

    def test_the_reason_says_when_the_newest_exceeds_the_budget(self) -> None:
        expected = "the newest, although its 2,000 bytes exceed 1,000"
        assert reason(ic.KeepBytes(1000), sized(2000), 0) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ic.KeepLast(0), r"KeepLast\(n\) must be positive, got 0"),
        (lambda: ic.KeepLast(2.5), r"KeepLast\(n\) must be a whole number, got 2.5"),
        (lambda: ic.KeepEverySteps(-1), r"KeepEverySteps\(n\) must be positive, got -1"),
        (lambda: ic.KeepSteps(), "KeepSteps needs at least one step"),
        (lambda: ic.KeepSteps(-5), r"KeepSteps\(\*steps\) must not be negative, got -5"),
        (lambda: ic.KeepSteps([1, 2]), r"KeepSteps\(\*steps\) must be a whole number, got \[1, 2\]"),
        (lambda: ic.KeepBytes(0), r"KeepBytes\(budget\) must be positive, got 0"),
        (lambda: ic.KeepBytes("1 GB"), r"KeepBytes\(budget\) must be a number"),
    ],
)
def test_an_invalid_argument_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("policy", [ic.KeepLast, ic.KeepEverySteps])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("-inf")])
def test_a_policy_that_would_keep_nothing_is_refused(policy: Any, value: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        policy(value)


def sized(*sizes: int) -> list[ic.CheckpointInfo]:
    """One checkpoint of each size, with steps 0, 1, 2 and so on."""
    return [info(step, stored_bytes=size) for step, size in enumerate(sizes)]
