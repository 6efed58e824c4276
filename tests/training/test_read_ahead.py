"""The checkpoint that is expected is read early, in bounded memory, and nothing else changes."""

from __future__ import annotations

import logging
import threading
from collections import Counter as Count
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Optional

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.state import ElementBatch, StoredState
from input_checkpoint.store.store import StoredCheckpoint
from input_checkpoint.training.fast_forward import FastForward
from input_checkpoint.training.fast_forward_limit import FastForwardLimit
from input_checkpoint.training.progress import Progress
from input_checkpoint.training.read_ahead import ReadAhead
from input_checkpoint.training.resuming import Resumer
from tests.support.counting import Counter, digest_of
from tests.support.hooked_training import wait_until
from tests.support.stores import pack_keys
from tests.support.wrappers import Wrapped

WORKER = "main"
BATCH_BYTES = 1000
REF = ic.CheckpointRef(WORKER, 1, 10)
OTHER = ic.CheckpointRef(WORKER, 1, 20)


class CountingRanges(Wrapped):
    """Counts how often each range of each object is read, except for listings and lineage records."""

    def __init__(self, inner: ic.Backend) -> None:
        super().__init__(inner)
        self.reads: Count[tuple[str, int, Optional[int]]] = Count()

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        if key.startswith(("checkpoints/", "packs/")):
            self.reads[key, start, end] += 1
        return super().get(key, start, end)


def info_of(ref: ic.CheckpointRef) -> ic.CheckpointInfo:
    created = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return ic.CheckpointInfo(ref.step, ref.worker, ref.lineage, created, 0, 0, 0, (), "host", 1)


class LongCheckpoints(ic.CheckpointStore):
    """Has checkpoints of two iterators with as many batches as wanted. Counts how many were read."""

    def __init__(self, batches: int = 10, broken_at: Optional[int] = None) -> None:
        self.batches = batches
        self.broken_at = broken_at
        self.opened: list[ic.CheckpointRef] = []
        self.read_batches = 0
        self.closed = threading.Event()

    def read(self, ref: ic.CheckpointRef) -> StoredCheckpoint:
        self.opened.append(ref)
        return StoredCheckpoint(info_of(ref), self._states())

    def _states(self) -> Iterator[StoredState]:
        try:
            for name in ("first", "second"):
                yield StoredState(name, self.batches, self._batches())
        finally:
            self.closed.set()

    def _batches(self) -> Iterator[ElementBatch]:
        for number in range(self.batches):
            if self.read_batches == self.broken_at:
                self.broken_at = None
                raise ic.CorruptCheckpointError("damaged in transit")
            self.read_batches += 1
            yield ElementBatch([number], [(b"", b"%d" % number + bytes(BATCH_BYTES))])


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "input-checkpoint-read-ahead"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not threads())


@pytest.fixture
def backend(memory: MemoryBackend) -> CountingRanges:
    return CountingRanges(memory)


@pytest.fixture
def store(backend: CountingRanges) -> ic.CheckpointStore:
    return ic.CheckpointStore.open(backend, create=True, retry=None)


@pytest.fixture
def saved(store: ic.CheckpointStore) -> list[ic.CheckpointRef]:
    """Checkpoints of steps 10 and 20. The value of the counter is ten times the step."""
    run, counter, saved = store.begin_run(WORKER), Counter(), []
    for step in (10, 20):
        counter.value = 10 * step
        saved.append(run.save(step, counter.snapshot().states()).ref)
    return saved


def content(checkpoint: StoredCheckpoint) -> list[tuple[str, list[Any]]]:
    return [(state.name, state.in_order()) for state in checkpoint.states]


def test_all_of_the_expected_checkpoint_is_read_before_it_is_asked_for() -> None:
    store = LongCheckpoints()
    read_ahead = ReadAhead(store)
    read_ahead.expect(REF)
    wait_until(store.closed.is_set)
    assert store.read_batches == 20
    assert content(read_ahead.read(REF)) == content(LongCheckpoints().read(REF))
    assert store.opened == [REF]


