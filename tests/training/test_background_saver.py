"""The background thread: saves one after the other, and nothing that they have to wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from input_checkpoint import CheckpointStore, IteratorState, KeepLast, RetentionPolicy
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import parse_checkpoint_key
from input_checkpoint.training.background_saver import BackgroundSaver
from tests.support.wrappers import Wrapped


class Source:
    """An input whose state is one element; its snapshots are in memory, as an integration's are."""

    names = ("Iterator",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def snapshot(self) -> Held:
        return Held(self._content)

    def restore(self, states) -> None:
        raise AssertionError("nothing is restored here")


class Held:
    """A snapshot in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def states(self) -> list[IteratorState]:
        return [IteratorState("Iterator", [(b"slot", self._content)])]

    def release(self) -> None:
        self._content = b""


class PruneGate(Wrapped):
    """Holds back every removal of a manifest until it is opened: the slowest prune there can be."""

    def __init__(self, inner: MemoryBackend) -> None:
        super().__init__(inner)
        self.reached = threading.Event()
        self.gate = threading.Event()

    def before(self, verb: str, key: str) -> None:
        if verb == "delete" and key.startswith("checkpoints/"):
            self.reached.set()
            assert self.gate.wait(60), "the gate was never opened"


class Mistaken(RetentionPolicy):
    """A user's own policy, with a mistake."""

    def keep(self, checkpoints):
        raise ZeroDivisionError("a mistake")


@pytest.fixture
def gated(memory: MemoryBackend) -> Iterator[PruneGate]:
    gated = PruneGate(memory)
    yield gated
    gated.gate.set()


def writer_on(backend, retention=KeepLast(1), **options) -> BackgroundSaver:  # noqa: B008 - immutable
    store = CheckpointStore.open(backend, create=True)
    return BackgroundSaver(store.begin_run("main"), retention, **options)


def submit(writer: BackgroundSaver, step: int) -> bool:
    accepted = writer.submit(step, Source(b"%d" % step))
    writer.wait_for_snapshot()
    return accepted


def wait_for_commit(writer: BackgroundSaver, step: int) -> None:
    """Wait for the save alone; the prune after it may go on."""
    assert writer._thread is not None
    writer._thread.join(60)
    assert writer.last_committed is not None
    assert writer.last_committed.step == step


def steps(backend: MemoryBackend) -> list[int]:
    found = map(parse_checkpoint_key, (info.key for info in backend.list("checkpoints/")))
    return [ref.step for ref in found if ref]


def test_the_next_save_does_not_wait_for_a_prune(memory, gated):
    writer = writer_on(gated)
    for step in (10, 20):
        submit(writer, step)
        wait_for_commit(writer, step)
    assert gated.reached.wait(60)
    submit(writer, 30)
    wait_for_commit(writer, 30)
    assert steps(memory) == [10, 20, 30]


def test_a_prune_is_no_reason_to_skip_a_save(gated):
    writer = writer_on(gated, when_busy="skip")
    for step in (10, 20):
        submit(writer, step)
        wait_for_commit(writer, step)
    assert gated.reached.wait(60)
    assert not writer.busy
    assert submit(writer, 30)


def test_waiting_for_everything_waits_for_the_prune_too(memory, gated):
    writer = writer_on(gated)
    for step in (10, 20, 30):
        submit(writer, step)
        wait_for_commit(writer, step)
    gated.gate.set()
    writer.wait()
    assert steps(memory) == [30]


def test_what_was_committed_while_a_prune_ran_is_pruned_by_a_second_one(memory, gated):
    writer = writer_on(gated)
    for step in (10, 20):
        submit(writer, step)
        wait_for_commit(writer, step)
    assert gated.reached.wait(60)
    for step in (30, 40, 50):
        submit(writer, step)
        wait_for_commit(writer, step)
    gated.gate.set()
    writer.wait()
    assert steps(memory) == [50]
    assert len(list(memory.list("packs/"))) == 1


def test_a_mistake_in_a_retention_policy_is_raised_in_the_training_thread(memory):
    writer = writer_on(memory, Mistaken())
    submit(writer, 10)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        writer.wait()
    assert steps(memory) == [10]
