"""What adlfs would do by its options, the other engine does too, or says that it cannot."""

from __future__ import annotations

import base64
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from azure.core.credentials import AccessToken, AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import ClientAuthenticationError

from input_checkpoint import Backend, BackendError, BackendPermissionError, open_backend
from input_checkpoint_azure import obstore_engine

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11")

URI = "abfs://container/run"
KEY = base64.b64encode(b"hunter2" * 8).decode()
SAS = "sv=2024-11-04&sig=a%2Fb%3D"


def opened(options: dict[str, Any]) -> Backend:
    return open_backend(URI, {**options, "engine": "obstore"})


@dataclass
class Recorder:
    """A server that takes everything, and keeps what it was asked."""

    port: int
    requests: list[BaseHTTPRequestHandler] = field(default_factory=list)

    def login(self, secret: str) -> dict[str, Any]:
        """Return options that lead there."""
        endpoint = f"BlobEndpoint=http://127.0.0.1:{self.port}/account;"
        return {"connection_string": f"DefaultEndpointsProtocol=http;AccountName=account;{secret};{endpoint}"}

    def header(self, name: str) -> str:
        """Return a header of the last request; nothing if it had none."""
        return self.requests[-1].headers.get(name) or ""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    asked: list[BaseHTTPRequestHandler] = []

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self)
            self.send_response(201 if self.command == "PUT" else 202)
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Tue, 24 Nov 2026 12:00:00 GMT")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_POST = do_DELETE = _reply  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield Recorder(server.server_port, asked)
    server.shutdown()
    serving.join()
    server.server_close()


class Tokens:
    """A credential as azure-identity's asynchronous ones are."""

    def __init__(self, *, refused: bool = False) -> None:
        self.asked: list[str] = []
        self._refused = refused

    async def get_token(self, scope: str, **_: Any) -> AccessToken:
        """Give one, or refuse."""
        self.asked.append(scope)
        if self._refused:
            raise ClientAuthenticationError("the secret has expired")
        return AccessToken("the-token", int(time.time()) + 3600)

    async def close(self) -> None:
        """As adlfs does in the end."""


@pytest.fixture
def over_http(recorder, monkeypatch) -> None:
    """Let an account's host be the recorder, without TLS."""
    split = obstore_engine.urlsplit
    monkeypatch.setattr(
        obstore_engine,
        "urlsplit",
        lambda url: split(url)._replace(scheme="http", netloc=f"127.0.0.1:{recorder.port}"),
    )


class TestEngine:
    def test_one_that_there_is_not_is_refused_with_the_choices(self):
        with pytest.raises(BackendError, match=r"no engine 'rust' for it\. Choose 'fsspec' or 'obstore'"):
            open_backend(URI, {"engine": "rust"})

    def test_one_that_is_not_installed_is_said_with_the_remedy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(BackendError, match=r"pip install 'input-checkpoint-azure\[obstore\]'"):
            opened({"account_name": "account", "account_key": KEY})


class TestOptionsWithoutEquivalent:
    @pytest.mark.parametrize("name", ["blocksize", "location_mode", "max_concurrency", "version_aware"])
    def test_they_are_refused_by_name(self, name):
        with pytest.raises(BackendError, match=f"no equivalent for {name} in") as raised:
            opened({"account_name": "account", "account_key": KEY, name: "any"})
        assert KEY not in str(raised.value)

    def test_what_is_about_caches_only_is_let_through(self, recorder):
        caches = {"use_listings_cache": False, "skip_instance_cache": True}
        opened({**recorder.login(f"AccountKey={KEY}"), **caches}).put("key", b"data")
        assert recorder.requests[-1].path == "/account/container/run/key"


class TestLogin:
    def test_a_create_carries_the_condition_and_a_put_does_not(self, recorder):
        backend = opened(recorder.login(f"AccountKey={KEY}"))
        backend.create("key", b"data")
        assert recorder.header("If-None-Match") == "*"
        backend.put("key", b"data")
        assert recorder.header("If-None-Match") == ""

    def test_by_a_key(self, recorder):
        opened(recorder.login(f"AccountKey={KEY}")).put("key", b"data")
        assert recorder.header("Authorization").startswith("SharedKey account:")

    def test_by_a_shared_access_signature(self, recorder):
        opened(recorder.login(f"SharedAccessSignature={SAS}")).put("key", b"data")
        assert "sig=a%2Fb%3D" in recorder.requests[-1].path
        assert recorder.header("Authorization") == ""

    @pytest.mark.parametrize(
        ("credential", "mark"),
        [
            (AzureNamedKeyCredential("account", KEY), "SharedKey account:"),
            (AzureSasCredential(SAS), "sig="),
            (KEY, "SharedKey account:"),
        ],
    )
    def test_by_an_object_of_azure_core(self, recorder, over_http, credential, mark):
        opened({"account_name": "account", "credential": credential}).put("key", b"data")
        assert mark in recorder.header("Authorization") + recorder.requests[-1].path

    def test_by_a_token_that_is_asked_for_once(self, recorder, over_http):
        tokens = Tokens()
        backend = opened({"account_name": "account", "credential": tokens})
        for number in range(3):
            backend.put(f"key-{number}", b"data")
        assert recorder.header("Authorization") == "Bearer the-token"
        assert tokens.asked == ["https://storage.azure.com/.default"]

    def test_a_token_that_is_refused_is_no_matter_of_patience(self, over_http):
        backend = opened({"account_name": "account", "credential": Tokens(refused=True)})
        with pytest.raises(BackendPermissionError, match=r"not accepted .*the secret has expired"):
            backend.put("key", b"data")

    def test_those_given_are_not_mixed_with_the_environment(self, recorder, monkeypatch):
        for name in ("AZURE_STORAGE_TOKEN", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_ENDPOINT"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("AZURE_SKIP_SIGNATURE", "AZURE_STORAGE_USE_EMULATOR"):
            monkeypatch.setenv(name, "true")
        opened(recorder.login(f"AccountKey={KEY}")).put("key", b"data")
        assert recorder.header("Authorization").startswith("SharedKey account:")


class TestSecrets:
    def test_nothing_of_the_request_is_shown_with_an_error(self):
        closed = "DefaultEndpointsProtocol=http;BlobEndpoint=http://127.0.0.1:9/account;AccountName=account;"
        backend = opened({"connection_string": f"{closed}SharedAccessSignature={SAS}"})
        with pytest.raises(BackendError) as raised:
            backend.get("key")
        assert "a%2Fb" not in "".join(traceback.format_exception(raised.value))
