"""A backend that cannot be used is reported when the hook is constructed, with what to do about it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from tests.support.s3_server import S3Server
from tests.support.training import make_estimator
from tests.support.wrappers import Failing, Recording

NOBODY = 65534


def refused(model_dir: Path, backend: str, options: Any = None) -> ic.BackendError:
    """Return the error that constructing the hook raises within half a minute."""
    started = time.monotonic()
    with pytest.raises(ic.BackendError) as raised:
        ic.CheckpointInputPipelineHook(make_estimator(model_dir), backend=backend, storage_options=options)
    assert time.monotonic() - started < 30
    return raised.value


def test_an_unreachable_server_is_reported_with_the_uri(tmp_path: Path, s3_server: S3Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        error = refused(tmp_path, "s3://bucket/run", {**s3_server.options, "endpoint_url": url})
    assert isinstance(error, ic.BackendUnavailableError)
    assert "s3://bucket/run" in str(error)


def test_wrong_credentials_are_reported_without_showing_them(
    tmp_path: Path, s3_server: S3Server, checks_credentials: None
) -> None:
    error = refused(tmp_path, "s3://bucket/run", {**s3_server.options, "secret": "hunter2"})
    assert isinstance(error, ic.BackendPermissionError)
    assert "hunter2" not in str(error)


def test_a_missing_bucket_is_reported_with_what_to_do(tmp_path: Path, s3_server: S3Server) -> None:
    error = refused(tmp_path, "s3://no-such-bucket/run", s3_server.options)
    assert isinstance(error, ic.BackendNotFoundError)
    assert "Create it, or correct the URI" in str(error)


def test_a_scheme_without_its_plugin_is_reported_with_what_to_install(
    tmp_path: Path, no_plugins: None
) -> None:
    error = refused(tmp_path, "abfs://container/run")
    assert isinstance(error, ic.UnknownBackendError)
    assert "pip install 'input-checkpoint[azure]'" in str(error)


def test_an_unknown_scheme_is_reported(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path, "gopher://host/run"), ic.UnknownBackendError)


def test_a_path_to_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    error = refused(tmp_path / "model", str(tmp_path / "file"))
    assert isinstance(error, ic.BackendNotFoundError)
    assert "is a file" in str(error)


def test_a_read_only_folder_is_reported_with_what_to_do(tmp_path: Path) -> None:
    """Runs in a process without privileges, because root may write everywhere."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    program = (
        "import os, sys, input_checkpoint as ic\n"
        "if os.getuid() == 0: os.setuid(int(sys.argv[2]))\n"
        "try: ic.CheckpointStore.open(sys.argv[1], create=True)\n"
        "except ic.BackendPermissionError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(NOBODY)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert str(folder) in said
    assert "Give this user" in said


class TestProbe:
    @pytest.mark.parametrize("verb", ["create", "put", "get", "list", "delete"])
    def test_an_operation_that_the_storage_forbids_is_reported_when_the_hook_is_constructed(
        self, tmp_path: Path, memory: MemoryBackend, verb: str
    ) -> None:
        forbidding = Failing(memory, verb, "probe/", ic.BackendPermissionError(f"may not {verb}"))
        with pytest.raises(ic.BackendPermissionError, match=f"may not {verb}"):
            ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"), backend=forbidding)

    def test_it_can_be_turned_off(self, tmp_path: Path, memory: MemoryBackend) -> None:
        recording = Recording(memory)
        ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"), backend=recording, probe=False)
        assert [key for _, key in recording.calls if key.startswith("probe/")] == []
