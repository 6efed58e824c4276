"""Training ends in bounded time when its storage freezes: by itself, on Ctrl-C, and on SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import boto3
import pytest

from tests.support.answering_server import unused_port

ROOT = Path(__file__).parents[2]
ENDED_BEFORE = 60
LIMITS = {"timeout": 2, "min_bytes_per_second": 8 << 20}


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """An S3 server in a process of its own, and storage_options for it."""
    port = unused_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.moto_app", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_it_listens(port)
        url, region = f"http://127.0.0.1:{port}", "us-east-1"
        client = boto3.client(
            "s3", endpoint_url=url, region_name=region, aws_access_key_id="k", aws_secret_access_key="s"
        )
        client.create_bucket(Bucket="bucket")
        options = {"key": "k", "secret": "s", "endpoint_url": url, "client_kwargs": {"region_name": region}}
        yield process, {**options, **LIMITS}
    finally:
        process.kill()
        process.wait()


def wait_until_it_listens(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the server did not start")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("engine", ["fsspec", "obstore"])
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_training_ends_when_its_storage_freezes(
    server: Any, tmp_path: Path, engine: str, number: Optional[signal.Signals]
) -> None:
    if engine == "obstore":
        pytest.importorskip("obstore")
    process, options = server
    command = [sys.executable, "-m", "tests.support.exit_child", str(tmp_path / "model"), "s3://bucket/run"]
    command.append(json.dumps({**options, "engine": engine}))
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as training:
        try:
            assert training.stdout is not None
            read_until(training.stdout, "step 12")
            process.send_signal(signal.SIGSTOP)
            if number is not None:
                time.sleep(LIMITS["timeout"] / 2)  # a save hangs, and has not failed yet
                training.send_signal(number)
            printed, _ = training.communicate(timeout=ENDED_BEFORE)
        finally:
            training.kill()
    expected = {None: (1,), signal.SIGINT: (1, -signal.SIGINT), signal.SIGTERM: (143,)}
    assert training.returncode in expected[number], printed[-3000:]
    if number is None:
        assert "BackendUnavailableError" in printed
        assert "gave up" in printed


def read_until(stream: Any, beginning: str) -> None:
    for line in stream:
        if line.startswith(beginning):
            return
    raise AssertionError(f"the training ended before it printed {beginning!r}")
