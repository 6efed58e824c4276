"""Packs are uploaded several at once, in bounded memory."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from input_checkpoint import Backend, BackendUnavailableError
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.chunk_table import Location
from input_checkpoint.store.pack_writer import PackWriter
from input_checkpoint.store.upload_speed import UploadSpeed
from tests.support.wrappers import Failing, Gated, Recording, contents

CHUNKS = [bytes([number]) * (100 + number) for number in range(40)]


def pack_key(number: int) -> str:
    return f"packs/{number:05d}"


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met within 20 seconds"
        time.sleep(0.005)


def write(backend: Backend, chunks, pack_bytes: int = 1000, concurrency: int = 2):
    with PackWriter(backend, pack_key, pack_bytes, concurrency) as writer:
        locations = [writer.add(chunk, len(chunk)) for chunk in chunks]
        return writer.finish(), locations


@pytest.fixture
def memory() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def test_every_chunk_is_stored_where_its_location_says(memory):
    _, locations = write(memory, CHUNKS)
    assert [memory.get(at.pack, at.offset, at.offset + at.stored) for at in locations] == CHUNKS


def test_without_chunks_no_pack_is_stored(memory):
    assert write(memory, []) == ({}, [])
    assert list(memory.list()) == []


def test_a_pack_is_closed_once_it_is_full(memory):
    packs, _ = write(memory, [bytes(400)] * 7, pack_bytes=1000)
    assert list(packs.values()) == [1200, 1200, 400]


def test_finish_returns_the_stored_size_of_each_pack(memory):
    packs, _ = write(memory, CHUNKS)
    assert {info.key: info.size for info in memory.list()} == packs


def test_a_chunk_larger_than_a_pack_gets_its_own_pack(memory):
    packs, _ = write(memory, [bytes(50_000), b"small"], pack_bytes=1000)
    assert list(packs.values()) == [50_000, 5]


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_a_slow_backend_bounds_the_number_of_packs_in_memory(memory, concurrency):
    gated = Gated(memory)
    drawn: list[int] = []

    def chunks() -> Iterator[bytes]:
        for number in range(50):
            drawn.append(number)
            yield bytes(1000)

    writer = threading.Thread(target=write, args=(gated, chunks(), 1000, concurrency))
    writer.start()
    try:
        wait_until(lambda: gated.running == concurrency and len(drawn) == concurrency + 1)
        time.sleep(0.1)
        assert len(drawn) == concurrency + 1
    finally:
        gated.gate.set()
        writer.join()
    assert len(drawn) == 50
    assert gated.most_running == concurrency


def test_a_failed_upload_is_raised_by_finish_at_the_latest(memory):
    failing = Failing(memory, "put", pack_key(0), BackendUnavailableError("no answer"))
    with pytest.raises(BackendUnavailableError, match="no answer"):
        write(failing, [bytes(1000)] * 3)


def test_a_failure_of_the_last_upload_is_raised(memory):
    failing = Failing(memory, "put", pack_key(2), BackendUnavailableError("no answer"))
    with pytest.raises(BackendUnavailableError, match="no answer"):
        write(failing, [bytes(1000), bytes(1000), b"rest"])


def test_a_failed_upload_stops_a_long_stream_early(memory):
    failing = Failing(memory, "put", pack_key(0), BackendUnavailableError("no answer"))
    drawn: list[int] = []
    with pytest.raises(BackendUnavailableError):
        write(failing, (drawn.append(number) or bytes(1000) for number in range(10_000)))
    assert len(drawn) < 100


def test_no_upload_is_running_after_an_error_in_the_stream(memory):
    recording = Recording(memory)

    def chunks() -> Iterator[bytes]:
        yield from [bytes(1000)] * 3
        raise RuntimeError("the stream broke")

    with pytest.raises(RuntimeError, match="the stream broke"):
        write(recording, chunks())
    calls = list(recording.calls)
    time.sleep(0.05)
    assert recording.calls == calls


def test_a_flush_uploads_what_was_added_as_a_pack_of_its_own(memory):
    with PackWriter(memory, pack_key) as writer:
        writer.flush()
        writer.add(b"abc", 3)
        writer.flush()
        wait_until(lambda: contents(memory) == {pack_key(0): b"abc"})
        writer.add(b"de", 2)
        assert writer.finish() == {pack_key(0): 3, pack_key(1): 2}


def test_the_location_of_a_chunk_gives_its_pack_offset_and_sizes(memory):
    with PackWriter(memory, pack_key) as writer:
        locations = [writer.add(b"abc", 3), writer.add(b"de", 200)]
        assert writer.finish() == {pack_key(0): 5}
    assert locations == [Location(pack_key(0), 0, 3, 3), Location(pack_key(0), 3, 2, 200)]


def test_the_uploads_of_packs_are_measured(memory):
    ticks = itertools.count()
    speed = UploadSpeed(lambda: float(next(ticks)))
    with PackWriter(memory, pack_key, 1_000_000, concurrency=1, speed=speed) as writer:
        for _ in range(5):
            writer.add(bytes(2_000_000), 2_000_000)
        writer.finish()
    assert speed.seconds_per_byte() == 1 / 2_000_000


def test_a_failed_upload_is_not_measured(memory):
    speed = UploadSpeed()
    failing = Failing(memory, "put", pack_key(0), BackendUnavailableError("no answer"))
    with PackWriter(failing, pack_key, speed=speed) as writer:
        writer.add(bytes(2_000_000), 2_000_000)
        with pytest.raises(BackendUnavailableError, match="no answer"):
            writer.finish()
    assert speed.seconds_per_byte() is None
