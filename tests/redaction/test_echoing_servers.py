"""A server that repeats the request, with its credentials, brings them into no message, log or traceback."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.retrying import RetryingBackend
from tests.support.misbehaving_server import misbehaving
from tests.support.operations import OPERATIONS, every_operation
from tests.support.planted_secrets import EchoServer, attempt, echoing

pytest.importorskip("input_checkpoint_s3")
pytest.importorskip("input_checkpoint_azure")
pytest.importorskip("input_checkpoint_gcs")

PLANTED = "pl4ntedSECRET"
AZURE_KEY = base64.b64encode(f"{PLANTED} of the account".encode()).decode()
SAS = f"sv=2021-08-06&ss=b&srt=sco&sp=rwdlac&se=2030-01-01&sig={PLANTED}%2Bx%2F%3D"


def s3(url: str, **more: Any) -> tuple[str, dict[str, Any]]:
    login = {"key": f"AKIA{PLANTED}", "secret": f"{PLANTED}/+s", "token": f"{PLANTED}/+t=="}
    return "s3://bucket/run", {
        **login,
        "endpoint_url": url,
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": {"retries": {"max_attempts": 0}},
        **more,
    }


def azure(url: str, login: str, **more: Any) -> tuple[str, dict[str, Any]]:
    place = f"DefaultEndpointsProtocol=http;AccountName=acc;BlobEndpoint={url}/acc"
    return "abfs://container/run", {"connection_string": f"{place};{login}", **more}


KINDS = {
    "s3": lambda url: s3(url),
    "s3 obstore": lambda url: s3(url, engine="obstore", config_kwargs={"retries": {"total_max_attempts": 1}}),
    "azure key": lambda url: azure(url, f"AccountKey={AZURE_KEY}"),
    "azure key obstore": lambda url: azure(url, f"AccountKey={AZURE_KEY}", engine="obstore"),
    "azure sas": lambda url: azure(url, f"SharedAccessSignature={SAS}"),
    "azure sas obstore": lambda url: azure(url, f"SharedAccessSignature={SAS}", engine="obstore"),
    "gcs": lambda url: ("gs://bucket/run", {"token": f"{PLANTED}.token-1", "endpoint_url": url}),
}
STYLES = [("plain", 400), ("page", 400), ("one line", 403), ("s3", 403), ("azure", 400), ("gcs", 400)]


@pytest.fixture(params=[*STYLES, ("page", 401), ("page", 200), ("gcs", 200)], ids=str)
def server(request: pytest.FixtureRequest) -> Iterator[EchoServer]:
    with echoing(*request.param) as echo:
        yield echo


def check_nothing_is_shown(shown: str, server: EchoServer) -> None:
    assert server.secrets, "the requests carried no credentials"
    for secret in (PLANTED, AZURE_KEY, AZURE_KEY[4:-4], "signedELSEWHERE", *server.secrets):
        assert len(secret) > 5
        assert secret.lower() not in shown.lower()


@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_shows_no_credentials(kind: str, server: EchoServer) -> None:
    uri, options = KINDS[kind](server.url)
    backend = ic.open_backend(uri, options)
    for operation in OPERATIONS.values():
        error, shown = attempt(lambda operation=operation: operation(backend))
        assert isinstance(error, ic.BackendError)
        check_nothing_is_shown(shown + repr(backend), server)
    backend.close()


@pytest.mark.parametrize("kind", ["s3", "s3 obstore", "azure sas obstore", "gcs"])
def test_a_redirect_to_a_presigned_url_shows_no_signature(kind: str) -> None:
    with echoing("plain", 301) as server:
        uri, options = KINDS[kind](server.url)
        error, shown = attempt(lambda: ic.open_backend(uri, options).get("key"))
        assert isinstance(error, ic.BackendError)
        check_nothing_is_shown(shown, server)


@pytest.mark.parametrize("kind", KINDS)
def test_opening_a_store_shows_no_credentials(kind: str) -> None:
    with echoing("page", 400) as server:
        uri, options = KINDS[kind](server.url)
        error, shown = attempt(lambda: ic.CheckpointStore.open(uri, options, create=True))
        assert isinstance(error, ic.BackendError)
        check_nothing_is_shown(shown, server)


@pytest.mark.parametrize("kind", ["s3", "azure sas", "gcs"])
def test_retries_log_no_credentials(kind: str) -> None:
    with echoing("plain", 503) as server:
        uri, options = KINDS[kind](server.url)
        policy = ic.RetryPolicy(timeout=0.3, initial_delay=0.1)
        backend = RetryingBackend(ic.open_backend(uri, options), policy)
        error, shown = attempt(lambda: backend.put("key", b"data"))
        assert isinstance(error, ic.BackendUnavailableError)
        assert "trying again" in shown
        check_nothing_is_shown(shown, server)


def test_the_message_still_says_what_the_server_answered() -> None:
    with echoing("page", 400) as server:
        uri, options = KINDS["azure sas obstore"](server.url)
        with pytest.raises(ic.BackendError, match=r"bad request: GET /acc/container/run/key\?\*\*\*"):
            ic.open_backend(uri, options).get("key")


class TestFtp:
    """The generic backend, on a driver that repeats what the server says."""

    URI = f"ftp://joe:{PLANTED}@127.0.0.1"

    @pytest.fixture
    def port(self) -> Iterator[int]:
        def answer(connection: socket.socket) -> None:
            connection.sendall(b"220 ready\r\n")
            for line in connection.makefile("rb"):
                said = line.decode().strip()
                reply = "331 password" if said.startswith("USER") else f"530 refused: {said}"
                connection.sendall(f"{reply}\r\n".encode())

        with misbehaving(answer) as port:
            yield port

    def test_a_refused_login_shows_no_password(self, port: int) -> None:
        error, shown = attempt(lambda: ic.CheckpointStore.open(f"{self.URI}:{port}/run"))
        assert isinstance(error, ic.BackendError)
        assert "530 refused: PASS ***" in str(error)
        assert PLANTED not in shown

    def test_neither_does_one_with_a_password_in_the_options(self, port: int) -> None:
        options = {"username": "joe", "password": f"it is '{PLANTED}'", "port": port}
        error, shown = attempt(lambda: ic.CheckpointStore.open("ftp://127.0.0.1/run", options))
        assert isinstance(error, ic.BackendError)
        assert PLANTED not in shown


class Leaky(ic.Backend):
    """A backend of somebody else, whose errors repeat the request in the chain of causes."""

    def __init__(self, uri: str, storage_options: dict[str, Any]) -> None:
        super().__init__(uri, storage_options)
        self._password = storage_options["password"]

    def _fail(self, *_: object) -> Any:
        try:
            try:
                raise KeyError(f"the password {self._password}")
            except KeyError as first:
                raise ValueError(f"GET /run?sig={self._password}") from first
        except ValueError as error:
            raise ic.BackendError(f"refused: {error}", uri=self.uri) from error

    create = put = get = list = delete = _fail


class TestABackendOfSomebodyElse:
    @every_operation
    def test_its_errors_show_no_credentials(self, operation: Any) -> None:
        backend = RetryingBackend(Leaky("leaky://joe@host/run", {"password": PLANTED}))
        error, shown = attempt(lambda: operation(backend))
        assert isinstance(error, ic.BackendError)
        assert "ValueError: GET /run?sig=***" in shown
        assert "KeyError: 'the password ***'" in shown
        assert PLANTED not in shown