def test_a_checkpoint_that_is_asked_for_at_once_is_complete_too() -> None:
    store = LongCheckpoints(batches=500)
    read_ahead = ReadAhead(store)
    read_ahead.expect(REF)
    assert content(read_ahead.read(REF)) == content(LongCheckpoints(batches=500).read(REF))
    assert store.opened == [REF]


def test_each_range_of_the_expected_checkpoint_is_read_once(
    store: ic.CheckpointStore, saved: list[ic.CheckpointRef], memory: MemoryBackend, backend: CountingRanges
) -> None:
    fresh = ic.CheckpointStore.open(backend)
    backend.reads.clear()
    content(fresh.read(saved[1]))
    without = Count(backend.reads)
    backend.reads.clear()
    read_ahead = ReadAhead(fresh)
    read_ahead.expect(saved[1])
    content(read_ahead.read(saved[1]))
    assert backend.reads == without
    assert set(without.values()) == {1}


def test_no_more_is_read_ahead_than_fits_into_memory() -> None:
    store = LongCheckpoints(batches=1000)
    read_ahead = ReadAhead(store, max_bytes=10 * BATCH_BYTES)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches >= 9)
    assert threads()[0].is_alive()
    assert not store.closed.wait(0.1)
    assert store.read_batches <= 10
    assert content(read_ahead.read(REF)) == content(LongCheckpoints(batches=1000).read(REF))
    assert store.opened == [REF]


def test_the_rest_is_read_only_as_it_is_restored() -> None:
    store = LongCheckpoints(batches=1000)
    read_ahead = ReadAhead(store, max_bytes=10 * BATCH_BYTES)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches >= 9)
    batches = next(read_ahead.read(REF).states).batches
    for number in range(100):
        next(batches)
        assert store.read_batches <= max(10, number + 1)


def test_small_elements_count_with_the_memory_that_python_needs_for_them() -> None:
    store = LongCheckpoints()
    store._batches = lambda: iter([ElementBatch(range(100), [(b"", b"")] * 100)] * 100)
    read_ahead = ReadAhead(store, max_bytes=100_000)
    read_ahead.expect(REF)
    assert not store.closed.wait(0.1)
    read_ahead.cancel()
    wait_until(store.closed.is_set)


class Compact(ElementBatch):
    """A batch that says that it uses little memory."""

    @property
    def memory_bytes(self) -> int:
        return BATCH_BYTES // 10


class Preparing:
    """Prepares batches. Notes in which thread, and may fail."""

    def __init__(self, fail_at: Optional[int] = None) -> None:
        self._fail_at = fail_at
        self.prepared = 0
        self.threads: set[str] = set()

    def __call__(self, batches: Iterator[ElementBatch]) -> Iterator[ElementBatch]:
        for batch in batches:
            if self.prepared == self._fail_at:
                raise ic.CorruptCheckpointError("an element that TensorFlow must not see")
            self.prepared += 1
            self.threads.add(threading.current_thread().name)
            yield Compact(batch.positions, batch.elements)


def test_what_is_read_ahead_is_prepared_in_its_thread() -> None:
    store, prepare = LongCheckpoints(), Preparing()
    read_ahead = ReadAhead(store)
    read_ahead.expect(REF, prepare)
    wait_until(store.closed.is_set)
    assert prepare.prepared == 20
    assert prepare.threads == {"input-checkpoint-read-ahead"}
    states = [(state.name, list(state.batches)) for state in read_ahead.read(REF).states]
    assert [(name, len(batches)) for name, batches in states] == [("first", 10), ("second", 10)]
    assert {type(batch) for _, batches in states for batch in batches} == {Compact}


def test_the_rest_is_prepared_as_it_is_restored() -> None:
    store, prepare = LongCheckpoints(batches=100), Preparing()
    read_ahead = ReadAhead(store, max_bytes=BATCH_BYTES)
    read_ahead.expect(REF, prepare)
    assert content(read_ahead.read(REF)) == content(LongCheckpoints(batches=100).read(REF))
    assert prepare.prepared == 200


