"""Saves run one after the other in the background, and do not wait for prunes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from input_checkpoint import CheckpointStore, IteratorState, KeepLast, RetentionPolicy
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.errors import BackendUnavailableError
from input_checkpoint.format.keys import parse_checkpoint_key
from input_checkpoint.training.background_saver import BackgroundSaver
from tests.support.suspension import prune_a_day_later
from tests.support.wrappers import Failing, Overtaken, Wrapped


class FixedInput:
    """An input whose state is one element."""

    names = ("Iterator",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def snapshot(self) -> FixedSnapshot:
        return FixedSnapshot(self._content)

    def restore(self, states) -> None:
        raise AssertionError("nothing is restored here")


class FixedSnapshot:
    """A snapshot in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def states(self) -> list[IteratorState]:
        return [IteratorState("Iterator", [(b"slot", self._content)])]

    def release(self) -> None:
        self._content = b""


class PruneGate(Wrapped):
    """Holds every deletion of a manifest until it is opened, as the slowest possible prune does."""

    def __init__(self, inner: MemoryBackend) -> None:
        super().__init__(inner)
        self.reached = threading.Event()
        self.gate = threading.Event()

    def before(self, verb: str, key: str) -> None:
        if verb == "delete" and key.startswith("checkpoints/"):
            self.reached.set()
            assert self.gate.wait(60), "the gate was never opened"


