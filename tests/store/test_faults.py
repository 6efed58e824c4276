"""Whichever call fails or is the last one of a process, nothing committed is lost and no orphan stays.

These tests run in memory. integration/test_fault_sweep.py runs on files, with real kills, at more moments.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.retrying import RetryingBackend
from tests.support import cycles
from tests.support.cycles import OPTIONS, QUICK, new_backend
from tests.support.faults import MOMENTS, Delay, Die, Fail, FaultyBackend, Killed


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_committed_is_lost_if_the_process_dies_at_any_call(moment: str, tmp_path: Path) -> None:
    cycles.die_everywhere("memory", tmp_path, moment, every=3)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_single_failure_of_any_call_has_no_effect(moment: str, tmp_path: Path) -> None:
    cycles.be_unavailable_everywhere("memory", tmp_path, moment, every=5)


def test_a_permission_error_of_any_call_is_raised(tmp_path: Path) -> None:
    cycles.be_forbidden_everywhere("memory", tmp_path, every=5)


def test_slow_calls_change_no_result() -> None:
    backend, cycle = new_backend("memory"), cycles.Cycle()
    cycle.live(FaultyBackend(backend, {number: Delay(0.002) for number in range(200)}))
    assert cycle.restored == cycles.expected(50)


def test_a_save_succeeds_in_spite_of_a_short_outage() -> None:
    faulty = FaultyBackend(new_backend("memory"))
    store = ic.CheckpointStore.open(faulty, create=True, retry=QUICK)
    run = store.begin_run("main")
    outage = range(len(faulty.calls) + 2, len(faulty.calls) + 12)
    faulty.plan.update({number: Fail() for number in outage})
    info = run.save(10, cycles.state(10))
    assert cycles.restored(store, info.ref) == cycles.expected(10)


def test_opening_an_unavailable_store_fails_without_a_retry() -> None:
    faulty = FaultyBackend(new_backend("memory"), {1: Fail()})
    with pytest.raises(ic.BackendUnavailableError):
        ic.CheckpointStore.open(faulty, create=True, retry=ic.RetryPolicy(timeout=3600, initial_delay=10))
    assert len(faulty.calls) == 1


def test_without_a_retry_policy_every_call_is_made_once() -> None:
    faulty = FaultyBackend(new_backend("memory"))
    store = ic.CheckpointStore.open(faulty, create=True, retry=None)
    faulty.plan[len(faulty.calls) + 1] = Fail()
    with pytest.raises(ic.BackendUnavailableError, match=r"was made to fail$"):
        store.checkpoints()


def test_the_final_error_states_the_number_of_attempts_and_the_time() -> None:
    faulty = FaultyBackend(new_backend("memory"), {number: Fail() for number in range(10_000)})
    policy = ic.RetryPolicy(timeout=0.3, initial_delay=0.01, max_delay=0.05)
    started = time.monotonic()
    with pytest.raises(
        ic.BackendUnavailableError, match=r"made to fail \(tried \d+ times in 0\.\d s, then gave up\)"
    ):
        RetryingBackend(faulty, policy).get("key")
    assert 0.3 <= time.monotonic() - started < 2
    assert len(faulty.calls) > 3


def test_a_timeout_of_zero_means_one_attempt() -> None:
    faulty = FaultyBackend(new_backend("memory"), {1: Fail()})
    with pytest.raises(ic.BackendUnavailableError, match=r"\(tried once in 0\.0 s, then gave up\)"):
        RetryingBackend(faulty, ic.RetryPolicy(timeout=0)).get("key")


@pytest.mark.parametrize(
    "error",
    [
        ic.BackendPermissionError,
        ic.BackendNotFoundError,
        ic.ObjectNotFoundError,
        ic.ObjectExistsError,
        ic.BackendError,
    ],
)
def test_a_permanent_error_is_raised_without_a_retry(error: type[ic.BackendError]) -> None:
    faulty = FaultyBackend(new_backend("memory"), {1: Fail(error=error)})
    with pytest.raises(error, match=r"was made to fail$"):
        RetryingBackend(faulty, QUICK).put("key", b"")
    assert len(faulty.calls) == 1


def test_an_interrupted_listing_starts_over() -> None:
    class InterruptedListing(FaultyBackend):
        def list(self, prefix=""):
            for number, info in enumerate(super().list(prefix)):
                if number == 1 and len(self.calls) == 1:
                    raise ic.BackendUnavailableError("interrupted")
                yield info

    inner = new_backend("memory")
    for key in ("a", "b", "c"):
        inner.put(key, b"")
    assert [info.key for info in RetryingBackend(InterruptedListing(inner), QUICK).list()] == ["a", "b", "c"]


def test_a_create_whose_response_was_lost_finds_its_own_object() -> None:
    inner = new_backend("memory")
    with pytest.raises(ic.ObjectExistsError):
        RetryingBackend(FaultyBackend(inner, {1: Fail("after")}), QUICK).create("key", b"mine")
    assert inner.get("key") == b"mine"


def test_each_retry_is_logged_with_operation_key_attempt_and_delay(caplog: pytest.LogCaptureFixture) -> None:
    faulty = FaultyBackend(new_backend("memory"), {1: Fail(), 2: Fail()})
    with caplog.at_level(logging.WARNING, "input_checkpoint.backends.retrying"):
        RetryingBackend(faulty, QUICK).put("some/key", b"")
    first, second = (record.getMessage() for record in caplog.records)
    assert "put some/key failed (attempt 1, " in first
    assert "(attempt 2, " in second
    assert "trying again in 0.0 s" in first


def test_delays_between_retries_grow_and_are_random_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", delays.append)
    faulty = FaultyBackend(new_backend("memory"), {number: Fail() for number in range(1, 1200)})
    RetryingBackend(faulty, ic.RetryPolicy(timeout=600, initial_delay=0.2, max_delay=15)).list()
    assert len(delays) == 1199
    assert all(delay <= 0.2 * 2**number for number, delay in enumerate(delays[:7]))
    assert 14 < max(delays) <= 15
    assert len(set(delays)) > 1000


@pytest.mark.parametrize(
    "arguments",
    [{"timeout": -1}, {"initial_delay": 0}, {"max_delay": 0.1}, {"timeout": float("nan")}],
)
def test_an_invalid_retry_policy_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        ic.RetryPolicy(**arguments)


def test_a_simulated_dead_process_makes_no_more_calls() -> None:
    inner = new_backend("memory")
    faulty = FaultyBackend(inner, {1: Die("after")})
    for key in ("a", "b"):
        with pytest.raises(Killed):
            faulty.put(key, b"")
    assert [info.key for info in inner.list()] == ["a"]


def test_a_payload_that_comes_back_after_its_data_was_removed_is_stored_again() -> None:
    backend = new_backend("memory")
    store = cycles.open_store(backend)
    run = store.begin_run("main")
    for step, name in ((10, "seen before"), (20, "another"), (30, "seen before")):
        elements = cycles.elements(10) if name == "seen before" else cycles.elements(1000)
        info = run.save(step, [ic.IteratorState("only", elements)])
        cycles.open_store(backend).prune(ic.KeepLast(1), orphan_age=0)
    assert cycles.restored(cycles.open_store(backend), info.ref) == [("only", cycles.elements(10))]


def test_nothing_becomes_visible_if_several_uploads_fail_at_once() -> None:
    inner = new_backend("memory")
    faulty = FaultyBackend(inner)
    options = ic.SaveOptions(pack_bytes=OPTIONS.pack_bytes, concurrency=4)
    store = ic.CheckpointStore.open(faulty, create=True, options=options, retry=None)
    run = store.begin_run("main")
    faulty.plan.update({len(faulty.calls) + number: Fail() for number in (4, 5)})
    with pytest.raises(ic.BackendUnavailableError):
        run.save(10, cycles.state(10))
    faulty.plan.clear()
    assert store.history("main") == []
    run.save(20, cycles.state(20))
    assert store.verify().ok