def test_prepared_batches_count_with_the_memory_that_they_use() -> None:
    store, prepare = LongCheckpoints(batches=1000), Preparing()
    read_ahead = ReadAhead(store, max_bytes=10 * BATCH_BYTES)
    read_ahead.expect(REF, prepare)
    wait_until(lambda: prepare.prepared >= 100)
    assert not store.closed.wait(0.1)
    assert prepare.prepared == 100
    read_ahead.cancel()
    wait_until(store.closed.is_set)


@pytest.mark.parametrize("fail_at", [0, 5, 15])
def test_an_element_that_is_refused_ahead_leaves_the_decision_to_the_restore(fail_at: int) -> None:
    store = LongCheckpoints()
    read_ahead = ReadAhead(store)
    read_ahead.expect(REF, Preparing(fail_at))
    assert content(read_ahead.read(REF)) == content(LongCheckpoints().read(REF))
    assert store.opened == [REF, REF]


def test_the_memory_of_views_is_that_of_their_bytes() -> None:
    payload = bytes(BATCH_BYTES)
    assert (
        ElementBatch([0], [(b"key", memoryview(payload))]).memory_bytes
        == ElementBatch([0], [(b"key", payload)]).memory_bytes
        >= len(b"key") + BATCH_BYTES
    )


def test_if_another_checkpoint_is_asked_for_the_expected_one_is_forgotten() -> None:
    store = LongCheckpoints(batches=1000)
    read_ahead = ReadAhead(store, max_bytes=BATCH_BYTES)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches > 0)
    checkpoint = read_ahead.read(OTHER)
    wait_until(lambda: store.closed.is_set() and not threads())
    assert checkpoint.info.ref == OTHER
    assert store.opened == [REF, OTHER]


def test_cancelling_ends_the_thread_and_closes_the_read() -> None:
    store = LongCheckpoints(batches=1000)
    read_ahead = ReadAhead(store, max_bytes=BATCH_BYTES)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches > 0)
    read_ahead.cancel()
    wait_until(lambda: store.closed.is_set() and not threads())
    read_ahead.read(REF)
    assert store.opened == [REF, REF]


def test_cancelling_stops_a_read_in_its_middle() -> None:
    store = LongCheckpoints(batches=10**9)
    read_ahead = ReadAhead(store, max_bytes=10**12)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches > 0)
    read_ahead.cancel()
    wait_until(lambda: store.closed.is_set() and not threads())


def test_expecting_another_checkpoint_ends_the_thread_of_the_first() -> None:
    store = LongCheckpoints(batches=1000)
    read_ahead = ReadAhead(store, max_bytes=BATCH_BYTES)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches > 0)
    read_ahead.expect(OTHER)
    wait_until(store.closed.is_set)
    assert read_ahead.read(OTHER).info.ref == OTHER
    assert store.opened == [REF, OTHER]


def test_a_read_ahead_that_nobody_holds_any_more_ends_its_thread() -> None:
    store = LongCheckpoints(batches=1000)
    read_ahead = ReadAhead(store, max_bytes=BATCH_BYTES)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches > 0)
    del read_ahead
    wait_until(lambda: store.closed.is_set() and not threads())


def test_expecting_nothing_reads_nothing() -> None:
    store = LongCheckpoints()
    read_ahead = ReadAhead(store)
    read_ahead.expect(None)
    assert not threads()
    assert store.opened == []


@pytest.mark.parametrize("broken_at", [0, 5, 15])
def test_after_an_error_ahead_the_checkpoint_is_read_again_from_its_beginning(broken_at: int) -> None:
    store = LongCheckpoints(broken_at=broken_at)
    read_ahead = ReadAhead(store)
    read_ahead.expect(REF)
    wait_until(lambda: store.broken_at is None)
    assert content(read_ahead.read(REF)) == content(LongCheckpoints().read(REF))
    assert store.opened == [REF, REF]


