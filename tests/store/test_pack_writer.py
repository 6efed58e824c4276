"""Packs are written several at once, in bounded memory."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from input_checkpoint import Backend, BackendUnavailableError
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.chunk_table import Location
from input_checkpoint.store.pack_writer import PackWriter
from tests.support.wrappers import Failing, Gated, Recording

PIECES = [bytes([number]) * (100 + number) for number in range(40)]


def pack_key(number: int) -> str:
    return f"packs/{number:05d}"


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def write(backend: Backend, pieces, pack_bytes: int = 1000, concurrency: int = 2):
    with PackWriter(backend, pack_key, pack_bytes, concurrency) as writer:
        places = [writer.add(piece, len(piece)) for piece in pieces]
        return writer.finish(), places


@pytest.fixture
def memory() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def test_every_chunk_is_stored_where_its_location_says(memory):
    _, places = write(memory, PIECES)
    assert [memory.get(place.pack, place.offset, place.offset + place.stored) for place in places] == PIECES


def test_nothing_added_stores_nothing(memory):
    assert write(memory, []) == ({}, [])
    assert list(memory.list()) == []


def test_a_pack_is_closed_once_it_is_full(memory):
    packs, _ = write(memory, [bytes(400)] * 7, pack_bytes=1000)
    assert list(packs.values()) == [1200, 1200, 400]


def test_packs_are_given_with_the_size_they_are_stored_with(memory):
    packs, _ = write(memory, PIECES)
    assert {info.key: info.size for info in memory.list()} == packs


def test_a_chunk_larger_than_a_pack_has_one_to_itself(memory):
    packs, _ = write(memory, [bytes(50_000), b"small"], pack_bytes=1000)
    assert list(packs.values()) == [50_000, 5]


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_with_a_slow_backend_no_more_is_taken_than_the_packs_in_flight_and_one(memory, concurrency):
    gated = Gated(memory)
    taken: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(50):
            taken.append(number)
            yield bytes(1000)

    writer = threading.Thread(target=write, args=(gated, pieces(), 1000, concurrency))
    writer.start()
    try:
        wait_until(lambda: gated.running == concurrency and len(taken) == concurrency + 1)
        time.sleep(0.1)
        assert len(taken) == concurrency + 1
    finally:
        gated.gate.set()
        writer.join()
    assert len(taken) == 50
    assert gated.most_running == concurrency


def test_the_failure_of_an_upload_is_raised_at_the_end(memory):
    failing = Failing(memory, "put", pack_key(0), BackendUnavailableError("no answer"))
    with pytest.raises(BackendUnavailableError, match="no answer"):
        write(failing, [bytes(1000)] * 3)


def test_the_failure_of_the_last_upload_is_raised(memory):
    failing = Failing(memory, "put", pack_key(2), BackendUnavailableError("no answer"))
    with pytest.raises(BackendUnavailableError, match="no answer"):
        write(failing, [bytes(1000), bytes(1000), b"rest"])


def test_a_failed_upload_stops_a_long_stream_early(memory):
    failing = Failing(memory, "put", pack_key(0), BackendUnavailableError("no answer"))
    taken: list[int] = []
    with pytest.raises(BackendUnavailableError):
        write(failing, (taken.append(number) or bytes(1000) for number in range(10_000)))
    assert len(taken) < 100


def test_a_stream_that_raises_leaves_no_upload_running(memory):
    recording = Recording(memory)

    def pieces() -> Iterator[bytes]:
        yield from [bytes(1000)] * 3
        raise RuntimeError("the stream broke")

    with pytest.raises(RuntimeError, match="the stream broke"):
        write(recording, pieces())
    calls = list(recording.calls)
    time.sleep(0.05)
    assert recording.calls == calls


def test_the_location_of_a_chunk_says_where_it_went_and_how_large_it_was(memory):
    with PackWriter(memory, pack_key) as writer:
        places = [writer.add(b"abc", 3), writer.add(b"de", 200)]
        assert writer.finish() == {pack_key(0): 5}
    assert places == [Location(pack_key(0), 0, 3, 3), Location(pack_key(0), 3, 2, 200)]
