"""Runs the measurements, prints the results, and writes them to files."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

from benchmarks import report
from benchmarks.documentation import Results
from benchmarks.report import MEASUREMENTS, Figure, Measured, Ratio

WHOLE_RUN_SECONDS = 12 * 60
"""The most that all measurements together may take on two cores."""


@dataclass
class Found:
    """What the measurements have found so far."""

    figures: list[Figure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)


def found_earlier(path: Path, without: Sequence[str]) -> Found:
    """Return what a file of raw figures has of other measurements.

    Raises:
        SystemExit: it is from another machine or from a smoke run.
    """
    results = Results.from_json(path.read_text())
    if results.quick or results.machine != machine():
        raise SystemExit(f"{path} is from a smoke run, another machine or other versions: {results.machine}")
    return Found(
        [figure for figure in results.figures if figure.measurement not in without],
        [ratio for ratio in results.ratios if ratio.goal.measurement not in without],
        {name: measured for name, measured in results.measured.items() if name not in without},
    )


def run(
    names: Sequence[str], quick: bool, keep: Callable[[Found], object], earlier: Optional[Found] = None
) -> Found:
    """Run the named measurements. Print and keep the results after each one."""
    everything = earlier or Found()
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        started = time.monotonic()
        found = list(module.measure(quick))
        seconds = time.monotonic() - started
        compared = compare(module, found)
        title = f"{name}: {_first_line(module)}"
        table = getattr(module, "table", report.measured_table)
        print(f"\n{title}\n{'=' * len(title)}\n{table(found)}\n")
        print(report.ratio_table(compared))
        print(f"({seconds:.0f} s)", flush=True)
        everything.figures += found
        everything.ratios += compared
        everything.measured[name] = Measured(time.strftime("%Y-%m-%d"), seconds)
        keep(everything)
    return everything


def compare(module: ModuleType, figures: Sequence[Figure]) -> list[Ratio]:
    """Return the ratios that a measurement has goals for."""
    return [ratio for goal in module.GOALS for ratio in goal.ratios(figures)]


def machine() -> dict[str, Any]:
    """Return a description of this machine."""
    packages = ("tensorflow", "input-checkpoint", "s3fs", "moto")
    return {
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the benchmarks that the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures the performance of saves and restores.")
    parser.add_argument("--quick", action="store_true", help="a small smoke run; do not quote its figures")
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="run only this one; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures to this file")
    parser.add_argument(
        "--keep", action="store_true", help="keep what that file already has of other measurements"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots to this folder")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table of ratios to this file"
    )
    options = parser.parse_args(arguments)
    # Messages about missing GPUs would appear between the tables.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    def keep(found: Found) -> None:
        if options.json:
            options.json.write_text(
                report.raw(found.figures, found.ratios, machine(), found.measured, options.quick)
            )

    names = options.only or MEASUREMENTS
    earlier = found_earlier(options.json, names) if options.keep else None
    found = run(names, options.quick, keep, earlier)
    missed = [ratio for ratio in found.ratios if ratio.met is False]
    judged = [ratio for ratio in found.ratios if ratio.met is not None]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} goals met.")
    if missed:
        print(f"Missed:\n{report.ratio_table(missed)}")
    print(f"\n{report.seconds_table(found.measured, WHOLE_RUN_SECONDS)}")
    if options.markdown:
        options.markdown.write_text(report.markdown(found.ratios) + "\n")
    if options.plots:
        from benchmarks import plots

        plots.draw(found.figures, options.plots)


def _first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").splitlines()[0].rstrip(".")
