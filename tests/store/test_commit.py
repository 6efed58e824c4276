"""A checkpoint is visible completely or not at all, and only a run that is not superseded commits one."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest

from input_checkpoint import (
    BackendUnavailableError,
    CheckpointNotFoundError,
    CheckpointRef,
    CheckpointStore,
    IteratorState,
    SaveOptions,
    WriterSupersededError,
)
from input_checkpoint.format.keys import manifest_key
from input_checkpoint.state import Element
from tests.support.stores import (
    announcements,
    die_before_commit,
    loaded,
    pack_keys,
    run_in,
    save,
    some_state,
    state_of,
    steps,
)
from tests.support.wrappers import Failing, LosingResponses, Recording


class TestCommit:
    def test_a_checkpoint_does_not_exist_before_its_manifest(self, backend, store, run):
        die_before_commit(backend, run, 10)
        assert (store.checkpoints(), store.history("main"), store.workers()) == ([], [], [])
        assert pack_keys(backend)
        with pytest.raises(CheckpointNotFoundError):
            store.newest("main")

    def test_the_manifest_is_created_after_the_last_pack_is_stored(self, backend, store, run):
        recording = Recording(backend)
        small_packs = CheckpointStore(recording, SaveOptions(pack_bytes=1, concurrency=4))
        states = [IteratorState(f"Iterator_{number}", [(b"", b"%d" % number)]) for number in range(10)]
        info = run_in(small_packs, run).save(10, states)
        kinds = ("packs/", "checkpoints/")
        writes = [
            call for call in recording.calls if call[0] in ("put", "create") and call[1].startswith(kinds)
        ]
        assert [verb for verb, _ in writes] == ["put"] * 10 + ["create"]
        assert writes[-1] == ("create", manifest_key(info.ref))

    def test_a_failed_pack_upload_leaves_no_checkpoint(self, backend, store, run):
        failing = CheckpointStore(Failing(backend, "put", "packs/", BackendUnavailableError("no answer")))
        with pytest.raises(BackendUnavailableError, match="no answer"):
            save(run_in(failing, run), 10)
        assert store.checkpoints() == []

    def test_a_state_that_fails_while_it_is_read_leaves_no_checkpoint(self, backend, store, run):
        def elements() -> Iterator[Element]:
            yield b"", b"first"
            raise RuntimeError("the session is gone")

        with pytest.raises(RuntimeError, match="the session is gone"):
            run.save(10, [IteratorState("Iterator", elements())])
        assert store.checkpoints() == []

    def test_a_lost_response_is_not_mistaken_for_another_process(self, backend, store, run):
        (ref,) = save(run_in(CheckpointStore(LosingResponses(backend)), run), 10)
        assert loaded(store, ref) == [("Iterator", state_of(b"10"))]

    def test_a_run_is_superseded_if_another_process_has_committed_the_same_step(self, backend, store, run):
        run.save(10, some_state(b"theirs"))
        with pytest.raises(WriterSupersededError, match=r"step 10 .* another process"):
            run_in(CheckpointStore(backend), run).save(10, some_state(b"ours"))
        assert loaded(store, CheckpointRef("main", 1, 10)) == [("Iterator", state_of(b"theirs"))]

    def test_a_lost_response_does_not_hide_that_another_process_has_committed_the_step(
        self, backend, store, run
    ):
        run.save(10, some_state(b"theirs"))
        with pytest.raises(WriterSupersededError):
            run_in(CheckpointStore(LosingResponses(backend)), run).save(10, some_state(b"ours"))

    def test_an_older_run_is_superseded_at_its_next_commit(self, store, run):
        (ref,) = save(run, 10)
        store.begin_run("main", parent=ref)
        with pytest.raises(WriterSupersededError):
            save(run, 20)

    def test_an_older_run_is_superseded_before_it_uploads_a_full_save(self, store, run, backend):
        (ref,) = save(run, 10)
        store.begin_run("main", parent=ref)
        before = pack_keys(backend)
        with pytest.raises(WriterSupersededError):
            save(run_in(store, run), 20)
        assert pack_keys(backend) == before
        assert announcements(backend) == []

    def test_a_store_does_not_keep_a_finished_run_in_memory(self, store):
        run = store.begin_run("main")
        save(run, 10)
        finished = weakref.ref(run)
        del run
        gc.collect()
        assert finished() is None

    def test_a_save_of_a_superseded_run_never_appears_in_the_history(self, store, run):
        (ref,) = save(run, 10)
        successor = store.begin_run("main", parent=ref)
        with contextlib.suppress(WriterSupersededError):
            save(run, 20)
        save(successor, 15)
        assert steps(store.history("main")) == [(1, 10), (2, 15)]
