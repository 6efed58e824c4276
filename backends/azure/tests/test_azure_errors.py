"""What goes wrong with Azure is said soon, in the library's words, and without a secret."""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import pytest

from input_checkpoint import (
    Backend,
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
    open_backend,
)
from input_checkpoint.backends.obstore import ObstoreBackend
from input_checkpoint_azure import AzureBackend
from tests.support.answering_server import (
    Answer,
    answering,
    mute_server,
    unused_port,
    write_self_signed_certificate,
)
from tests.support.operations import OPERATIONS, every_operation, outcome

SECRET = base64.b64encode(b"hunter2" * 8).decode()
URI = "abfs://container/run"
NEEDS_OBSTORE = pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11")
KINDS = {"fsspec": AzureBackend, "obstore": ObstoreBackend}


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)])
def engine(request) -> str:
    return request.param


def opened(engine: str, uri: str, options: Mapping[str, Any]) -> Backend:
    return open_backend(uri, {**options, "engine": engine})


def options_for(url: str) -> dict[str, Any]:
    """Log in with a key at a server on loopback."""
    scheme = url.partition(":")[0]
    text = f"DefaultEndpointsProtocol={scheme};AccountName=account;AccountKey={SECRET};"
    return {"connection_string": f"{text}BlobEndpoint={url}/account;"}


def says(status: int, code: str, detail: str = "") -> Answer:
    """An answer in Azure's form."""
    body = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>what the server says\n'
        f"RequestId:1\nTime:now</Message>{detail}</Error>"
    )
    return Answer(status, body.encode(), {"Content-Type": "application/xml", "x-ms-error-code": code})


@contextlib.contextmanager
def backend_at(engine: str, answer: Optional[Answer]) -> Iterator[Backend]:
    with answering(answer) as url:
        backend = opened(engine, URI, options_for(url))
        yield backend
        backend.close()


class TestServerThatCannotBeReached:
    @every_operation
    def test_one_that_is_down_is_unavailable_within_half_a_minute(self, engine, operation):
        backend = opened(engine, URI, options_for(f"http://127.0.0.1:{unused_port()}"))
        error = outcome(lambda: operation(backend), within=30)
        assert isinstance(error, BackendUnavailableError)
        assert URI in str(error)
        assert "trying again may help" in str(error)
        assert SECRET not in str(error)
        backend.close()

    @pytest.mark.parametrize("operation", ["put", "list"])
    def test_one_that_never_answers_is_unavailable_in_bounded_time(self, engine, operation, monkeypatch):
        monkeypatch.setitem(AzureBackend.request_options, "read_timeout", 0.5)
        with mute_server() as port:
            options = {**options_for(f"http://127.0.0.1:{port}"), "read_timeout": 0.5}
            backend = opened(engine, URI, options)
            error = outcome(lambda: OPERATIONS[operation](backend), within=20)
            assert isinstance(error, BackendUnavailableError)
            backend.close()

    def test_a_connection_that_breaks_in_the_middle_of_an_upload_may_come_back(self, engine):
        with (
            backend_at(engine, None) as backend,
            pytest.raises(BackendUnavailableError, match=f"cannot write {URI}/key"),
        ):
            backend.put("key", bytes(1 << 20))


