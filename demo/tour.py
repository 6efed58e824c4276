"""The whole demo: plan, play, compare, judge."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from demo.s3 import BUCKET, s3_server
from demo.scenario import NO_HOOK, OURS, TENSORFLOW, Outcome, Plan, Scenario, ScenarioError, play
from demo.table import Comparison, History, compare, render

Row = tuple[Outcome, Comparison]


def main() -> int:
    """Run the demo. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Training that survives its own death."
    )
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which the training is killed")
    seed = parser.parse_args().seed
    work = Path(tempfile.mkdtemp(prefix="input-checkpoint-demo-"))
    started = time.monotonic()
    try:
        rows = _perform(Plan.draw(seed), seed, work)
    except ScenarioError as failure:
        print(f"\nFAIL: {failure}")
        return 1
    print(f"\n{_table(rows, work)}\n")
    faults = _faults(rows)
    if faults:
        print("\n".join(f"FAIL: {fault}" for fault in faults))
        print(f"Logs and models are in {work}.")
        return 1
    shutil.rmtree(work)
    print(f"{_praise(rows)} ({time.monotonic() - started:.0f} s)")
    return 0


def _perform(plan: Plan, seed: int, work: Path) -> list[Row]:
    print(f"Training {plan.steps} steps, saving every {plan.save_every}. Logs and models are in {work}.")
    print(f"SIGKILL, seed {seed}: {'; '.join(map(str, plan.kills))}.\n", flush=True)
    with s3_server() as options:
        scenarios = _scenarios(plan, work, _digits(work), options)
        outcomes = _play_all(scenarios)
    histories = _histories(scenarios, work)
    return [(outcome, compare(history, histories[0])) for outcome, history in zip(outcomes, histories)]


def _digits(work: Path) -> Path:
    """Write the data file. Returns its path."""
    # Once here, and not in every run: scikit-learn takes two seconds to import.
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = work / "digits.npz"
    np.savez(path, picture=digits.images, label=digits.target)
    return path


def _scenarios(plan: Plan, work: Path, data: Path, s3_options: Mapping[str, Any]) -> list[Scenario]:
    local, bucket = work / "local", f"s3://{BUCKET}/digits/input"
    return [
        Scenario("uninterrupted", NO_HOOK, work / "reference", data, plan.uninterrupted()),
        Scenario("ours, local folder", OURS, local, data, plan, backend=str(local / "input")),
        Scenario("ours, S3", OURS, work / "s3", data, plan, backend=bucket, storage_options=s3_options),
        Scenario("TensorFlow's hook", TENSORFLOW, work / "tensorflow", data, plan),
    ]


def _play_all(scenarios: Sequence[Scenario]) -> list[Outcome]:
    width = max(len(scenario.title) for scenario in scenarios)

    def perform(scenario: Scenario) -> Outcome:
        def tell(line: str) -> None:
            print(f"{scenario.title.ljust(width)} | {line}", flush=True)

        try:
            return play(scenario, tell)
        except ScenarioError:
            tell("failed; more when the others are through")
            raise

    # All at once: a run spends most of its time importing TensorFlow, and idle cores would stretch the demo.
    with ThreadPoolExecutor(len(scenarios)) as pool:
        return list(pool.map(perform, scenarios))


def _histories(scenarios: Sequence[Scenario], work: Path) -> list[History]:
    """Read from the final models what they have been trained on."""
    command = [sys.executable, "-m", "demo.history", *(str(scenario.model_dir) for scenario in scenarios)]
    log = work / "history.log"
    with log.open("w") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode:
        raise ScenarioError(f"the models could not be read. End of {log}:\n{log.read_text()[-2000:]}")
    histories: list[History] = json.loads(done.stdout)
    return histories


def _table(rows: Sequence[Row], work: Path) -> str:
    # Every path begins with it; without it the table fits a terminal.
    return render(
        [
            (dataclasses.replace(outcome, input_uri=outcome.input_uri.replace(str(work), "…")), comparison)
            for outcome, comparison in rows
        ]
    )


def _faults(rows: Sequence[Row]) -> list[str]:
    """Say what is wrong. TensorFlow's row is there for comparison, and may be."""
    reference, local, s3, _ = rows
    faults = []
    if reference[1].seen == 0:
        faults.append("the uninterrupted run has recorded nothing, so nothing was compared.")
    for outcome, found in (local, s3):
        if not found.exact:
            faults.append(
                f"{outcome.title}: {found.lost} examples lost, {found.repeated} repeated, "
                f"{found.steps_off} steps trained on other data than the uninterrupted run."
            )
        if outcome.state_bytes_in_model_dir:
            faults.append(f"{outcome.title}: input state in the model directory.")
        if not outcome.mid_save:
            faults.append(f"{outcome.title}: no kill came during a save, so nothing was proven.")
    return faults


def _praise(rows: Sequence[Row]) -> str:
    _, local, s3, _ = rows
    kills = local[0].kills + s3[0].kills
    turned_back = local[0].turned_back + s3[0].turned_back
    return (
        f"PASS: through {kills} kills our hook lost nothing and repeated nothing: every step was trained on\n"
        "the data of the uninterrupted run. "
        f"{turned_back} kills left a model without its input: it was turned back."
    )
