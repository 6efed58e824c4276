"""A writer that is killed in an upload leaves nothing under a final name."""

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


def test_a_writer_that_is_killed_in_an_upload_leaves_no_object_and_its_rest_goes_a_day_later(
    server, place, backend
):
    backend.put("before", b"data")
    half_way, goes_on = threading.Event(), threading.Event()
    writes = iter(range(100))
    half_written = []

    def script(request: str, path: str) -> Optional[int]:
        if request != "write":
            return None
        if next(writes, None) is None and not half_way.is_set():
            half_written.append(path)
            half_way.set()
            goes_on.wait(30)
        # What is still on its way from the dead one must not make its file younger later on.
        return FAILURE if path in half_written else None

    server.script = script
    command = [sys.executable, str(CHILD), server.uri(place), "large", "8", json.dumps(server.options())]
    child = subprocess.Popen(command)
    try:
        assert half_way.wait(60)
    finally:
        child.kill()
        child.wait()
        goes_on.set()

    assert [info.key for info in backend.list()] == ["before"]
    with pytest.raises(ObjectNotFoundError):
        backend.get("large")
    folder = server.data / place
    (rest,) = set(os.listdir(folder)) - {"before"}
    assert (folder / rest).stat().st_size > 0

    backend.create("large", b"another writer's")
    long_ago = time.time() - DAY - 60
    os.utime(folder / rest, (long_ago, long_ago))
    assert [info.key for info in backend.list()] == ["before", "large"]
    assert sorted(os.listdir(folder)) == ["before", "large"]
