"""One scenario: start the training, kill it as planned, start it again, until its last step is reached."""

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
_MODEL_TURNED_BACK = re.compile(r"The model was saved at step (\d+), but training stopped")

# What the model and the Estimator write; anything else in the model directory is input state.
_MODEL_FILES = re.compile(r"checkpoint$|checkpoint\.tmp|model\.ckpt-|graph\.pbtxt|events\.out\.tfevents\.")


@dataclass(frozen=True)
class Hook:
    """A way to checkpoint the input, and how its log lines tell what it is doing."""

    name: str
    """As ``demo.train --hook`` knows it."""
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
    """When to kill the training."""

    mid_save: bool
    """While the input of ``step`` (or of the next step that is saved) is being saved; else between saves."""
    step: int
    delay: float
    """Seconds between seeing the moment in the log and the kill."""

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
        """Return the plan of ``seed``: always the same kinds of kills, at moments drawn at random."""
        draw = random.Random(seed)
        steps, every = 200, 50

        def mid_save(number: int) -> Kill:
            return Kill(True, number * every, draw.uniform(0, 0.1))

        def mid_step(number: int) -> Kill:
            # Late in the interval, when the background save of its beginning is usually through.
            return Kill(False, number * every + draw.randrange(every - 15, every - 5), draw.uniform(0, 0.03))

        kills = (mid_save(1), mid_step(1), mid_step(2), mid_save(3))
        return cls(steps, every, kills)

    def uninterrupted(self) -> Plan:
        """Return the same training without kills."""
        return Plan(self.steps, self.save_every, ())


@dataclass(frozen=True)
class Scenario:
    """One training: where, with which hook, and what happens to it."""

    title: str
    hook: Hook
    folder: Path
    """For the model directory and the log."""
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
        """What all runs of the training have written."""
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
    """What became of a scenario."""

    title: str
    runs: int
    kills: int
    mid_save: int
    """How many of the kills came while a save of the input was in flight."""
    turned_back: int
    """How often the library took the model back to the newest step that had both checkpoints."""
    input_uri: str
    """Where the input state lives; empty if it is not saved."""
    state_bytes_in_model_dir: int


class ScenarioError(Exception):
    """A training did not do what the scenario needs of it."""


@dataclass
class Watch:
    """What the log of one run has told so far."""

    hook: Hook
    step: int = -1
    saving: Optional[int] = None
    """Step of the save of the input in flight, or None."""
    model_from: int = 0
    input_from: int = 0
    turned_back_from: Optional[int] = None

    def read(self, line: str) -> None:
        """Take in one line."""
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
        elif match := _MODEL_TURNED_BACK.search(line):
            self.turned_back_from = int(match.group(1))

    def is_time_for(self, kill: Kill) -> bool:
        """Whether the moment of ``kill`` has come."""
        if kill.mid_save:
            return self.saving is not None and self.saving >= kill.step
        return self.saving is None and self.step >= kill.step

    def beginning(self) -> str:
        """Say where the run took up."""
        if self.step < 0:
            return "with nothing left to do"
        if self.turned_back_from is None:
            return f"from model step {self.model_from}, input step {self.input_from}"
        return (
            f"from model step {self.model_from} (turned back from {self.turned_back_from}), "
            f"input step {self.input_from}"
        )

    def ending(self) -> str:
        """Say where the run was when it was killed."""
        if self.saving is None:
            return f"between saves, at step {self.step}"
        return f"at step {self.step}, while the input of step {self.saving} was being saved"


def play(scenario: Scenario, tell: Callable[[str], None]) -> Outcome:
    """Train to the last step, through all kills of the plan.

    Args:
        scenario: what to do.
        tell: is given a short line for each thing that happens.

    Raises:
        ScenarioError: the training failed by itself, hung, or ended before the last kill.
    """
    scenario.folder.mkdir(parents=True)
    watches = []
    for number, kill in enumerate((*scenario.plan.kills, None), start=1):
        watch = _run(scenario, kill)
        watches.append(watch)
        end = f"killed {watch.ending()}" if kill else "reached the last step"
        tell(f"run {number} {watch.beginning()}: {end}")
    return Outcome(
        title=scenario.title,
        runs=len(watches),
        kills=len(scenario.plan.kills),
        mid_save=sum(watch.saving is not None for watch in watches),
        turned_back=sum(watch.turned_back_from is not None for watch in watches),
        input_uri=_input_uri(scenario),
        state_bytes_in_model_dir=input_bytes_in(scenario.model_dir),
    )


def input_bytes_in(model_dir: Path) -> int:
    """Return the size of everything in the model directory that the model itself has not written."""
    files = [path for path in model_dir.rglob("*") if path.is_file()]
    return sum(
        path.stat().st_size for path in files if not _MODEL_FILES.match(str(path.relative_to(model_dir)))
    )


def _input_uri(scenario: Scenario) -> str:
    if scenario.backend is not None:
        return scenario.backend
    return str(scenario.model_dir) if scenario.hook is TENSORFLOW else ""


def _run(scenario: Scenario, kill: Optional[Kill]) -> Watch:
    """Start the training once, and kill it if told so."""
    watch = Watch(scenario.hook)
    with scenario.log.open("a") as log, _started(scenario) as process:
        guard = threading.Timer(_TIME_LIMIT, process.kill)
        guard.start()
        try:
            hit = _follow(process, watch, kill, log)
            process.wait()
        finally:
            guard.cancel()
            process.kill()
    _check(scenario, process.returncode, kill, hit)
    return watch


def _started(scenario: Scenario) -> subprocess.Popen[str]:
    return subprocess.Popen(
        scenario.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def _follow(process: subprocess.Popen[str], watch: Watch, kill: Optional[Kill], log: IO[str]) -> bool:
    """Read the log to its end. Returns whether the moment of the kill came."""
    assert process.stdout is not None
    hit = False
    for line in process.stdout:
        log.write(line)
        watch.read(line)
        if kill is not None and not hit and watch.is_time_for(kill):
            time.sleep(kill.delay)
            process.kill()
            hit = True
    return hit


def _check(scenario: Scenario, returncode: int, kill: Optional[Kill], hit: bool) -> None:
    if returncode == (-signal.SIGKILL if hit else 0) and hit == (kill is not None):
        return
    if returncode == 0:
        what = f"ended before the kill {kill}"
    elif returncode == -signal.SIGKILL:
        what = f"took more than {_TIME_LIMIT:.0f} s"
    else:
        what = f"failed with exit code {returncode}"
    tail = "\n".join(scenario.log.read_text().splitlines()[-_LOG_TAIL:])
    raise ScenarioError(f"{scenario.title}: the training {what}. End of {scenario.log}:\n{tail}")
