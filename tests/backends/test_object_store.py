"""What `ObjectStoreBackend` does for every plugin, over a dictionary of names and bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Optional

import pytest

from input_checkpoint import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from input_checkpoint.backends.answers import UnexpectedAnswerError
from input_checkpoint.backends.base import ObjectInfo
from input_checkpoint.backends.object_store import (
    Advice,
    FailureCause,
    ObjectStoreBackend,
    Operation,
    RangePastEndError,
    RequestFailure,
    explain_unanswered,
    parse_bucket_uri,
)
from input_checkpoint.testing import BackendContract
from tests.support.operations import OPERATIONS, every_operation

URI = "dictionary://bucket/run"
SECRET = "hunter2"


class PastEndError(Exception):
    pass


class NameTakenError(Exception):
    pass


class DictionaryBackend(ObjectStoreBackend):
    """Objects in a dictionary, with exceptions of their own."""

    max_keys_per_delete = 3

    def __init__(self, uri: str = URI) -> None:
        _, prefix = parse_bucket_uri(uri)
        super().__init__(uri, prefix)
        self.objects: dict[str, bytes] = {}
        self.deleted: list[Sequence[str]] = []
        self._storing = threading.Lock()

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        with self._storing:
            if if_absent and name in self.objects:
                raise NameTakenError
            self.objects[name] = data

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        data = self.objects[name]
        if start >= len(data):
            raise PastEndError
        return data[start:end]

    def list_objects(self, prefix: str) -> Iterable[ObjectInfo]:
        return [
            ObjectInfo(name, len(self.objects[name]), None)
            for name in sorted(self.objects)
            if name.startswith(prefix)
        ]

    def delete_objects(self, names: Sequence[str]) -> None:
        self.deleted.append(names)
        for name in names:
            self.objects.pop(name, None)

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        if isinstance(error, NameTakenError):
            return operation.already_exists()
        if isinstance(error, PastEndError):
            return operation.error(RangePastEndError, "past the end")
        if isinstance(error, KeyError):
            return operation.does_not_exist()
        return BackendUnavailableError(str(error))


@pytest.fixture
def backend() -> DictionaryBackend:
    return DictionaryBackend()


class TestContract(BackendContract):
    @pytest.fixture
    def backend(self) -> DictionaryBackend:
        return DictionaryBackend()


class TestAnswers:
    def test_one_that_is_none_is_unavailable_and_says_what_came(self, backend, monkeypatch):
        def answer_with_a_page(name, start, end):
            raise UnexpectedAnswerError("GetObject", "text/html", "an object")

        monkeypatch.setattr(backend, "download", answer_with_a_page)
        with pytest.raises(BackendUnavailableError) as raised:
            backend.get("a")
        assert str(raised.value) == (
            f"cannot read {URI}/a: the server answered GetObject with text/html, not with an object. A proxy "
            "or a login page may have answered. Check the endpoint and the network; trying again may help."
        )

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["elsewhere/a"], "elsewhere/a"),
            (["run/b", "run/a"], "run/a after run/b"),
            (["run/a"] * 2, "order"),
        ],
        ids=["outside the prefix", "out of order", "twice"],
    )
    def test_a_listing_that_breaks_its_promise_is_an_error(self, backend, monkeypatch, names, said):
        infos = [ObjectInfo(name, 1, None) for name in names]
        monkeypatch.setattr(backend, "list_objects", lambda prefix: infos)
        with pytest.raises(BackendUnavailableError, match=said):
            list(backend.list())


class TestNames:
    def test_the_prefix_is_in_front_of_every_name(self, backend):
        backend.put("a", b"1")
        backend.create("b/c", b"2")
        assert backend.objects == {"run/a": b"1", "run/b/c": b"2"}

    def test_objects_outside_the_prefix_are_not_listed(self, backend):
        backend.objects = {"run/a": b"", "runner/a": b"", "a": b""}
        assert [info.key for info in backend.list()] == ["a"]

    def test_marks_of_folders_are_not_listed(self, backend):
        backend.objects = {"run/": b"", "run/folder/": b"", "run/folder/a": b""}
        assert [info.key for info in backend.list()] == ["folder/a"]

    @pytest.mark.parametrize("key", ["", "/a", "a/../b", ".a", "a\n"])
    def test_an_invalid_key_sends_no_request(self, backend, key):
        with pytest.raises(ValueError, match="not a valid key"):
            backend.delete(["a", key])
        assert backend.deleted == []


class TestRanges:
    @pytest.fixture
    def backend(self) -> DictionaryBackend:
        backend = DictionaryBackend()
        backend.put("key", b"0123456789")
        backend.put("empty", b"")
        return backend

    def test_one_that_starts_past_the_end_is_empty(self, backend):
        assert backend.get("key", 10, 20) == b""

    def test_an_empty_one_is_empty(self, backend):
        assert backend.get("key", 5, 5) == b""
        assert backend.get("key", 7, 5) == b""

    def test_an_empty_one_of_an_empty_object_is_empty(self, backend):
        assert backend.get("empty", 3, 3) == b""

    def test_an_empty_one_of_a_missing_object_is_an_error(self, backend):
        with pytest.raises(ObjectNotFoundError):
            backend.get("missing", 3, 3)


class TestDelete:
    def test_more_keys_than_one_request_takes_are_sent_in_several(self, backend):
        backend.delete(f"{number}" for number in range(7))
        assert [len(names) for names in backend.deleted] == [3, 3, 1]
        assert backend.deleted[-1] == ["run/6"]

    def test_no_keys_send_no_request(self, backend):
        backend.delete([])
        assert backend.deleted == []


class TestErrors:
    def test_one_about_an_object_names_uri_and_key(self, backend):
        with pytest.raises(ObjectNotFoundError, match=f"cannot read {URI}/a/b: it does not exist") as raised:
            backend.get("a/b")
        assert (raised.value.uri, raised.value.key) == (URI, "a/b")

    def test_a_create_of_a_key_that_is_taken_names_it(self, backend):
        backend.put("key", b"")
        with pytest.raises(ObjectExistsError, match=f"{URI}/key already exists") as raised:
            backend.create("key", b"")
        assert (raised.value.uri, raised.value.key) == (URI, "key")

    def test_one_about_many_objects_names_no_key(self, backend, monkeypatch):
        monkeypatch.setattr(backend, "list_objects", lambda prefix: [][0])
        with pytest.raises(BackendUnavailableError) as raised:
            list(backend.list("checkpoints/"))
        assert (raised.value.uri, raised.value.key) == (URI, None)

    def test_one_in_the_middle_of_a_listing_is_translated(self, backend, monkeypatch):
        def one_page(prefix: str) -> Iterable[ObjectInfo]:
            yield ObjectInfo("run/a", 0, None)
            raise OSError("the connection broke")

        monkeypatch.setattr(backend, "list_objects", one_page)
        listing = backend.list()
        assert next(listing).key == "a"
        with pytest.raises(BackendUnavailableError, match="the connection broke"):
            next(listing)

    def test_a_backend_error_keeps_its_class_and_text_and_learns_where_it_happened(
        self, backend, monkeypatch
    ):
        def refuse(name: str, data: bytes, *, if_absent: bool) -> None:
            raise BackendError("the quota is used up")

        monkeypatch.setattr(backend, "upload", refuse)
        with pytest.raises(BackendError, match=r"^the quota is used up$") as raised:
            backend.put("key", b"data")
        assert (raised.value.uri, raised.value.key) == (URI, "key")

    def test_the_cause_names_the_exception_of_the_client_library(self, backend):
        with pytest.raises(ObjectNotFoundError) as raised:
            backend.get("key")
        assert str(raised.value.__cause__) == "KeyError: 'run/key'"

    def test_a_password_in_the_text_is_removed(self):
        error = Operation("read", URI, "key").error(BackendError, f"no answer of http://joe:{SECRET}@host/")
        assert str(error) == f"cannot read {URI}/key: no answer of http://***@host/"


class RefusedError(Exception):
    pass


class RenewingBackend(DictionaryBackend):
    """Its client is the password that it found. The server accepts `accepted`."""

    def __init__(self, passwords: Sequence[str], accepted: str) -> None:
        self.passwords = iter(passwords)
        self.accepted = accepted
        self.sent: list[str] = []
        super().__init__()
        self.objects = {f"run/{number}": b"data" for number in range(6)}

    def open_client(self) -> str:
        return next(self.passwords)

    def log_in(self) -> None:
        self.sent.append(self.client)
        if self.client != self.accepted:
            raise RefusedError

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        self.log_in()
        super().upload(name, data, if_absent=if_absent)

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        self.log_in()
        return super().download(name, start, end)

    def list_objects(self, prefix: str) -> Iterable[ObjectInfo]:
        for info in super().list_objects(prefix):
            self.log_in()
            yield info

    def delete_objects(self, names: Sequence[str]) -> None:
        self.log_in()
        super().delete_objects(names)

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        if isinstance(error, RefusedError):
            return operation.credentials_refused("wrong password")
        if isinstance(error, StopIteration):
            return operation.error(BackendError, "no password found")
        return super().translate_error(error, operation)


class TestRenewedCredentials:
    @every_operation
    def test_they_are_looked_up_when_the_server_refuses_the_old_ones(self, operation):
        backend = RenewingBackend(["old", "new"], "old")
        backend.put("key", b"data")
        backend.accepted = "new"
        if operation is OPERATIONS["create"]:
            backend.delete(["key"])
        operation(backend)
        assert backend.client == "new"

    @every_operation
    def test_credentials_that_stay_refused_are_an_error_after_one_repetition(self, operation):
        backend = RenewingBackend(["old", "wrong", "unused"], "none")
        assert backend.client == "old"
        with pytest.raises(BackendPermissionError, match="wrong password"):
            operation(backend)
        assert backend.sent == ["old", "wrong"]

    def test_a_client_that_was_opened_for_the_request_is_not_opened_again(self):
        backend = RenewingBackend(["wrong", "unused"], "none")
        with pytest.raises(BackendPermissionError, match="wrong password"):
            backend.get("key")
        assert backend.sent == ["wrong"]

    def test_a_listing_goes_on_after_the_last_object_that_it_returned(self):
        backend = RenewingBackend(["old", "new"], "old")
        assert backend.client == "old"
        listing = backend.list()
        keys = [next(listing).key, next(listing).key]
        backend.accepted = "new"
        keys += [info.key for info in listing]
        assert keys == ["0", "1", "2", "3", "4", "5"]

    def test_a_failed_lookup_is_the_error(self):
        backend = RenewingBackend(["old"], "new")
        assert backend.client == "old"
        with pytest.raises(BackendError, match=f"cannot open {URI}: no password found"):
            backend.get("1")

    def test_a_missing_permission_is_not_a_reason_to_look_them_up(self, monkeypatch):
        def refuse(name: str, start: int, end: Optional[int]) -> bytes:
            raise BackendPermissionError("not yours")

        backend = RenewingBackend(["old", "unused"], "old")
        assert backend.client == "old"
        monkeypatch.setattr(backend, "download", refuse)
        with pytest.raises(BackendPermissionError, match="not yours"):
            backend.get("1")
        assert backend.client == "old"


class TestRequestWithoutAnswer:
    ADVICE = Advice("Log in.", "Set the authority.", "Check the address.")

    @pytest.mark.parametrize(
        ("cause", "text"),
        [
            (FailureCause.CREDENTIALS, r"the credentials are not accepted \(why\)\. Log in\."),
            (FailureCause.CERTIFICATE, r"certificate is not trusted \(why\)\. Set the authority\."),
            (FailureCause.OPTIONS, r"the URI or storage_options are wrong: why"),
        ],
    )
    def test_a_permanent_cause_is_explained_and_not_unavailable(self, cause, text):
        failure = RequestFailure("why", cause=cause)
        error = explain_unanswered(failure, Operation("read", URI), self.ADVICE)
        assert not isinstance(error, BackendUnavailableError)
        with pytest.raises(BackendError, match=text):
            raise error

    def test_a_lost_connection_is_unavailable(self):
        error = explain_unanswered(RequestFailure("why"), Operation("read", URI, "key"), self.ADVICE)
        assert isinstance(error, BackendUnavailableError)
        assert str(error) == f"cannot read {URI}/key: why. Check the address; trying again may help."


class TestUri:
    @pytest.mark.parametrize(
        ("uri", "parts"),
        [
            ("s3://bucket", ("bucket", "")),
            ("s3://bucket/", ("bucket", "")),
            ("s3://bucket/run-7/input", ("bucket", "run-7/input/")),
            ("s3://bucket//run-7//", ("bucket", "run-7/")),
            ("s3://bucket/a@b:c?d#e", ("bucket", "a@b:c?d#e/")),
        ],
    )
    def test_it_is_a_bucket_and_a_prefix(self, uri, parts):
        assert parse_bucket_uri(uri) == parts

    @pytest.mark.parametrize("uri", ["s3://", "s3:///run"])
    def test_one_without_a_bucket_is_refused(self, uri):
        with pytest.raises(BackendNotFoundError, match=r"names no bucket\. Write s3://bucket/prefix"):
            parse_bucket_uri(uri)

    @pytest.mark.parametrize(
        "uri", [f"s3://joe:{SECRET}@bucket/run", f"s3://{SECRET}@bucket/run", f"s3://bucket/run?sig={SECRET}"]
    )
    def test_credentials_in_it_are_refused_without_repeating_them(self, uri):
        with pytest.raises(BackendNotFoundError, match="must not be part of the URI") as raised:
            parse_bucket_uri(uri, forbidden="?")
        assert SECRET not in str(raised.value) + str(raised.value.uri)
