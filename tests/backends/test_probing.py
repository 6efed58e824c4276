"""A probe refuses a storage that cannot hold a store."""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from input_checkpoint import (
    Backend,
    BackendError,
    BackendPermissionError,
    BackendUnavailableError,
    CheckpointStore,
    ObjectExistsError,
    UnsupportedFormatError,
)
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.backends.probing import probe
from tests.support.wrappers import Failing, Wrapped, contents


class UnconditionalCreate(Wrapped):
    """Ignores the condition of a create, like a server that does not support it."""

    def create(self, key, data):
        self.inner.put(key, data)


class EmptyListing(Wrapped):
    """Lists nothing, not even an object that was just written."""

    def list(self, prefix=""):
        return iter(())


class WrongData(Wrapped):
    """Returns other data than was written."""

    def get(self, key, start=0, end=None):
        return self.inner.get(key, start, end).upper()


class WithoutTimes(Wrapped):
    """Does not know when an object was written."""

    def list(self, prefix=""):
        return (replace(info, modified=None) for info in self.inner.list(prefix))


class LosesAnswers(Wrapped):
    """Does what is asked, but the first answer to each kind of request is lost.

    Args:
        inner: the backend that does it.
        repeats: whether the client library repeats the request itself.
    """

    def __init__(self, inner: Backend, repeats: bool) -> None:
        super().__init__(inner)
        self.repeats = repeats
        self.lost: set[str] = set()

    def create(self, key, data):
        self._lose("create", lambda: self.inner.create(key, data))

    def put(self, key, data):
        self._lose("put", lambda: self.inner.put(key, data))

    def get(self, key, start=0, end=None):
        return self._lose("get", lambda: self.inner.get(key, start, end))

    def list(self, prefix=""):
        return self._lose("list", lambda: self.inner.list(prefix))

    def delete(self, keys):
        self._lose("delete", lambda: self.inner.delete(keys))

    def _lose(self, verb, request):
        result = request()
        if verb in self.lost:
            return result
        self.lost.add(verb)
        if self.repeats:
            return request()
        raise BackendUnavailableError("the connection was lost")


@pytest.fixture
def memory() -> MemoryBackend:
    return MemoryBackend(f"memory://{uuid.uuid4().hex}")


def test_a_probe_leaves_nothing_behind(memory):
    memory.put("theirs", b"data")
    probe(memory)
    assert contents(memory) == {"theirs": b"data"}


@pytest.mark.parametrize("repeats", [False, True], ids=["reported", "repeated by the client library"])
def test_lost_answers_do_not_end_the_probe(memory, repeats):
    losing = LosesAnswers(memory, repeats)
    probe(losing)
    assert losing.lost == {"create", "put", "get", "list", "delete"}
    assert contents(memory) == {}


def test_a_key_that_holds_something_else_ends_the_probe(memory):
    class Taken(Wrapped):
        def create(self, key, data):
            self.inner.put(key, b"of somebody else")
            self.inner.create(key, data)

    with pytest.raises(ObjectExistsError):
        probe(Taken(memory))


def test_a_local_folder_passes(tmp_path):
    probe(LocalBackend(str(tmp_path)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (UnconditionalCreate, r"ignores the condition.*commit_lock"),
        (EmptyListing, "does not list"),
        (WrongData, "does not return the data"),
    ],
)
def test_a_storage_that_breaks_the_contract_is_refused(memory, wrong, message):
    with pytest.raises(BackendError, match=rf"{memory.uri}.*{message}") as raised:
        probe(wrong(memory))
    assert raised.value.uri == memory.uri
    assert raised.value.key.startswith("probe/")


@pytest.mark.parametrize("wrong", [UnconditionalCreate, EmptyListing, WrongData])
def test_a_failed_probe_leaves_nothing_behind(memory, wrong):
    with pytest.raises(BackendError):
        probe(wrong(memory))
    assert contents(memory) == {}


@pytest.mark.parametrize("verb", ["create", "put", "get", "list", "delete"])
def test_the_error_names_the_operation_that_is_denied(memory, verb):
    with pytest.raises(BackendPermissionError, match=f"may not {verb}"):
        probe(Failing(memory, verb, "probe/", BackendPermissionError(f"may not {verb}")))


def test_an_unavailable_storage_raises_its_own_error(memory):
    with pytest.raises(BackendUnavailableError):
        probe(Failing(memory, "put", "probe/", BackendUnavailableError("away")))


class TestWhatOlderProbesLeftBehind:
    OURS = f"probe/{'0123456789abcdef' * 2}"

    def plant(self, root: Path, key: str, data: bytes = b"third", days: float = 2) -> Path:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        then = time.time() - days * 24 * 3600
        os.utime(path, (then, then))
        return path

    def test_it_is_deleted_where_a_store_is(self, tmp_path):
        CheckpointStore.open(tmp_path, create=True)
        left = self.plant(tmp_path, self.OURS)
        CheckpointStore.open(tmp_path, probe=True)
        assert not left.exists()

    def test_it_stays_where_no_store_is_yet(self, tmp_path):
        left = self.plant(tmp_path, self.OURS)
        CheckpointStore.open(tmp_path, create=True, probe=True)
        assert left.exists()

    def test_it_stays_for_a_day(self, tmp_path):
        left = self.plant(tmp_path, self.OURS, days=0.9)
        probe(LocalBackend(str(tmp_path)), remove_stale=True)
        assert left.exists()

    def test_it_stays_if_its_age_is_unknown(self, memory):
        memory.put(self.OURS, b"third")
        probe(WithoutTimes(memory), remove_stale=True)
        assert list(contents(memory)) == [self.OURS]

    @pytest.mark.parametrize(
        ("key", "data"),
        [
            ("probe/weights.npy", b"data"),
            ("probe/linear/accuracy.csv", b"data"),
            (OURS[:-1], b"data"),
            (OURS + "0", b"data"),
            (OURS.upper().replace("PROBE", "probe"), b"data"),
            (OURS + ".npy", b"data"),
            (OURS, b"a file that is named by its digest"),
        ],
    )
    def test_anything_else_stays_however_old_it_is(self, tmp_path, key, data):
        theirs = self.plant(tmp_path, key, data)
        probe(LocalBackend(str(tmp_path)), remove_stale=True)
        assert theirs.read_bytes() == data


class TestOpeningAStore:
    def test_no_store_is_made_if_the_probe_fails(self, memory):
        with pytest.raises(BackendError):
            CheckpointStore.open(UnconditionalCreate(memory), create=True, probe=True)
        assert contents(memory) == {}

    def test_a_store_with_an_unknown_format_is_not_probed(self, memory):
        memory.put("format.json", json.dumps({"format": "input-checkpoint", "version": 99}).encode())
        with pytest.raises(UnsupportedFormatError):
            CheckpointStore.open(Failing(memory, "create", "", AssertionError("touched")), probe=True)

    def test_a_store_is_not_probed_by_default(self, memory):
        CheckpointStore.open(memory, create=True)
        untouchable: Backend = Failing(memory, "create", "", AssertionError("touched"))
        assert CheckpointStore.open(untouchable).checkpoints() == []
