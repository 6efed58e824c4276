"""Runs a training process and kills it with SIGKILL at a chosen moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).parents[2]


def train(
    model_dir: Path,
    backend: str,
    steps: int,
    options: Optional[Mapping[str, Any]] = None,
    kill_at: Optional[str] = None,
    kill_after_seconds: float = 0.0,
) -> bool:
    """Train to ``steps``, or until SIGKILL.

    Args:
        kill_at: kill at the first line of output that starts with this. None lets the process finish.
        kill_after_seconds: how long to wait after that line.

    Returns:
        Whether the process was killed.
    """
    command = [sys.executable, "-m", "tests.support.train_child", str(model_dir), backend]
    command += [json.dumps(dict(options or {})), str(steps)]
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if kill_at is not None and line.startswith(kill_at):
                time.sleep(kill_after_seconds)
                process.send_signal(signal.SIGKILL)
                break
    if process.returncode == -signal.SIGKILL:
        return True
    assert process.returncode == 0, "".join(lines[-40:])
    return False
