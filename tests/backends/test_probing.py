"""A storage that cannot hold a store is known before training begins."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest

from input_checkpoint import (
    Backend,
    BackendError,
    BackendPermissionError,
    BackendUnavailableError,
    CheckpointStore,
    UnsupportedFormatError,
)
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.backends.probing import probe
from tests.support.wrappers import Failing, Wrapped, contents


class Forgetful(Wrapped):
    """Ignores the condition of a create, as servers do that do not know it."""

    def create(self, key, data):
        self.inner.put(key, data)


class LateListing(Wrapped):
    """Does not show what was just written."""

    def list(self, prefix=""):
        return iter(())


class Garbling(Wrapped):
    """Gives back something else."""

    def get(self, key, start=0, end=None):
        return self.inner.get(key, start, end).upper()


@pytest.fixture
def memory() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def test_a_good_storage_passes_and_nothing_stays(memory):
    memory.put("theirs", b"data")
    probe(memory)
    assert contents(memory) == {"theirs": b"data"}


def test_a_local_folder_passes(tmp_path):
    probe(LocalBackend(str(tmp_path)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Forgetful, r"ignores the condition.*commit_lock"),
        (LateListing, "does not list"),
        (Garbling, "does not return the data"),
    ],
)
def test_a_storage_that_does_not_keep_the_contract_is_refused(memory, wrong, said):
    with pytest.raises(BackendError, match=rf"{memory.uri}.*{said}") as raised:
        probe(wrong(memory))
    assert raised.value.uri == memory.uri
    assert raised.value.key.startswith("probe/")


@pytest.mark.parametrize("wrong", [Forgetful, LateListing, Garbling])
def test_a_storage_that_is_refused_is_left_as_it_was(memory, wrong):
    with pytest.raises(BackendError):
        probe(wrong(memory))
    assert contents(memory) == {}


@pytest.mark.parametrize("verb", ["create", "put", "get", "list", "delete"])
def test_what_may_not_be_done_is_said(memory, verb):
    with pytest.raises(BackendPermissionError, match=f"may not {verb}"):
        probe(Failing(memory, verb, "probe/", BackendPermissionError(f"may not {verb}")))


def test_a_storage_that_is_away_is_told_from_one_that_says_no(memory):
    with pytest.raises(BackendUnavailableError):
        probe(Failing(memory, "put", "probe/", BackendUnavailableError("away")))


def test_what_a_killed_probe_has_left_goes_a_day_later(tmp_path: Path):
    backend = LocalBackend(str(tmp_path))
    backend.put("probe/old", b"data")
    backend.put("probe/new", b"data")
    two_days_ago = (tmp_path / "probe/old").stat().st_mtime - 2 * 24 * 3600
    os.utime(tmp_path / "probe/old", (two_days_ago, two_days_ago))
    probe(backend)
    assert list(contents(backend)) == ["probe/new"]


class TestOpeningAStore:
    def test_no_store_is_made_where_the_probe_fails(self, memory):
        with pytest.raises(BackendError):
            CheckpointStore.open(Forgetful(memory), create=True, probe=True)
        assert contents(memory) == {}

    def test_a_store_of_an_unknown_format_is_not_touched(self, memory):
        memory.put("format.json", json.dumps({"format": "input-checkpoint", "version": 99}).encode())
        with pytest.raises(UnsupportedFormatError):
            CheckpointStore.open(Failing(memory, "create", "", AssertionError("touched")), probe=True)

    def test_it_is_not_probed_unless_asked_for(self, memory):
        CheckpointStore.open(memory, create=True)
        untouchable: Backend = Failing(memory, "create", "", AssertionError("touched"))
        assert CheckpointStore.open(untouchable).checkpoints() == []
