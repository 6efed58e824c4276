"""Runs the whole demo: draw a plan, run the scenarios, compare the histories, report the result."""

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
from demo.scenario import NO_HOOK, OURS, TENSORFLOW, Outcome, Plan, Scenario, ScenarioError, run_scenario
from demo.table import Comparison, History, compare, render

Row = tuple[Outcome, Comparison]


def main() -> int:
    """Run the demo. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Training that is killed, resumes, and loses no data."
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments at which training is killed")
    seed = parser.parse_args().seed
    work = Path(tempfile.mkdtemp(prefix="input-checkpoint-demo-"))
    started = time.monotonic()
    try:
        rows = _run_all_and_compare(Plan.draw(seed), seed, work)
    except ScenarioError as failure:
        print(f"\nFAIL: {failure}")
        return 1
    print(f"\n{_table(rows, work)}\n")
    failures = _failures(rows)
    if failures:
        print("\n".join(f"FAIL: {failure}" for failure in failures))
        print(f"Logs and models are in {work}.")
        return 1
    shutil.rmtree(work)
    print(f"{_success(rows)} ({time.monotonic() - started:.0f} s)")
    return 0


def _run_all_and_compare(plan: Plan, seed: int, work: Path) -> list[Row]:
    print(f"Training for {plan.steps} steps, saving every {plan.save_every}. Logs and models are in {work}.")
    print(f"SIGKILL, seed {seed}: {'; '.join(map(str, plan.kills))}.\n", flush=True)
    with s3_server() as options:
        scenarios = _scenarios(plan, work, _digits(work), options)
        outcomes = _run_all(scenarios)
    histories = _histories(scenarios, work)
    return [(outcome, compare(history, histories[0])) for outcome, history in zip(outcomes, histories)]


def _digits(work: Path) -> Path:
    """Write the data file and return its path."""
    # Once, not in every run, because scikit-learn takes two seconds to import.
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


def _run_all(scenarios: Sequence[Scenario]) -> list[Outcome]:
    width = max(len(scenario.title) for scenario in scenarios)

    def run(scenario: Scenario) -> Outcome:
        def report(line: str) -> None:
            print(f"{scenario.title.ljust(width)} | {line}", flush=True)

        try:
            return run_scenario(scenario, report)
        except ScenarioError:
            report("failed; details follow when the others are done")
            raise

    # All at the same time, because a run spends most of its time importing TensorFlow.
    with ThreadPoolExecutor(len(scenarios)) as pool:
        return list(pool.map(run, scenarios))


def _histories(scenarios: Sequence[Scenario], work: Path) -> list[History]:
    """Read from the final models which examples they were trained on."""
    command = [sys.executable, "-m", "demo.history", *(str(scenario.model_dir) for scenario in scenarios)]
    log = work / "history.log"
    with log.open("w") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode:
        raise ScenarioError(f"could not read the models. End of {log}:\n{log.read_text()[-2000:]}")
    histories: list[History] = json.loads(done.stdout)
    return histories


def _table(rows: Sequence[Row], work: Path) -> str:
    # Shortens the paths so that the table fits in a terminal.
    return render(
        [
            (dataclasses.replace(outcome, input_uri=outcome.input_uri.replace(str(work), "…")), comparison)
            for outcome, comparison in rows
        ]
    )


def _failures(rows: Sequence[Row]) -> list[str]:
    """Return what went wrong. TensorFlow's hook is only there for comparison, so its row never fails."""
    reference, local, s3, _ = rows
    failures = []
    if reference[1].seen == 0:
        failures.append("the uninterrupted run recorded no examples, so there was nothing to compare with.")
    for outcome, found in (local, s3):
        if not found.exact:
            failures.append(
                f"{outcome.title}: {found.lost} examples lost, {found.repeated} repeated, "
                f"{found.steps_off} steps trained on different data than in the uninterrupted run."
            )
        if outcome.state_bytes_in_model_dir:
            failures.append(f"{outcome.title}: there is input state in the model directory.")
        if not outcome.mid_save:
            failures.append(f"{outcome.title}: no kill hit a save, so the demo proves nothing about saves.")
    return failures


def _success(rows: Sequence[Row]) -> str:
    _, local, s3, _ = rows
    kills = local[0].kills + s3[0].kills
    rolled_back = local[0].rolled_back + s3[0].rolled_back
    return (
        f"PASS: {kills} kills, and our hook lost and repeated nothing: every step saw the same data as in\n"
        f"the uninterrupted run. After {rolled_back} of the kills the model was newer than its input and was "
        "rolled back."
    )
