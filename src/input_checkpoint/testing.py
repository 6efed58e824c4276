"""The contract of a backend, as a test class to inherit.

```python
class TestMyBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        return open_backend("mine://somewhere/empty")
```

If the tests can reach the storage without the backend, override `BackendContract.stored` and
`BackendContract.plant` as well. The tests then check what the storage really holds.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

import pytest

from input_checkpoint.backends.base import Backend
from input_checkpoint.errors import ObjectExistsError, ObjectNotFoundError

RACERS = 16

NO_KEYS = ("object~", "folder/notes (copy)", "my folder/object", "földer/object", ".hidden", "folder/.hidden")
"""Names that other programs give, and that are not valid keys."""


class BackendContract:
    """Tests that a backend keeps the contract of `Backend`.

    Inherit it and override the fixture ``backend``.
    """

    race_rounds = 20
    """Number of keys that writers race to create."""
    large_bytes = 5 << 20
    """Size of the largest object, in bytes."""
    listed_keys = 1100
    """Number of keys in the long listing. Should exceed one page of the storage's listing."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Return an open backend without objects, a new one for each test. Must be overridden."""
        # pytest collects no abstract classes, so this method is abstract in effect only.
        raise NotImplementedError("override the `backend` fixture")

    def stored(self, backend: Backend, key: str) -> Optional[bytes]:
        """Return the stored object, or None. Override to read it without the backend."""
        try:
            return backend.get(key)
        except ObjectNotFoundError:
            return None

    def plant(self, backend: Backend, key: str, data: bytes) -> None:
        """Store an object. Override to write it without the backend."""
        backend.put(key, data)

    def test_create_stores_the_bytes(self, backend: Backend) -> None:
        backend.create("a/b.bin", b"\x00payload\xff")
        assert self.stored(backend, "a/b.bin") == b"\x00payload\xff"

    def test_create_of_an_existing_key_fails_and_changes_nothing(self, backend: Backend) -> None:
        self.plant(backend, "taken", b"first")
        with pytest.raises(ObjectExistsError):
            backend.create("taken", b"second")
        assert self.stored(backend, "taken") == b"first"

    def test_the_error_for_an_existing_key_carries_uri_and_key(self, backend: Backend) -> None:
        self.plant(backend, "folder/taken", b"first")
        with pytest.raises(ObjectExistsError) as raised:
            backend.create("folder/taken", b"second")
        assert (raised.value.uri, raised.value.key) == (backend.uri, "folder/taken")

    def test_create_succeeds_again_after_delete(self, backend: Backend) -> None:
        backend.create("again", b"1")
        backend.delete(["again"])
        backend.create("again", b"2")
        assert self.stored(backend, "again") == b"2"

    def test_exactly_one_of_many_concurrent_creates_wins_and_its_data_is_stored(
        self, backend: Backend
    ) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # lets threads switch between a check and the write that follows it
        try:
            with ThreadPoolExecutor(RACERS) as racers:
                for number in range(self.race_rounds):
                    key = f"race/{number:04d}"
                    winners = _race(racers, backend, key)
                    assert len(winners) == 1, f"{len(winners)} writers created {key}"
                    assert self.stored(backend, key) == winners[0]
        finally:
            sys.setswitchinterval(interval)

    def test_put_stores_the_bytes(self, backend: Backend) -> None:
        backend.put("plain", b"data")
        assert self.stored(backend, "plain") == b"data"

    def test_put_replaces(self, backend: Backend) -> None:
        self.plant(backend, "key", b"old and longer")
        backend.put("key", b"new")
        assert self.stored(backend, "key") == b"new"

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_put_and_create_accept_bytes_like_objects(self, backend: Backend, kind: type) -> None:
        backend.put("put", kind(b"data"))
        backend.create("create", kind(b"data"))
        assert [self.stored(backend, key) for key in ("put", "create")] == [b"data", b"data"]

    def test_an_empty_object_is_an_object(self, backend: Backend) -> None:
        backend.put("empty", b"")
        assert backend.get("empty") == b""
        assert backend.get("empty", 0, 1) == b""
        assert [(info.key, info.size) for info in backend.list()] == [("empty", 0)]

    def test_a_large_object_is_stored_and_returned_unchanged(self, backend: Backend) -> None:
        data = os.urandom(self.large_bytes)
        backend.put("large", data)
        assert self.stored(backend, "large") == data
        assert backend.get("large") == data

    def test_get_returns_an_object_of_another_writer(self, backend: Backend) -> None:
        self.plant(backend, "theirs", b"0123456789")
        assert backend.get("theirs") == b"0123456789"

    @pytest.mark.parametrize(
        ("start", "end"), [(0, 4), (3, 7), (7, None), (0, 10), (5, 5), (8, 100), (10, 20), (50, 60)]
    )
    def test_get_of_a_range_is_a_slice(self, backend: Backend, start: int, end: Optional[int]) -> None:
        self.plant(backend, "ranged", b"0123456789")
        assert backend.get("ranged", start, end) == b"0123456789"[start:end]

    def test_get_of_a_missing_key_fails(self, backend: Backend) -> None:
        with pytest.raises(ObjectNotFoundError):
            backend.get("no/such/key")

    def test_the_error_for_a_missing_key_carries_uri_and_key(self, backend: Backend) -> None:
        with pytest.raises(ObjectNotFoundError) as raised:
            backend.get("folder/missing")
        assert (raised.value.uri, raised.value.key) == (backend.uri, "folder/missing")

    def test_get_of_a_range_of_a_missing_key_fails(self, backend: Backend) -> None:
        with pytest.raises(ObjectNotFoundError):
            backend.get("missing", 2, 5)

    def test_get_of_the_beginning_of_a_key_fails(self, backend: Backend) -> None:
        self.plant(backend, "folder/object", b"data")
        with pytest.raises(ObjectNotFoundError):
            backend.get("folder/obj")

    def test_list_without_objects_is_empty(self, backend: Backend) -> None:
        assert list(backend.list()) == []

    def test_list_returns_every_key_in_order_with_its_size(self, backend: Backend) -> None:
        for key in ("b/2", "a", "b/10", "c/d/e"):
            self.plant(backend, key, key.encode())
        assert [(info.key, info.size) for info in backend.list()] == [
            ("a", 1),
            ("b/10", 4),
            ("b/2", 3),
            ("c/d/e", 5),
        ]

    def test_list_accepts_a_prefix_that_does_not_end_with_a_slash(self, backend: Backend) -> None:
        for key in ("runs/10", "runs/11", "runs/20", "run", "other/10"):
            self.plant(backend, key, b"")
        assert [info.key for info in backend.list("runs/1")] == ["runs/10", "runs/11"]
        assert [info.key for info in backend.list("runs/")] == ["runs/10", "runs/11", "runs/20"]
        assert [info.key for info in backend.list("nothing/here/")] == []

    def test_names_that_are_no_keys_are_neither_listed_nor_an_error(self, backend: Backend) -> None:
        if type(self).plant is BackendContract.plant:
            pytest.skip("override `plant`: a backend cannot store objects under such names itself")
        for name in ("folder/object", *NO_KEYS):
            self.plant(backend, name, b"theirs")
        assert [info.key for info in backend.list()] == ["folder/object"]
        assert [info.key for info in backend.list("folder/")] == ["folder/object"]
        assert [info.key for info in backend.list("folder/n")] == []
        assert [info.key for info in backend.list("my folder/")] == []

    @pytest.mark.parametrize(
        "prefix", ["/", "../", "a/../", "a/../../", "./", "a//", ".hidden/", "ä/", "a b/"]
    )
    def test_a_prefix_that_no_key_can_start_with_lists_nothing(self, backend: Backend, prefix: str) -> None:
        self.plant(backend, "a/object", b"data")
        assert list(backend.list(prefix)) == []

    def test_deleting_the_last_object_of_a_folder_leaves_what_else_is_there(self, backend: Backend) -> None:
        if type(self).plant is BackendContract.plant:
            pytest.skip("override `plant`: a backend cannot store objects under such names itself")
        self.plant(backend, "folder/object", b"data")
        self.plant(backend, "folder/notes (copy)", b"theirs")
        backend.delete(["folder/object"])
        assert self.stored(backend, "folder/notes (copy)") == b"theirs"

    def test_removing_leftovers_removes_no_object(self, backend: Backend) -> None:
        for key in ("object", "folder/object"):
            self.plant(backend, key, b"data")
        backend.remove_leftovers(["", "folder", "folder/[0-9]+", "elsewhere"])
        assert [info.key for info in backend.list()] == ["folder/object", "object"]

    def test_list_never_comes_from_a_cache(self, backend: Backend) -> None:
        list(backend.list())
        list(backend.list("new/"))
        self.plant(backend, "new/object", b"data")
        assert [info.key for info in backend.list()] == ["new/object"]
        assert [info.key for info in backend.list("new/")] == ["new/object"]
        backend.delete(["new/object"])
        assert list(backend.list("new/")) == []

    def test_list_of_many_keys_is_complete(self, backend: Backend) -> None:
        keys = [f"many/{number:05d}" for number in range(self.listed_keys)]
        with ThreadPoolExecutor(RACERS) as writers:
            list(writers.map(lambda key: backend.put(key, b""), keys))
        assert [info.key for info in backend.list("many/")] == keys

    def test_delete_removes_the_given_keys_and_no_others(self, backend: Backend) -> None:
        for key in ("a/1", "a/2", "a/3"):
            self.plant(backend, key, b"data")
        backend.delete(["a/1", "a/3"])
        assert [self.stored(backend, key) for key in ("a/1", "a/2", "a/3")] == [None, b"data", None]

    def test_delete_ignores_missing_keys_and_removes_the_others(self, backend: Backend) -> None:
        self.plant(backend, "there", b"data")
        backend.delete(["not/there", "there", "nor/there"])
        assert self.stored(backend, "there") is None

    def test_delete_of_no_keys_does_nothing(self, backend: Backend) -> None:
        self.plant(backend, "there", b"data")
        backend.delete([])
        assert self.stored(backend, "there") == b"data"

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a b", "ä"])
    def test_an_invalid_key_is_refused(self, backend: Backend, key: str) -> None:
        with pytest.raises(ValueError, match="not a valid key"):
            backend.put(key, b"data")
        with pytest.raises(ValueError, match="not a valid key"):
            backend.create(key, b"data")
        with pytest.raises(ValueError, match="not a valid key"):
            backend.get(key)
        with pytest.raises(ValueError, match="not a valid key"):
            backend.delete([key])

    def test_many_threads_can_use_a_backend_at_the_same_time(self, backend: Backend) -> None:
        def work(number: int) -> bool:
            data = os.urandom(1000)
            backend.put(f"threads/{number}", data)
            return backend.get(f"threads/{number}") == data

        with ThreadPoolExecutor(RACERS) as workers:
            assert all(workers.map(work, range(100)))
        assert len(list(backend.list("threads/"))) == 100


def _race(racers: ThreadPoolExecutor, backend: Backend, key: str) -> list[bytes]:
    """Let all racers create ``key`` at the same time; return the data of those who succeeded."""
    start = threading.Barrier(RACERS)

    def create(number: int) -> Optional[bytes]:
        data = f"racer {number} ".encode() * (number + 1)
        start.wait()
        try:
            backend.create(key, data)
        except ObjectExistsError:
            return None
        return data

    return [data for data in racers.map(create, range(RACERS)) if data is not None]