class FailingWrite:
    """A mark that the storage fails to write."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self) -> None:
        raise self._error


class FailingPolicy(RetentionPolicy):
    """A retention policy of a user that contains an error."""

    def keep(self, checkpoints):
        raise ZeroDivisionError("a mistake")


@pytest.fixture
def gated(memory: MemoryBackend) -> Iterator[PruneGate]:
    gated = PruneGate(memory)
    yield gated
    gated.gate.set()


def saver_on(backend, retention=KeepLast(1), **options) -> BackgroundSaver:  # noqa: B008 - immutable
    store = CheckpointStore.open(backend, create=True, retry=None)
    return BackgroundSaver(store.begin_run("main"), retention, **options)


def submit(saver: BackgroundSaver, step: int) -> bool:
    accepted = saver.submit(step, FixedInput(b"%d" % step))
    saver.wait_for_snapshot()
    return accepted


def wait_for_commit(saver: BackgroundSaver, step: int) -> None:
    """Wait for the save only. The prune after it may still be running."""
    assert saver._thread is not None
    saver._thread.join(60)
    assert saver.last_committed is not None
    assert saver.last_committed.step == step


def commit(saver: BackgroundSaver, *steps: int) -> None:
    for step in steps:
        submit(saver, step)
        wait_for_commit(saver, step)


def committed_steps(backend: MemoryBackend) -> list[int]:
    found = map(parse_checkpoint_key, (info.key for info in backend.list("checkpoints/")))
    return [ref.step for ref in found if ref]


def test_the_next_save_does_not_wait_for_a_prune(memory, gated):
    saver = saver_on(gated)
    commit(saver, 10, 20)
    assert gated.reached.wait(60)
    commit(saver, 30)
    assert committed_steps(memory) == [10, 20, 30]


def test_a_save_is_not_skipped_because_of_a_prune(gated):
    saver = saver_on(gated, when_busy="skip")
    commit(saver, 10, 20)
    assert gated.reached.wait(60)
    assert not saver.busy
    assert submit(saver, 30)


def test_waiting_for_the_saver_includes_the_prune(memory, gated):
    saver = saver_on(gated)
    commit(saver, 10, 20, 30)
    gated.gate.set()
    saver.wait()
    assert committed_steps(memory) == [30]


def test_checkpoints_committed_during_a_prune_are_removed_by_a_second_prune(memory, gated):
    saver = saver_on(gated)
    commit(saver, 10, 20)
    assert gated.reached.wait(60)
    commit(saver, 30, 40, 50)
    gated.gate.set()
    saver.wait()
    assert committed_steps(memory) == [50]
    assert len(list(memory.list("packs/"))) == 1


def test_an_error_in_a_retention_policy_is_raised_in_the_training_thread(memory):
    saver = saver_on(memory, FailingPolicy())
    submit(saver, 10)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        saver.wait()
    assert committed_steps(memory) == [10]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of single threads")
def test_training_goes_first_as_soon_as_the_snapshot_is_taken(memory):
    class WatchedSnapshot(FixedSnapshot):
        def states(self):
            noted["encoding"] = priority()
            return super().states()

    class WatchedInput(FixedInput):
        def snapshot(self):
            noted["snapshot"] = priority()
            return WatchedSnapshot(b"state")

    class WatchedBackend(Wrapped):
        def before(self, verb, key):
            if key.startswith("packs/"):
                noted["upload"] = priority()

    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    noted = {}
    training = priority()
    saver = saver_on(WatchedBackend(memory))
    saver.submit(1, WatchedInput(b"state"))
    saver.wait()
    assert noted == {"snapshot": training, "encoding": max(10, training), "upload": max(10, training)}
    assert priority() == training


class TestToleratedFailures:
    def save_all(self, saver: BackgroundSaver, *steps: int) -> None:
        for step in steps:
            submit(saver, step)
            saver.wait()

    def test_a_failed_save_is_warned_about_and_the_next_one_succeeds(self, memory, caplog):
        failing = Failing(memory, "put", "packs/main/00000001/000000000010", BackendUnavailableError("away"))
        saver = saver_on(failing, tolerated_failures=1)
        self.save_all(saver, 10, 20)
        assert committed_steps(memory) == [20]
        assert "failed (1 in a row; 1 are tolerated): away" in caplog.text

    def test_a_save_that_was_suspended_for_too_long_is_tolerated_too(self, memory, caplog):
        suspended = Overtaken(memory, "create", "checkpoints/", lambda: prune_a_day_later(memory))
        saver = saver_on(suspended, tolerated_failures=1)
        self.save_all(saver, 10, 20)
        assert committed_steps(memory) == [20]
        assert "The checkpoint of step 10 was withdrawn." in caplog.text

    def test_one_failure_too_many_in_a_row_is_raised(self, memory):
        failing = Failing(memory, "put", "packs/", BackendUnavailableError("away"))
        saver = saver_on(failing, tolerated_failures=1)
        self.save_all(saver, 10)
        with pytest.raises(BackendUnavailableError, match="away"):
            self.save_all(saver, 20)

    def test_a_success_in_between_begins_the_count_anew(self, memory):
        failing = Failing(
            memory, "put", "packs/main/00000001/0000000000[13]0", BackendUnavailableError("away")
        )
        saver = saver_on(failing, tolerated_failures=1)
        self.save_all(saver, 10, 20, 30, 40)
        assert committed_steps(memory)[-1] == 40

    def test_what_is_no_failure_of_the_storage_is_always_raised(self, memory):
        class Broken(FixedInput):
            def snapshot(self):
                raise ZeroDivisionError("a mistake")

        saver = saver_on(memory, tolerated_failures=5)
        saver.submit(10, Broken(b""))
        with pytest.raises(ZeroDivisionError):
            saver.wait()


class TestMarksOnASlowStorage:
    @pytest.fixture
    def gate(self) -> Iterator[threading.Event]:
        gate = threading.Event()
        yield gate
        gate.set()

    def test_at_most_one_step_is_without_its_mark(self, memory, gate):
        saver = saver_on(memory)
        saver.mark(10, gate.wait)
        second = threading.Thread(target=saver.mark, args=(20, gate.wait))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        gate.set()
        second.join(60)
        assert not second.is_alive()

    def test_a_mark_of_the_same_step_replaces_the_one_that_waits(self, memory, gate):
        saver = saver_on(memory)
        started = threading.Event()
        saver.mark(10, lambda: (started.set(), gate.wait()))
        assert started.wait(60)
        replaced, last = saver.mark(10, gate.wait), saver.mark(10, gate.wait)
        assert replaced.is_set()
        assert not last.is_set()

    def test_the_next_mark_does_not_wait_for_one_that_failed(self, memory, caplog):
        saver = saver_on(memory, tolerated_failures=1)
        saver.mark(10, FailingWrite(BackendUnavailableError("away")))
        assert saver.mark(20, lambda: None).wait(60)
        assert "Mark of step 10" in caplog.text

    def test_busy_saves_that_are_skipped_leave_out_marks_with_a_warning(self, memory, gate, caplog):
        saver = saver_on(memory, when_busy="skip")
        started = threading.Event()
        saver.mark(10, lambda: (started.set(), gate.wait()))
        assert started.wait(60)
        for step in (20, 30):
            saver.mark(step, gate.wait)
        assert "Mark of step 20 skipped" in caplog.text