def test_damage_beyond_what_was_read_ahead_is_raised_where_it_is_met() -> None:
    store = LongCheckpoints(batches=1000, broken_at=500)
    read_ahead = ReadAhead(store, max_bytes=BATCH_BYTES)
    read_ahead.expect(REF)
    wait_until(lambda: store.read_batches > 0)
    batches = next(read_ahead.read(REF).states).batches
    assert len([next(batches) for _ in range(500)]) == 500
    with pytest.raises(ic.CorruptCheckpointError, match="damaged in transit"):
        next(batches)


def damage(memory: MemoryBackend, keys: list[str]) -> None:
    for key in keys:
        memory.put(key, bytes(len(memory.get(key))))


@pytest.mark.parametrize("part", ["manifest", "packs"])
def test_a_damaged_checkpoint_is_skipped_with_the_same_messages(
    part: str,
    store: ic.CheckpointStore,
    saved: list[ic.CheckpointRef],
    memory: MemoryBackend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    newest = [key for key in pack_keys(memory) if f"/{saved[1].step:012d}-" in key]
    damage(memory, [manifest_key(saved[1])] if part == "manifest" else newest)
    found = []
    for read_ahead in (None, ReadAhead(store)):
        listing, counter = store.list_worker(WORKER), Counter()
        resumer = Resumer(store, WORKER, "aligned", read_ahead=read_ahead)
        if read_ahead is not None:
            assert resumer.expected(20, listing) == saved[1]
            read_ahead.expect(saved[1])
        with caplog.at_level(logging.WARNING):
            resumed = resumer.restore(counter, 20, listing)
        assert resumed is not None
        found.append((resumed.ref, counter.value, caplog.messages[:]))
        caplog.clear()
    assert found[0] == found[1]
    assert found[0][:2] == (saved[0], 100)
    assert "Trying an older input checkpoint, because" in found[0][2][0]


def fast_forward(store: ic.CheckpointStore, read_ahead: Optional[ReadAhead] = None) -> FastForward:
    progress = Progress(store.uri, logging.getLogger(__name__))
    return FastForward(store, FastForwardLimit(), progress, read_ahead=read_ahead)


@pytest.mark.parametrize(
    ("mode", "step", "expected"),
    [
        ("aligned", 20, 1),
        ("aligned", 15, 0),
        ("aligned", 5, None),
        ("exact", 20, 1),
        ("exact", 15, None),
        ("latest", 5, 1),
        ("fresh", 20, None),
    ],
)
def test_the_expected_checkpoint_is_the_first_that_a_resume_tries(
    mode: str,
    step: int,
    expected: Optional[int],
    store: ic.CheckpointStore,
    saved: list[ic.CheckpointRef],
) -> None:
    found = Resumer(store, WORKER, mode).expected(step, store.list_worker(WORKER), fast_forward(store))
    assert found == (None if expected is None else saved[expected])


def test_of_a_mark_the_base_is_expected_and_restored(
    store: ic.CheckpointStore, backend: CountingRanges, memory: MemoryBackend
) -> None:
    run, counter = store.begin_run(WORKER), Counter()
    counter.value = 100
    base = run.save(10, counter.snapshot().states()).ref
    run.mark(15, base, {"Counter": 5}, {"Counter": digest_of(105)})
    listing, read_ahead = store.list_worker(WORKER), ReadAhead(store)
    forward = fast_forward(store, read_ahead)
    resumer = Resumer(store, WORKER, "aligned", read_ahead=read_ahead)
    assert resumer.expected(15, listing, forward) == base
    backend.reads.clear()
    read_ahead.expect(base)
    resumed = resumer.restore(counter := Counter(), 15, listing, fast_forward=forward)
    assert resumed is not None
    assert (resumed.base, counter.value) == (base, 105)
    packs = [count for (key, *_), count in backend.reads.items() if key.startswith("packs/")]
    assert packs == [1]
