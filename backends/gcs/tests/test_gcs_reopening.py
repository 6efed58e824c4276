"""The GCS backend opens its client again in a forked child, and after refused credentials."""

from __future__ import annotations

import json
import uuid

import pytest
from gcs_scripted_server import Received, Reply, refusal, resource, scripted_server, success
from google.oauth2.credentials import Credentials

from input_checkpoint import BackendPermissionError
from input_checkpoint_gcs import GcsBackend
from tests.support.forking import WAYS, needs_fork, run_forking
from tests.support.operations import every_operation


@needs_fork
@pytest.mark.parametrize("how", WAYS)
def test_parent_and_forked_child_work(fake_gcs, how):
    place = fake_gcs.place(uuid.uuid4().hex)
    assert run_forking(how, place.uri, dict(place.storage_options)) == ""


class Google:
    """Gives out the token ``token-NAME`` at ``/NAME``, and accepts one of the tokens."""

    def __init__(self) -> None:
        self.accepted = "first"
        self.revoked: set[str] = set()

    def __call__(self, request: Received) -> Reply:
        name = request.path.strip("/")
        if name in self.revoked:
            return Reply(400, b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}')
        if name in ("first", "second"):
            return resource(access_token=f"token-{name}", expires_in=3600, token_type="Bearer")
        if request.headers.get("authorization") != f"Bearer token-{self.accepted}":
            return refusal(401, "authError", "Invalid Credentials")
        return success(request)


class TestRenewedCredentials:
    @pytest.fixture
    def google(self):
        return Google()

    @pytest.fixture
    def server(self, google):
        with scripted_server(google) as server:
            yield server

    @pytest.fixture
    def write_key(self, server, service_account, tmp_path):
        def write(name: str) -> str:
            file = tmp_path / "key.json"
            file.write_text(json.dumps({**service_account, "token_uri": f"{server.url}/{name}"}))
            return str(file)

        return write

    @every_operation
    def test_a_rewritten_key_file_is_read_again(self, server, google, write_key, operation):
        backend = GcsBackend("gs://bucket/run", server.options(token=write_key("first")))
        backend.put("other", b"data")
        write_key("second")
        google.accepted = "second"
        operation(backend)
        assert server.received[-1].headers["authorization"] == "Bearer token-second"

    def test_a_key_that_gets_no_token_any_more_is_read_again(self, server, google, write_key):
        google.revoked = {"first"}
        backend = GcsBackend("gs://bucket/run", server.options(token=write_key("first")))
        google.accepted = "second"
        write_key("second")
        assert backend.get("key") == b"data"

    def test_the_application_default_credentials_are_looked_up_again(
        self, server, google, write_key, monkeypatch
    ):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", write_key("first"))
        backend = GcsBackend("gs://bucket/run", server.options(token="google_default"))
        backend.put("key", b"data")
        write_key("second")
        google.accepted = "second"
        assert backend.get("key") == b"data"

    def test_a_credentials_object_gets_another_token(self, server, google):
        details = {"refresh_token": "r", "client_id": "i", "client_secret": "s"}
        token = Credentials("revoked", token_uri=f"{server.url}/first", **details)
        assert GcsBackend("gs://bucket/run", server.options(token=token)).get("key") == b"data"

    def test_a_plain_token_that_was_refused_is_an_error_after_one_repetition(self, server):
        with pytest.raises(BackendPermissionError, match="not accepted"):
            GcsBackend("gs://bucket/run", server.options(token="wrong")).get("key")
        assert len(server.received) == 2
