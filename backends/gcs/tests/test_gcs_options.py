"""Options mean what they mean in gcsfs."""

from __future__ import annotations

import json
import os

import fsspec.config
import pytest
from gcs_scripted_server import content, resource, scripted_server
from google.oauth2.credentials import Credentials

from input_checkpoint import BackendError
from input_checkpoint_gcs import GcsBackend


@pytest.fixture
def server():
    with scripted_server(lambda request: content(b"data")) as server:
        yield server


class TestToken:
    def test_anon_sends_no_credentials(self, server):
        GcsBackend("gs://bucket/run", server.options(token="anon")).get("key")
        assert "authorization" not in server.received[0].headers

    def test_a_plain_access_token_is_sent(self, server):
        GcsBackend("gs://bucket/run", server.options(token="ya29.token")).get("key")
        assert server.received[0].headers["authorization"] == "Bearer ya29.token"

    def test_a_credentials_object_is_used(self, server):
        GcsBackend("gs://bucket/run", server.options(token=Credentials("from-object"))).get("key")
        assert server.received[0].headers["authorization"] == "Bearer from-object"

    def test_fsspecs_configuration_may_name_it(self, server, monkeypatch):
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": Credentials("from-configuration")})
        GcsBackend("gs://bucket/run", {"endpoint_url": server.url}).get("key")
        assert server.received[0].headers["authorization"] == "Bearer from-configuration"

    @pytest.mark.parametrize("form", ["dictionary", "file"])
    def test_a_key_is_a_dictionary_or_a_file(self, form, service_account, tmp_path):
        def answer(request):
            if request.path == "/token":
                return resource(access_token="fresh", expires_in=3600, token_type="Bearer")
            return content(b"data")

        with scripted_server(answer) as server:
            token = {**service_account, "token_uri": f"{server.url}/token"}
            file = tmp_path / "key.json"
            file.write_text(json.dumps(token))
            options = server.options(token=token if form == "dictionary" else str(file))
            GcsBackend("gs://bucket/run", options).get("key")
        assert server.received[-1].headers["authorization"] == "Bearer fresh"

    def test_a_password_in_netrc_is_not_sent(self, server, monkeypatch, tmp_path):
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login joe password hunter2\n")
        monkeypatch.setenv("NETRC", str(netrc))
        GcsBackend("gs://bucket/run", server.options()).get("key")
        GcsBackend("gs://bucket/run", server.options(token="ya29.token")).get("key")
        assert [request.headers.get("authorization") for request in server.received] == [
            None,
            "Bearer ya29.token",
        ]


class TestRequesterPays:
    def test_the_project_that_pays_is_sent_with_every_request(self, server):
        GcsBackend("gs://bucket/run", server.options(requester_pays="payer")).get("key")
        assert server.received[0].query["userProject"] == "payer"

    def test_true_stands_for_the_project_in_the_options(self, server):
        GcsBackend("gs://bucket/run", server.options(requester_pays=True, project="mine")).get("key")
        assert server.received[0].query["userProject"] == "mine"

    def test_without_it_the_project_is_not_sent(self, server):
        GcsBackend("gs://bucket/run", server.options(project="mine")).get("key")
        assert "userProject" not in server.received[0].query

    def test_true_without_a_project_is_refused(self, server):
        with pytest.raises(BackendError, match="requester_pays=True needs a project"):
            GcsBackend("gs://bucket/run", server.options(requester_pays=True))


class TestEndpoint:
    def test_a_slash_at_its_end_is_ignored(self, server):
        GcsBackend("gs://bucket/run", server.options(endpoint_url=f"{server.url}/")).get("key")
        assert server.received[0].path == "/download/storage/v1/b/bucket/o/run/key"

    def test_the_variable_for_emulators_names_it(self, server, monkeypatch):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        GcsBackend("gs://bucket/run", {"token": "anon"}).get("key")
        assert len(server.received) == 1


class TestProxy:
    elsewhere = {"token": "anon", "endpoint_url": "http://storage.example"}  # noqa: RUF012

    def test_requests_go_through_the_proxy_in_the_options(self, server):
        options = {**self.elsewhere, "session_kwargs": {"proxy": server.url}}
        assert GcsBackend("gs://bucket/run", options).get("key") == b"data"
        assert server.received[0].headers["host"] == "storage.example"

    def test_requests_go_through_the_proxy_in_the_environment_if_it_is_trusted(self, server, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", server.url)
        options = {**self.elsewhere, "session_kwargs": {"trust_env": True}}
        assert GcsBackend("gs://bucket/run", options).get("key") == b"data"
        assert server.received[0].headers["host"] == "storage.example"

    def test_the_environment_is_ignored_unless_it_is_trusted(self, server, monkeypatch):
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert GcsBackend("gs://bucket/run", server.options()).get("key") == b"data"

    def test_other_options_for_the_session_are_refused(self, server):
        with pytest.raises(BackendError, match=r"session_kwargs.*connector.*Remove"):
            GcsBackend("gs://bucket/run", server.options(session_kwargs={"connector": None}))


class TestOptionsForFiles:
    def test_they_are_ignored(self, server):
        options = server.options(
            consistency="md5", block_size=1 << 20, cache_timeout=60, use_listings_cache=True
        )
        assert GcsBackend("gs://bucket/run", options).get("key") == b"data"


class TestProcesses:
    def test_opening_a_backend_sends_nothing(self, server):
        GcsBackend("gs://bucket/run", server.options())
        assert server.received == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_uses_a_connection_of_its_own(self, server):
        backend = GcsBackend("gs://bucket/run", server.options())
        backend.get("parent")
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if backend.get("child") == b"data" else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert backend.get("parent") == b"data"
        ours, theirs, ours_again = (request.connection for request in server.received)
        assert ours == ours_again != theirs
