"""Plots of the figures, for the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

import matplotlib

from benchmarks import durable, fast_forward, growth, rare_saves, restart, restore, stall, throughput, upload
from benchmarks.report import Figure
from benchmarks.restarted_training import PROGRAM

matplotlib.use("svg")
# The same figures always give the same file.
matplotlib.rcParams["svg.hashsalt"] = "input-checkpoint"
# Text as text, not as paths: half the size, and searchable.
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot as plt  # noqa: E402 - the settings come first

_NO_DATE = {"Date": None}


def draw(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draw one file per measurement that has figures. Return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        _bars(figures, stall.NAME, stall.STALL, folder, logarithmic=True),
        _bars(figures, throughput.NAME, throughput.STEPS, folder, logarithmic=False),
        _bars(figures, upload.NAME, upload.UPLOADED, folder, logarithmic=False, leave_out=(upload.ALLOWED,)),
        _bars(figures, durable.NAME, durable.SECONDS, folder, logarithmic=False, leave_out=(durable.LIMIT,)),
        _bars(figures, restart.NAME, PROGRAM, folder, logarithmic=False, leave_out=(restart.ALLOWED,)),
        _bars(figures, restore.NAME, restore.PART, folder, logarithmic=True),
        _bars(figures, rare_saves.NAME, rare_saves.STALL, folder, logarithmic=False),
        _bars(figures, fast_forward.NAME, fast_forward.SPEED, folder, logarithmic=True),
        _curves(figures, folder),
    ]
    return [path for path in drawn if path is not None]


def _bars(
    figures: Iterable[Figure],
    measurement: str,
    quantity: str,
    folder: Path,
    logarithmic: bool,
    leave_out: Sequence[str] = (),
) -> Optional[Path]:
    """Draw a group of bars per case: medians, with the smallest and largest values as whiskers."""
    chosen = [
        figure
        for figure in figures
        if (figure.measurement, figure.quantity) == (measurement, quantity) and figure.who not in leave_out
    ]
    if not chosen:
        return None
    cases = list(dict.fromkeys(figure.case for figure in chosen))
    names = list(dict.fromkeys(figure.who for figure in chosen))
    height = 0.8 / len(names)
    _, axes = plt.subplots(figsize=(9, 0.6 + 0.16 * len(cases) * (len(names) + 1)))
    for place, name in enumerate(names):
        values = [
            [figure.value for figure in chosen if (figure.case, figure.who) == (case, name)] for case in cases
        ]
        there = [(row, found) for row, found in enumerate(values) if found]
        middles = [statistics.median(found) for _, found in there]
        spread = [
            [middle - min(found) for middle, (_, found) in zip(middles, there)],
            [max(found) - middle for middle, (_, found) in zip(middles, there)],
        ]
        rows = [row + place * height for row, _ in there]
        axes.barh(rows, middles, height, xerr=spread, label=name, error_kw={"linewidth": 0.8})
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.set_xlabel(f"{measurement}: {quantity}")
    if logarithmic:
        axes.set_xscale("log")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return _saved(folder / f"{measurement}.svg")


def _curves(figures: Iterable[Figure], folder: Path) -> Optional[Path]:
    """Draw how costs grow, relative to the cost at the smallest size."""
    chosen = [figure for figure in figures if figure.measurement == growth.NAME]
    costs = [figure for figure in chosen if figure.quantity not in growth.EXPONENTS]
    if not costs:
        return None
    subjects = list(dict.fromkeys(figure.case for figure in costs))
    _, all_axes = plt.subplots(1, len(subjects), figsize=(4.5 * len(subjects), 4), squeeze=False)
    for axes, subject in zip(all_axes[0], subjects):
        _curve(axes, subject, [figure for figure in costs if figure.case == subject])
    return _saved(folder / "growth.svg")


def _curve(axes: Any, subject: str, costs: Sequence[Figure]) -> None:
    sizes = list(dict.fromkeys(figure.who for figure in costs))
    amounts = [int(size.replace(" ", "")) for size in sizes]
    for cost in dict.fromkeys(figure.quantity for figure in costs):
        if cost.endswith(growth.SECONDS):
            continue
        medians = [
            statistics.median(
                figure.value for figure in costs if (figure.quantity, figure.who) == (cost, size)
            )
            for size in sizes
        ]
        if medians[0]:
            axes.plot(amounts, [value / medians[0] for value in medians], marker="o", label=cost)
    axes.plot(amounts, [amount / amounts[0] for amount in amounts], "k:", label=growth.LINEAR)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks(amounts, sizes)
    axes.set_xlabel(subject)
    axes.set_ylabel("relative to the smallest size")
    axes.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _saved(path: Path) -> Path:
    plt.savefig(path, bbox_inches="tight", metadata=_NO_DATE)
    plt.close()
    return path
