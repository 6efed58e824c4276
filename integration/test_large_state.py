"""States that are too large for TensorFlow to encode in one piece, with bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MEGABYTES = 2300


def run(mode: str, store: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.large_state", mode, str(store), str(MEGABYTES)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    output = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True).stdout
    answer: dict[str, Any] = json.loads(output)
    return answer


@pytest.mark.timeout(600)
def test_a_state_of_more_than_2_gib_is_saved_in_bounded_memory_and_restored(
    tmp_path: Path,
) -> None:
    saved = run("save", tmp_path)
    restored = run("restore", tmp_path)
    assert restored["next"] == saved["next"]
    assert saved["extra_mb"] < 512