class TestServerThatSaysNo:
    @every_operation
    def test_a_container_that_does_not_exist_is_named(self, engine, operation):
        with backend_at(engine, says(404, "ContainerNotFound")) as backend:
            error = outcome(lambda: operation(backend), within=20)
        assert isinstance(error, BackendNotFoundError)
        assert not isinstance(error, ObjectNotFoundError)
        assert "the container does not exist" in str(error)

    @pytest.mark.parametrize("operation", ["get", "get of nothing"])
    def test_it_is_told_from_a_missing_object(self, engine, operation):
        with (
            backend_at(engine, says(404, "BlobNotFound")) as backend,
            pytest.raises(ObjectNotFoundError, match=f"{URI}/key"),
        ):
            OPERATIONS[operation](backend)

    def test_deleting_what_is_not_there_is_no_error(self, engine):
        with backend_at(engine, says(404, "BlobNotFound")) as backend:
            backend.delete(["key", "other"])

    @pytest.mark.parametrize(("status", "code"), [(409, "BlobAlreadyExists"), (412, "ConditionNotMet")])
    def test_a_key_that_is_taken_is_said_so(self, engine, status, code):
        with (
            backend_at(engine, says(status, code)) as backend,
            pytest.raises(ObjectExistsError, match=f"{URI}/key"),
        ):
            backend.create("key", b"data")

    @every_operation
    def test_a_wrong_or_expired_key_is_refused_without_showing_it(self, engine, operation):
        with backend_at(engine, says(403, "AuthenticationFailed")) as backend:
            error = outcome(lambda: operation(backend), within=20)
        assert isinstance(error, BackendPermissionError)
        assert "not accepted (AuthenticationFailed)" in str(error)
        assert "storage_options" in str(error)
        assert SECRET not in str(error)

    def test_a_clock_that_is_wrong_is_not_blamed_on_the_key(self, engine):
        detail = "<AuthenticationErrorDetail>Request date header too old</AuthenticationErrorDetail>"
        with (
            backend_at(engine, says(403, "AuthenticationFailed", detail)) as backend,
            pytest.raises(BackendPermissionError, match="Set the clock"),
        ):
            backend.put("key", b"data")

    @every_operation
    def test_rights_that_are_lacking_are_listed(self, engine, operation):
        with (
            backend_at(engine, says(403, "AuthorizationPermissionMismatch")) as backend,
            pytest.raises(BackendPermissionError, match="Storage Blob Data Contributor"),
        ):
            operation(backend)

    @pytest.mark.parametrize(
        ("status", "code"), [(503, "ServerBusy"), (429, "TooManyRequests"), (500, "OperationTimedOut")]
    )
    def test_throttling_and_its_own_failures_may_pass(self, engine, status, code):
        with (
            backend_at(engine, says(status, code)) as backend,
            pytest.raises(BackendUnavailableError, match=f"{URI}/key.*{code}.*may help"),
        ):
            backend.put("key", b"data")

    @pytest.mark.parametrize("operation", ["get", "create", "list", "delete"])
    def test_throttling_may_pass_whatever_was_asked_for(self, engine, operation):
        with backend_at(engine, says(503, "ServerBusy")) as backend, pytest.raises(BackendUnavailableError):
            OPERATIONS[operation](backend)

    def test_what_is_wrong_for_good_is_not_tried_again(self, engine):
        with (
            backend_at(engine, says(400, "InvalidHeaderValue")) as backend,
            pytest.raises(BackendError) as raised,
        ):
            backend.put("key", b"data")
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_a_message_is_one_line_without_the_request_that_follows(self, engine):
        with (
            backend_at(engine, says(400, "InvalidHeaderValue")) as backend,
            pytest.raises(BackendError) as raised,
        ):
            backend.put("key", b"data")
        assert "RequestId" not in str(raised.value)


class TestCertificate:
    def test_one_that_is_not_trusted_is_no_matter_of_patience(self, engine, tmp_path: Path):
        certificate = tmp_path / "server.pem"
        write_self_signed_certificate(certificate)
        with answering(says(404, "BlobNotFound"), certificate) as url:
            backend = opened(engine, URI, options_for(url))
            with pytest.raises(BackendError, match="certificate is not trusted") as raised:
                backend.get("key")
            backend.close()
        assert not isinstance(raised.value, BackendUnavailableError)


class TestUri:
    @pytest.mark.parametrize("scheme", ["abfs", "abfss", "az"])
    def test_every_scheme_is_opened_by_the_plugin(self, engine, scheme):
        backend = opened(engine, f"{scheme}://container/run", options_for("http://127.0.0.1:9"))
        assert isinstance(backend, KINDS[engine])
        backend.close()

    def test_the_container_before_the_account_is_no_secret(self, engine):
        uri = "abfss://container@account.dfs.core.windows.net/run"
        backend = opened(engine, uri, {"account_key": SECRET})
        assert backend.uri == uri
        assert SECRET not in repr(backend)
        backend.close()

    @pytest.mark.parametrize(
        "uri",
        [f"abfs://account:{SECRET}@container/run", f"abfs://c@account.dfs.core.windows.net/r?sig={SECRET}"],
    )
    def test_credentials_in_it_are_refused_without_repeating_them(self, engine, uri):
        with pytest.raises(BackendError, match="must not be part of the URI") as raised:
            opened(engine, uri, options_for("http://127.0.0.1:9"))
        assert SECRET not in str(raised.value)

    def test_one_without_a_container_is_refused(self, engine):
        with pytest.raises(BackendNotFoundError, match="names no container"):
            opened(engine, "abfs://", options_for("http://127.0.0.1:9"))

    def test_an_account_that_is_not_named_at_all_is_said(self, engine, monkeypatch):
        for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(BackendError, match="storage_options are wrong"):
            opened(engine, URI, {})
