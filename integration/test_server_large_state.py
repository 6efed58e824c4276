"""Every server stores and returns a state of 1 GB, with bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.servers.server import Place

ROOT = Path(__file__).parents[1]
MEGABYTES = 1000


def run(mode: str, place: Place) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.large_state", mode, place.uri, str(MEGABYTES)]
    command.append(json.dumps(place.storage_options))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    output = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout
    answer: dict[str, Any] = json.loads(output)
    return answer


@pytest.mark.timeout(600)
def test_a_state_of_1_gb_is_saved_in_bounded_memory_and_restored(place: Place) -> None:
    saved = run("save", place)
    restored = run("restore", place)
    assert restored["next"] == saved["next"]
    assert saved["extra_mb"] < 512
