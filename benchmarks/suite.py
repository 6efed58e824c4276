"""Runs the measurements, prints the results, and writes them to files."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

from benchmarks import report
from benchmarks.report import Figure, Ratio

MEASUREMENTS = (
    "stall",
    "throughput",
    "upload",
    "durable",
    "restart",
    "restore",
    "memory",
    "growth",
    "rare_saves",
    "fast_forward",
)


def run(
    names: Sequence[str], quick: bool, keep: Callable[[list[Figure], list[Ratio]], object]
) -> tuple[list[Figure], list[Ratio]]:
    """Run the named measurements. Print and keep the results after each one."""
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        started = time.monotonic()
        found = list(module.measure(quick))
        compared = compare(module, found)
        title = f"{name}: {_first_line(module)}"
        table = getattr(module, "table", report.measured_table)
        print(f"\n{title}\n{'=' * len(title)}\n{table(found)}\n")
        print(report.ratio_table(compared))
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
        figures += found
        ratios += compared
        keep(figures, ratios)
    return figures, ratios


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
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots to this folder")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table of ratios to this file"
    )
    options = parser.parse_args(arguments)
    # Messages about missing GPUs would appear between the tables.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

    def keep(figures: list[Figure], ratios: list[Ratio]) -> None:
        if options.json:
            options.json.write_text(report.raw(figures, ratios, machine()))

    figures, ratios = run(options.only or MEASUREMENTS, options.quick, keep)
    missed = [ratio for ratio in ratios if ratio.met is False]
    judged = [ratio for ratio in ratios if ratio.met is not None]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} goals met.")
    if missed:
        print(f"Missed:\n{report.ratio_table(missed)}")
    if options.markdown:
        options.markdown.write_text(report.markdown(ratios) + "\n")
    if options.plots:
        from benchmarks import plots

        plots.draw(figures, options.plots)


def _first_line(module: ModuleType) -> str:
    return (module.__doc__ or "").splitlines()[0].rstrip(".")
