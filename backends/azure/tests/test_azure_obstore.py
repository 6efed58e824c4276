"""The obstore engine treats every option of adlfs as adlfs does, or refuses it."""

from __future__ import annotations

import base64
import sys
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
from tests.support.serving import serving

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11")

URI = "abfs://container/run"
KEY = base64.b64encode(b"hunter2" * 8).decode()
SAS = "sv=2024-11-04&sig=a%2Fb%3D"


def opened(options: dict[str, Any]) -> Backend:
    return open_backend(URI, {**options, "engine": "obstore"})


@dataclass
class Recorder:
    """A server that accepts every request and records it."""

    port: int
    requests: list[BaseHTTPRequestHandler] = field(default_factory=list)

    def login(self, secret: str) -> dict[str, Any]:
        """Return options for this server."""
        endpoint = f"BlobEndpoint=http://127.0.0.1:{self.port}/account;"
        return {"connection_string": f"DefaultEndpointsProtocol=http;AccountName=account;{secret};{endpoint}"}

    def header(self, name: str) -> str:
        """Return a header of the last request, or an empty string."""
        return self.requests[-1].headers.get(name) or ""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    requests: list[BaseHTTPRequestHandler] = []

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append(self)
            self.send_response(201 if self.command == "PUT" else 202)
            self.send_header("ETag", '"0x8DC2B51"')
            self.send_header("Last-Modified", "Tue, 24 Nov 2026 12:00:00 GMT")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_POST = do_DELETE = _reply  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield Recorder(server.server_port, requests)


class Tokens:
    """A credential with the interface of the asynchronous ones of azure-identity."""

    def __init__(self, *, refused: bool = False) -> None:
        self.requested_scopes: list[str] = []
        self._refused = refused

    async def get_token(self, scope: str, **_: Any) -> AccessToken:
        """Return a token, or refuse."""
        self.requested_scopes.append(scope)
        if self._refused:
            raise ClientAuthenticationError("the secret has expired")
        return AccessToken("the-token", int(time.time()) + 3600)

    async def close(self) -> None:
        """adlfs calls this."""


@pytest.fixture
def over_http(recorder, monkeypatch) -> None:
    """Send requests for any account to the recorder, without TLS."""
    split = obstore_engine.urlsplit
    monkeypatch.setattr(
        obstore_engine,
        "urlsplit",
        lambda url: split(url)._replace(scheme="http", netloc=f"127.0.0.1:{recorder.port}"),
    )


class TestEngine:
    def test_an_unknown_one_is_refused_with_the_choices(self):
        with pytest.raises(BackendError, match=r"no engine 'rust' for it\. Choose 'fsspec' or 'obstore'"):
            open_backend(URI, {"engine": "rust"})

    def test_a_missing_installation_is_an_error_that_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(BackendError, match=r"pip install 'input-checkpoint-azure\[obstore\]'"):
            opened({"account_name": "account", "account_key": KEY})


class TestUnsupportedOptions:
    @pytest.mark.parametrize("name", ["blocksize", "location_mode", "max_concurrency", "version_aware"])
    def test_they_are_refused_by_name(self, name):
        with pytest.raises(BackendError, match=f"no equivalent for {name} in") as raised:
            opened({"account_name": "account", "account_key": KEY, name: "any"})
        assert KEY not in str(raised.value)

    def test_cache_options_are_ignored(self, recorder):
        caches = {"use_listings_cache": False, "skip_instance_cache": True}
        opened({**recorder.login(f"AccountKey={KEY}"), **caches}).put("key", b"data")
        assert recorder.requests[-1].path == "/account/container/run/key"


class TestLogin:
    def test_only_a_create_sends_the_condition(self, recorder):
        backend = opened(recorder.login(f"AccountKey={KEY}"))
        backend.create("key", b"data")
        assert recorder.header("If-None-Match") == "*"
        backend.put("key", b"data")
        assert recorder.header("If-None-Match") == ""

    def test_an_account_key_signs_requests(self, recorder):
        opened(recorder.login(f"AccountKey={KEY}")).put("key", b"data")
        assert recorder.header("Authorization").startswith("SharedKey account:")

    def test_a_shared_access_signature_is_sent(self, recorder):
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
    def test_a_credential_object_of_azure_core_is_used(self, recorder, over_http, credential, mark):
        opened({"account_name": "account", "credential": credential}).put("key", b"data")
        assert mark in recorder.header("Authorization") + recorder.requests[-1].path

    def test_a_token_is_requested_once_for_many_uploads(self, recorder, over_http):
        tokens = Tokens()
        backend = opened({"account_name": "account", "credential": tokens})
        for number in range(3):
            backend.put(f"key-{number}", b"data")
        assert recorder.header("Authorization") == "Bearer the-token"
        assert tokens.requested_scopes == ["https://storage.azure.com/.default"]

    def test_a_refused_token_is_a_permission_error(self, over_http):
        backend = opened({"account_name": "account", "credential": Tokens(refused=True)})
        with pytest.raises(BackendPermissionError, match=r"not accepted .*the secret has expired"):
            backend.put("key", b"data")

    def test_explicit_credentials_are_not_mixed_with_the_environment(self, recorder, monkeypatch):
        for name in ("AZURE_STORAGE_TOKEN", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_ENDPOINT"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("AZURE_SKIP_SIGNATURE", "AZURE_STORAGE_USE_EMULATOR"):
            monkeypatch.setenv(name, "true")
        opened(recorder.login(f"AccountKey={KEY}")).put("key", b"data")
        assert recorder.header("Authorization").startswith("SharedKey account:")


class TestSecrets:
    def test_an_error_does_not_show_the_request(self):
        closed = "DefaultEndpointsProtocol=http;BlobEndpoint=http://127.0.0.1:9/account;AccountName=account;"
        backend = opened({"connection_string": f"{closed}SharedAccessSignature={SAS}"})
        with pytest.raises(BackendError) as raised:
            backend.get("key")
        assert "a%2Fb" not in "".join(traceback.format_exception(raised.value))
