"""Damaged and forged checkpoints are reported with URI and step, and never restored."""

from __future__ import annotations

import threading

import pytest

from input_checkpoint import (
    BackendUnavailableError,
    CheckpointInfo,
    CheckpointRef,
    CheckpointStore,
    CorruptCheckpointError,
    IteratorState,
)
from input_checkpoint.checkpoint import PackEntry
from input_checkpoint.format.keys import manifest_key
from tests.support.memory import peak_memory
from tests.support.stores import MIB, STATE, loaded, pack_keys, save, state_of, tamper
from tests.support.wrappers import Failing


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 0x04]) + data[-2:]


def empty(data: bytes) -> bytes:
    return b""


def replace(data: bytes) -> bytes:
    return b"something else"


class TestDamage:
    @pytest.fixture
    def damaged(self, store, run) -> CheckpointInfo:
        """A checkpoint that a test is about to damage."""
        return run.save(100, [IteratorState(name, elements) for name, elements in STATE])

    @pytest.mark.parametrize("harm", [truncate, flip_a_bit, empty, replace])
    @pytest.mark.parametrize("which", ["pack", "manifest"])
    def test_it_is_reported_with_uri_and_step(self, store, backend, damaged, which, harm):
        key = manifest_key(damaged.ref) if which == "manifest" else pack_keys(backend)[0]
        backend.put(key, harm(backend.get(key)))
        with pytest.raises(CorruptCheckpointError) as raised:
            loaded(store, damaged)
        assert store.uri in str(raised.value)
        assert "step 100" in str(raised.value)

    def test_a_missing_pack_is_reported_with_uri_step_and_pack(self, store, backend, damaged):
        (pack,) = pack_keys(backend)
        backend.delete([pack])
        with pytest.raises(CorruptCheckpointError) as raised:
            loaded(store, damaged)
        assert all(word in str(raised.value) for word in (store.uri, "step 100", pack))

    def test_the_manifest_of_another_checkpoint_is_reported(self, store, backend, run, damaged):
        (other,) = save(run, 200)
        backend.put(manifest_key(damaged.ref), backend.get(manifest_key(other)))
        with pytest.raises(CorruptCheckpointError, match="step 100"):
            loaded(store, damaged)

    def test_a_chunk_with_a_wrong_number_of_elements_is_reported(self, store, backend, damaged):
        tamper(backend, damaged.ref, elements=77)
        with pytest.raises(CorruptCheckpointError, match="step 100"):
            loaded(store, damaged)

    def test_a_claim_of_billions_of_elements_is_refused_without_allocating_memory(
        self, store, backend, damaged
    ):
        tamper(backend, damaged.ref, elements=2**32 - 1)

        def load() -> None:
            with pytest.raises(CorruptCheckpointError, match="step 100"):
                loaded(store, damaged)

        # Far below billions of elements, but more than other threads of this process may allocate.
        assert peak_memory(load) < 64 * MIB

    def test_an_unavailable_storage_is_not_reported_as_damage(self, backend, damaged):
        failing = Failing(backend, "get", "packs/", BackendUnavailableError("no answer"))
        with pytest.raises(BackendUnavailableError):
            loaded(CheckpointStore(failing), damaged)

    def test_the_reading_threads_end_before_the_error_about_a_damaged_chunk_is_raised(
        self, store, backend, damaged
    ):
        """If they did not, the garbage collector would join them later, in any thread, and could deadlock."""
        (pack,) = pack_keys(backend)
        backend.put(pack, bytes(len(backend.get(pack))))
        before = set(threading.enumerate())
        with pytest.raises(CorruptCheckpointError) as raised:
            loaded(store, damaged)
        assert raised.value.__traceback__ is not None  # keeps the frames of the reading code alive
        started = set(threading.enumerate()) - before
        assert [thread for thread in started if thread.name.startswith("input-checkpoint")] == []

    def test_other_checkpoints_can_still_be_loaded(self, store, backend, run, damaged):
        (other,) = save(run, 200)
        backend.put(manifest_key(damaged.ref), b"damaged")
        assert loaded(store, other) == [("Iterator", state_of(b"200"))]


class TestForgery:
    """A forged manifest has valid checksums."""

    @pytest.fixture
    def ref(self, store, run) -> CheckpointRef:
        return save(run, 100)[0]

    @pytest.mark.parametrize(
        "pack",
        [
            pytest.param("../../elsewhere", id="in a parent folder"),
            pytest.param("/absolute", id="absolute"),
            pytest.param("", id="empty"),
            pytest.param("packs/main\x00", id="with a null byte"),
        ],
    )
    def test_a_pack_key_outside_the_store_is_refused(self, store, backend, ref, pack):
        tamper(backend, ref, pack=PackEntry(pack, 100, True), offset=0, stored=10)
        with pytest.raises(CorruptCheckpointError, match="step 100"):
            loaded(store, ref)

    @pytest.mark.parametrize("offset", [10**6, 2**60, 2**63, 2**64 - 20])
    def test_an_offset_past_the_end_of_the_pack_is_refused(self, store, backend, ref, offset):
        tamper(backend, ref, pack=PackEntry(pack_keys(backend)[0], 2**61, True), offset=offset)
        with pytest.raises(CorruptCheckpointError, match="step 100"):
            loaded(store, ref)
