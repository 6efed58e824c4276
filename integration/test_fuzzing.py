"""The fuzzer with a new seed, for a minute: ``FUZZ_MINUTES`` sets another time, ``FUZZ_SEED`` a seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINUTES = float(os.environ.get("FUZZ_MINUTES", "1"))


@pytest.mark.timeout(60 * MINUTES + 900)
def test_new_inputs_are_survived() -> None:
    seed = ["--seed", os.environ["FUZZ_SEED"]] if "FUZZ_SEED" in os.environ else []
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", str(MINUTES), *seed]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr
