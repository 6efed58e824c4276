"""Failures of Azure are reported soon, as errors of this library, and without secrets."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import pytest
from adlfs import AzureBlobFileSystem

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
from input_checkpoint_azure.uri import parse_azure_uri
from tests.support.answering_server import (
    Answer,
    answering,
    mute_server,
    unused_port,
    write_self_signed_certificate,
)
from tests.support.engines import NEEDS_OBSTORE
from tests.support.operations import OPERATIONS, every_operation, outcome

SECRET = base64.b64encode(b"hunter2" * 8).decode()
URI = "abfs://container/run"
CLASSES = {"fsspec": AzureBackend, "obstore": ObstoreBackend}


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)])
def engine(request) -> str:
    return request.param


def opened(engine: str, uri: str, options: Mapping[str, Any]) -> Backend:
    return open_backend(uri, {**options, "engine": engine})


def options_for(url: str) -> dict[str, Any]:
    """Return options that log in to a server on loopback with a key."""
    scheme = url.partition(":")[0]
    text = f"DefaultEndpointsProtocol={scheme};AccountName=account;AccountKey={SECRET};"
    return {"connection_string": f"{text}BlobEndpoint={url}/account;"}


def azure_error(status: int, code: str, detail: str = "") -> Answer:
    """Return an error answer in the format of Azure."""
    body = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>the message\n'
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
    def test_every_operation_is_unavailable_within_half_a_minute(self, engine, operation):
        backend = opened(engine, URI, options_for(f"http://127.0.0.1:{unused_port()}"))
        error = outcome(lambda: operation(backend), within=30)
        assert isinstance(error, BackendUnavailableError)
        assert URI in str(error)
        assert "trying again may help" in str(error)
        assert SECRET not in str(error)
        backend.close()

    @pytest.mark.parametrize("operation", ["put", "list"])
    def test_a_server_that_never_answers_is_unavailable_in_bounded_time(self, engine, operation):
        with mute_server() as port:
            options = {**options_for(f"http://127.0.0.1:{port}"), "read_timeout": 0.5}
            backend = opened(engine, URI, options)
            error = outcome(lambda: OPERATIONS[operation](backend), within=20)
            assert isinstance(error, BackendUnavailableError)
            backend.close()

    def test_a_connection_that_breaks_during_an_upload_is_unavailable(self, engine):
        with (
            backend_at(engine, None) as backend,
            pytest.raises(BackendUnavailableError, match=f"cannot write {URI}/key"),
        ):
            backend.put("key", bytes(1 << 20))


class TestErrorAnswer:
    @every_operation
    def test_a_missing_container_is_a_not_found_error(self, engine, operation):
        with backend_at(engine, azure_error(404, "ContainerNotFound")) as backend:
            error = outcome(lambda: operation(backend), within=20)
        assert isinstance(error, BackendNotFoundError)
        assert not isinstance(error, ObjectNotFoundError)
        assert "the container does not exist" in str(error)

    @pytest.mark.parametrize("operation", ["get", "get of nothing"])
    def test_a_missing_blob_is_distinguished_from_a_missing_container(self, engine, operation):
        with (
            backend_at(engine, azure_error(404, "BlobNotFound")) as backend,
            pytest.raises(ObjectNotFoundError, match=f"{URI}/key") as raised,
        ):
            OPERATIONS[operation](backend)
        assert (raised.value.uri, raised.value.key) == (URI, "key")

    def test_deleting_missing_blobs_is_no_error(self, engine):
        with backend_at(engine, azure_error(404, "BlobNotFound")) as backend:
            backend.delete(["key", "other"])

    @pytest.mark.parametrize(("status", "code"), [(409, "BlobAlreadyExists"), (412, "ConditionNotMet")])
    def test_a_key_that_exists_is_named(self, engine, status, code):
        with (
            backend_at(engine, azure_error(status, code)) as backend,
            pytest.raises(ObjectExistsError, match=f"{URI}/key"),
        ):
            backend.create("key", b"data")

    @every_operation
    def test_a_wrong_or_expired_account_key_is_not_shown(self, engine, operation):
        with backend_at(engine, azure_error(403, "AuthenticationFailed")) as backend:
            error = outcome(lambda: operation(backend), within=20)
        assert isinstance(error, BackendPermissionError)
        assert "not accepted (AuthenticationFailed)" in str(error)
        assert "storage_options" in str(error)
        assert SECRET not in str(error)

    def test_a_wrong_clock_is_not_reported_as_wrong_credentials(self, engine):
        detail = "<AuthenticationErrorDetail>Request date header too old</AuthenticationErrorDetail>"
        with (
            backend_at(engine, azure_error(403, "AuthenticationFailed", detail)) as backend,
            pytest.raises(BackendPermissionError, match="Set the clock"),
        ):
            backend.put("key", b"data")

    @every_operation
    def test_missing_permissions_are_listed(self, engine, operation):
        with (
            backend_at(engine, azure_error(403, "AuthorizationPermissionMismatch")) as backend,
            pytest.raises(BackendPermissionError, match="Storage Blob Data Contributor"),
        ):
            operation(backend)

    @pytest.mark.parametrize(
        ("status", "code"), [(503, "ServerBusy"), (429, "TooManyRequests"), (500, "OperationTimedOut")]
    )
    def test_throttling_and_failures_of_the_server_are_unavailable(self, engine, status, code):
        with (
            backend_at(engine, azure_error(status, code)) as backend,
            pytest.raises(BackendUnavailableError, match=f"{URI}/key.*{code}.*may help"),
        ):
            backend.put("key", b"data")

    @pytest.mark.parametrize("operation", ["get", "create", "list", "delete"])
    def test_throttling_makes_every_operation_unavailable(self, engine, operation):
        with (
            backend_at(engine, azure_error(503, "ServerBusy")) as backend,
            pytest.raises(BackendUnavailableError),
        ):
            OPERATIONS[operation](backend)

    def test_a_permanent_error_is_not_unavailable(self, engine):
        with (
            backend_at(engine, azure_error(400, "InvalidHeaderValue")) as backend,
            pytest.raises(BackendError) as raised,
        ):
            backend.put("key", b"data")
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_the_message_does_not_repeat_the_request(self, engine):
        with (
            backend_at(engine, azure_error(400, "InvalidHeaderValue")) as backend,
            pytest.raises(BackendError) as raised,
        ):
            backend.put("key", b"data")
        assert "RequestId" not in str(raised.value)


class TestCertificate:
    def test_one_that_is_not_trusted_is_not_reported_as_unavailable(self, engine, tmp_path: Path):
        certificate = tmp_path / "server.pem"
        write_self_signed_certificate(certificate)
        with answering(azure_error(404, "BlobNotFound"), certificate) as url:
            backend = opened(engine, URI, options_for(url))
            with pytest.raises(BackendError, match="certificate is not trusted") as raised:
                backend.get("key")
            backend.close()
        assert not isinstance(raised.value, BackendUnavailableError)


class TestUri:
    @pytest.mark.parametrize("scheme", ["abfs", "abfss", "az"])
    def test_every_scheme_is_opened_by_the_plugin(self, engine, scheme):
        backend = opened(engine, f"{scheme}://container/run", options_for("http://127.0.0.1:9"))
        assert isinstance(backend, CLASSES[engine])
        backend.close()

    def test_the_container_in_front_of_the_account_is_shown(self, engine):
        uri = "abfss://container@account.dfs.core.windows.net/run"
        backend = opened(engine, uri, {"account_key": SECRET})
        assert backend.uri == uri
        assert SECRET not in repr(backend)
        backend.close()

    @pytest.mark.parametrize(
        "uri",
        [
            f"abfs://account:{SECRET}@container/run",
            f"abfs://c@account.dfs.core.windows.net/r?sig={SECRET}",
            f"abfs://container/run?sig={SECRET}",
        ],
    )
    def test_credentials_in_it_are_refused_without_repeating_them(self, engine, uri):
        with pytest.raises(BackendError, match="must not be part of the URI") as raised:
            opened(engine, uri, options_for("http://127.0.0.1:9"))
        assert SECRET not in str(raised.value)

    @pytest.mark.parametrize(
        "uri",
        ["abfs://", "abfs://@account.dfs.core.windows.net/run", "abfs://account.dfs.core.windows.net"],
    )
    def test_one_without_a_container_is_refused(self, engine, uri):
        with pytest.raises(BackendNotFoundError, match="names no container"):
            opened(engine, uri, options_for("http://127.0.0.1:9"))

    @pytest.mark.parametrize(
        ("uri", "parts"),
        [
            ("abfs://container/run", ("container", "run/", None)),
            ("az://container", ("container", "", None)),
            ("abfs://container@account.dfs.core.windows.net/run", ("container", "run/", "account")),
            ("abfss://container@account.blob.core.windows.net/run", ("container", "run/", "account")),
            ("abfs://account.dfs.core.windows.net/container/run", ("container", "run/", "account")),
        ],
    )
    def test_it_means_what_it_means_to_adlfs(self, uri, parts):
        parsed = parse_azure_uri(uri)
        assert (parsed.container, parsed.prefix, parsed.account) == parts
        filesystem = AzureBlobFileSystem("account", anon=True, skip_instance_cache=True)
        assert filesystem.split_path(uri)[:2] == (parsed.container, parsed.prefix.rstrip("/"))

    def test_a_missing_account_is_an_error(self, engine, monkeypatch):
        for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(BackendError, match="storage_options are wrong"):
            opened(engine, URI, {})
