"""A writer that is killed during an upload leaves no object behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Optional

import pytest
from sftp_in_process import FAILURE

from input_checkpoint import ObjectNotFoundError

CHILD = Path(__file__).with_name("sftp_writing_child.py")
DAY = 24 * 3600


def test_a_writer_killed_during_an_upload_leaves_only_a_temporary_file_which_is_removed_later(
    server, folder_name, backend
):
    backend.put("before", b"data")
    is_halfway, proceed = threading.Event(), threading.Event()
    writes = iter(range(100))
    half_written = []

    def script(request: str, path: str) -> Optional[int]:
        if request != "write":
            return None
        if next(writes, None) is None and not is_halfway.is_set():
            half_written.append(path)
            is_halfway.set()
            proceed.wait(30)
        # Requests of the dead writer that are still in flight must not make its file newer.
        return FAILURE if path in half_written else None

    server.script = script
    command = [
        sys.executable,
        str(CHILD),
        server.uri(folder_name),
        "large",
        "8",
        json.dumps(server.options()),
    ]
    child = subprocess.Popen(command)
    try:
        assert is_halfway.wait(60)
    finally:
        child.kill()
        child.wait()
        proceed.set()

    assert [info.key for info in backend.list()] == ["before"]
    with pytest.raises(ObjectNotFoundError):
        backend.get("large")
    folder = server.data / folder_name
    (temporary,) = set(os.listdir(folder)) - {"before"}
    assert (folder / temporary).stat().st_size > 0

    backend.create("large", b"another writer's")
    long_ago = time.time() - DAY - 60
    os.utime(folder / temporary, (long_ago, long_ago))
    backend.remove_leftovers([""])
    assert [info.key for info in backend.list()] == ["before", "large"]
    assert sorted(os.listdir(folder)) == ["before", "large"]
