"""One scenario: start training, kill it as planned, and restart it until it reaches the last step."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Optional

_TIME_LIMIT = 120.0
_LOG_TAIL = 25

_STEP = re.compile(r"loss = .*, step = (\d+)")
_MODEL_RESTORED = re.compile(r"Restoring parameters from .*model\.ckpt-(\d+)")
_MODEL_ROLLED_BACK = re.compile(r"The model was saved at step (\d+), but training stopped")

# What the model and the Estimator write, and the small file that names the run; anything else in the
# model directory is input state.
_MODEL_FILES = re.compile(
    r"checkpoint$|checkpoint\.tmp|model\.ckpt-|graph\.pbtxt|events\.out\.tfevents\.|input-checkpoint\.json$"
)


@dataclass(frozen=True)
class Hook:
    """A way to checkpoint the input, and the log lines that show what it is doing."""

    name: str
    """The value of ``demo.train --hook``."""
    saving: re.Pattern[str]
    saved: re.Pattern[str]
    restored: re.Pattern[str]


_NEVER = re.compile(r"(?!)")

OURS = Hook(
    "ours",
    saving=re.compile(r"Saving input checkpoint for step (\d+)"),
    saved=re.compile(r"Saved input checkpoint for step"),
    restored=re.compile(r"Restored the input from .*step (\d+)"),
)
TENSORFLOW = Hook(
    "tensorflow",
    saving=re.compile(r"Saving checkpoints for (\d+) into .*input\.ckpt"),
    saved=re.compile(r"Calling checkpoint listeners after saving"),
    restored=re.compile(r"Restoring parameters from .*input\.ckpt-(\d+)"),
)
NO_HOOK = Hook("none", saving=_NEVER, saved=_NEVER, restored=_NEVER)


@dataclass(frozen=True)
class Kill:
    """When to kill training."""

    mid_save: bool
    """True: during a save of the input. False: between saves."""
    step: int
    """At this step or, during a save, at the first save from this step on."""
    delay: float
    """Seconds between the log line that shows the moment and the kill."""

    def __str__(self) -> str:
        where = "mid-save of" if self.mid_save else "mid-step"
        return f"{where} {self.step} +{self.delay * 1000:.0f} ms"


@dataclass(frozen=True)
class Plan:
    """How long to train, how often to save, and when to kill."""

    steps: int
    save_every: int
    kills: tuple[Kill, ...]

    @classmethod
    def draw(cls, seed: int) -> Plan:
        """Return a plan with the same kinds of kills for every seed, at random moments."""
        draw = random.Random(seed)
        steps, every = 200, 50

        def mid_save(number: int) -> Kill:
            return Kill(True, number * every, draw.uniform(0, 0.1))

        def mid_step(number: int) -> Kill:
            # Late in the interval, when the background save is usually done.
            return Kill(False, number * every + draw.randrange(every - 15, every - 5), draw.uniform(0, 0.03))

        kills = (mid_save(1), mid_step(1), mid_step(2), mid_save(3))
        return cls(steps, every, kills)

    def uninterrupted(self) -> Plan:
        """Return the same training without kills."""
        return Plan(self.steps, self.save_every, ())


@dataclass(frozen=True)
class Scenario:
    """One training run with its restarts: where, with which hook, and when it is killed."""

    title: str
    hook: Hook
    folder: Path
    """Contains the model directory and the log."""
    data: Path
    """The npz file with the examples."""
    plan: Plan
    backend: Optional[str] = None
    storage_options: Optional[Mapping[str, Any]] = None

    @property
    def model_dir(self) -> Path:
        """Where the Estimator keeps the model."""
        return self.folder / "model"

    @property
    def log(self) -> Path:
        """The output of all runs."""
        return self.folder / "training.log"

    def command(self) -> list[str]:
        """Return the command that trains."""
        command = [sys.executable, "-m", "demo.train", "--model-dir", str(self.model_dir)]
        command += ["--data", str(self.data)]
        command += ["--steps", str(self.plan.steps), "--save-every", str(self.plan.save_every)]
        command += ["--hook", self.hook.name]
        if self.backend is not None:
            command += ["--backend", self.backend]
        if self.storage_options is not None:
            command += ["--storage-options", json.dumps(self.storage_options)]
        return command


@dataclass(frozen=True)
class Outcome:
    """The result of a scenario."""

    title: str
    runs: int
    kills: int
    mid_save: int
    """How many of the kills killed a save of the input in flight."""
    rolled_back: int
    """How often the library rolled the model back to the newest step that has both checkpoints."""
    input_uri: str
    """Where the input state is saved. Empty if it is not saved."""
    state_bytes_in_model_dir: int


class ScenarioError(Exception):
    """Training did not go as the scenario planned."""


@dataclass
class RunProgress:
    """The progress of one run, read from its log."""

    hook: Hook
    step: int = -1
    saving: Optional[int] = None
    """The step whose input is being saved, or None."""
    model_from: int = 0
    input_from: int = 0
    rolled_back_from: Optional[int] = None

    def read(self, line: str) -> None:
        """Read one line of the log."""
        if match := _STEP.search(line):
            self.step = int(match.group(1))
        elif match := self.hook.saving.search(line):
            self.saving = int(match.group(1))
        elif self.hook.saved.search(line):
            self.saving = None
        elif match := _MODEL_RESTORED.search(line):
            self.model_from = int(match.group(1))
        elif match := self.hook.restored.search(line):
            self.input_from = int(match.group(1))
        elif match := _MODEL_ROLLED_BACK.search(line):
            self.rolled_back_from = int(match.group(1))

    def is_time_for(self, kill: Kill) -> bool:
        """Return whether it is the moment for this kill."""
        if kill.mid_save:
            return self.saving is not None and self.saving >= kill.step
        return self.saving is None and self.step >= kill.step

    def describe_start(self) -> str:
        """Return where the run resumed."""
        if self.step < 0:
            return "had nothing left to do"
        if self.rolled_back_from is None:
            return f"started from model step {self.model_from}, input step {self.input_from}"
        return (
            f"started from model step {self.model_from} (rolled back from {self.rolled_back_from}), "
            f"input step {self.input_from}"
        )

    def describe_end(self) -> str:
        """Return where the run was when it was killed."""
        if self.saving is None:
            return f"between saves, at step {self.step}"
        return f"at step {self.step}, during the save of step {self.saving}"


def run_scenario(scenario: Scenario, report: Callable[[str], None]) -> Outcome:
    """Train to the last step, through all kills of the plan.

    Args:
        scenario: what to run.
        report: called with one line of text after each run.

    Raises:
        ScenarioError: training failed, hung, or ended before the last kill.
    """
    scenario.folder.mkdir(parents=True)
    runs = []
    for number, kill in enumerate((*scenario.plan.kills, None), start=1):
        progress = _run(scenario, kill)
        runs.append(progress)
        end = f"killed {progress.describe_end()}" if kill else "reached the last step"
        report(f"run {number} {progress.describe_start()}: {end}")
    return Outcome(
        title=scenario.title,
        runs=len(runs),
        kills=len(scenario.plan.kills),
        mid_save=sum(run.saving is not None for run in runs),
        rolled_back=sum(run.rolled_back_from is not None for run in runs),
        input_uri=_input_uri(scenario),
        state_bytes_in_model_dir=input_bytes_in(scenario.model_dir),
    )


def input_bytes_in(model_dir: Path) -> int:
    """Return the size of everything in the model directory that does not belong to the model."""
    files = [path for path in model_dir.rglob("*") if path.is_file()]
    return sum(
        path.stat().st_size for path in files if not _MODEL_FILES.match(str(path.relative_to(model_dir)))
    )


def _input_uri(scenario: Scenario) -> str:
    if scenario.backend is not None:
        return scenario.backend
    return str(scenario.model_dir) if scenario.hook is TENSORFLOW else ""


def _run(scenario: Scenario, kill: Optional[Kill]) -> RunProgress:
    """Start training once, and kill it at the given moment, if any."""
    progress = RunProgress(scenario.hook)
    with scenario.log.open("a") as log, _start(scenario) as process:
        guard = threading.Timer(_TIME_LIMIT, process.kill)
        guard.start()
        try:
            killed = _follow(process, progress, kill, log)
            process.wait()
        finally:
            guard.cancel()
            process.kill()
    _check(scenario, process.returncode, kill, killed)
    return progress


def _start(scenario: Scenario) -> subprocess.Popen[str]:
    return subprocess.Popen(
        scenario.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def _follow(
    process: subprocess.Popen[str], progress: RunProgress, kill: Optional[Kill], log: IO[str]
) -> bool:
    """Read the log to its end and kill at the right moment. Return whether that moment came."""
    assert process.stdout is not None
    killed = False
    for line in process.stdout:
        log.write(line)
        progress.read(line)
        if kill is not None and not killed and progress.is_time_for(kill):
            time.sleep(kill.delay)
            process.kill()
            killed = True
    return killed


def _check(scenario: Scenario, returncode: int, kill: Optional[Kill], killed: bool) -> None:
    if returncode == (-signal.SIGKILL if killed else 0) and killed == (kill is not None):
        return
    if returncode == 0:
        what = f"ended before the kill {kill}"
    elif returncode == -signal.SIGKILL:
        what = f"took longer than {_TIME_LIMIT:.0f} s"
    else:
        what = f"failed with exit code {returncode}"
    tail = "\n".join(scenario.log.read_text().splitlines()[-_LOG_TAIL:])
    raise ScenarioError(f"{scenario.title}: training {what}. End of {scenario.log}:\n{tail}")
