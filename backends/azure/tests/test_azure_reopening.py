"""The Azure backend opens its client again in a forked child, and after refused credentials."""

from __future__ import annotations

import json

import fsspec.config
import pytest
from azure_blob_server import blob_server

from input_checkpoint import BackendPermissionError, open_backend
from input_checkpoint.backends import configuration
from tests.support.engines import NEEDS_OBSTORE
from tests.support.forking import WAYS, needs_fork, run_forking
from tests.support.operations import OPERATIONS, every_operation

URI = "abfs://container/run"


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)])
def engine(request) -> str:
    return request.param


@pytest.fixture
def server():
    with blob_server() as server:
        yield server


@needs_fork
@pytest.mark.parametrize("how", WAYS)
def test_parent_and_forked_child_work(server, engine, how):
    assert run_forking(how, URI, {**server.options(), "engine": engine}) == ""


class TestRenewedCredentials:
    @every_operation
    def test_the_environment_is_read_again(self, server, engine, operation, monkeypatch):
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string("first"))
        backend = open_backend(URI, {"engine": engine})
        backend.put("key", b"data")
        if operation is OPERATIONS["create"]:
            backend.delete(["key"])
        server.signature = "second"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string("second"))
        operation(backend)
        backend.close()

    def test_a_rewritten_configuration_file_of_fsspec_is_read_again(
        self, server, engine, monkeypatch, tmp_path
    ):
        def write(signature: str) -> None:
            options = {"connection_string": server.connection_string(signature)}
            (tmp_path / "azure.json").write_text(json.dumps({"abfs": options}))

        monkeypatch.setattr(fsspec.config, "conf_dir", str(tmp_path))
        monkeypatch.setattr(configuration, "_known", {})
        monkeypatch.setattr(fsspec.config, "conf", {})
        write("first")
        configuration.update_configuration()
        backend = open_backend(URI, {"engine": engine})
        backend.put("key", b"data")
        server.signature = "second"
        write("second")
        assert backend.get("key") == b"data"
        backend.close()

    def test_credentials_that_stay_refused_are_an_error(self, server, engine):
        backend = open_backend(URI, {**server.options(), "engine": engine})
        backend.put("key", b"data")
        server.signature = "second"
        with pytest.raises(BackendPermissionError, match=r"not accepted \(AuthenticationFailed\)"):
            backend.get("key")
        backend.close()
