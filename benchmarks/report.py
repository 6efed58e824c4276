"""Figures, the ratios between candidates, and the goals for these ratios. Everything here is pure."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

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
"""The modules that measure, in the order in which a run calls them."""


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    measurement: str
    case: str
    """The pipeline, or the size."""
    who: str
    """The candidate."""
    quantity: str
    """What was measured, with its unit in brackets."""
    round: int
    value: float


@dataclass(frozen=True)
class Goal:
    """A ratio between two candidates that should stay within a bound."""

    measurement: str
    quantity: str
    who: str
    against: str
    bound: Optional[float] = None
    """None: the ratio is reported but not judged."""
    at_most: bool = True
    """True: the ratio may be at most the bound. False: it must be at least the bound."""
    cases: Optional[str] = None
    """Only cases whose names start with this."""

    def ratios(self, figures: Iterable[Figure]) -> list[Ratio]:
        """Return the ratio for every case in which both were measured."""
        series: dict[str, dict[str, dict[int, float]]] = {}
        for figure in figures:
            if (figure.measurement, figure.quantity) == (self.measurement, self.quantity):
                rounds = series.setdefault(figure.case, {}).setdefault(figure.who, {})
                rounds[figure.round] = figure.value
        return [
            Ratio(self, case, values)
            for case, found in series.items()
            if self.cases is None or case.startswith(self.cases)
            if (values := paired(found.get(self.who, {}), found.get(self.against, {})))
        ]

    def __str__(self) -> str:
        if self.bound is None:
            return ""
        return f"{'<=' if self.at_most else '>='} {number(self.bound)}"


@dataclass(frozen=True)
class Ratio:
    """The ratio between two candidates in one case, round by round."""

    goal: Goal
    case: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> Optional[bool]:
        """Whether the median is within the goal's bound; None if there is no bound."""
        if self.goal.bound is None:
            return None
        return self.median <= self.goal.bound if self.goal.at_most else self.median >= self.goal.bound

    @property
    def verdict(self) -> str:
        """One word for `met`."""
        return {None: "", True: "met", False: "MISSED"}[self.met]


@dataclass(frozen=True)
class Measured:
    """When a measurement ran."""

    date: str
    """The day, as ``YYYY-MM-DD``."""
    seconds: Optional[float]
    """How long it took. None if nobody has recorded it."""


def paired(these: dict[int, float], those: dict[int, float]) -> tuple[float, ...]:
    """Return the ratio for every round that both have, in order.

    >>> paired({0: 1.0, 1: 3.0, 2: 5.0}, {1: 2.0, 0: 2.0})
    (0.5, 1.5)
    """
    both = sorted(set(these) & set(those))
    return tuple(these[round_] / those[round_] for round_ in both if those[round_])


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the power of the size that a cost grows with: 0 is constant, 1 linear, 2 quadratic.

    >>> round(exponent([10, 100, 1000], [5, 50, 500]), 6)
    1.0
    """
    logs = [math.log(size) for size in sizes]
    heights = [math.log(max(cost, 1e-12)) for cost in costs]
    middle, height = statistics.mean(logs), statistics.mean(heights)
    rise = sum((log - middle) * (log_cost - height) for log, log_cost in zip(logs, heights))
    return rise / sum((log - middle) ** 2 for log in logs)


def measured_table(figures: Sequence[Figure]) -> str:
    """Return a table of the figures: median, smallest and largest value over the rounds."""
    rows: list[Sequence[str]] = [("case", "what", "who", "median", "min", "max", "rounds")]
    for case, quantity, who in dict.fromkeys(
        (figure.case, figure.quantity, figure.who) for figure in figures
    ):
        values = [
            figure.value
            for figure in figures
            if (figure.case, figure.quantity, figure.who) == (case, quantity, who)
        ]
        spread = (statistics.median(values), min(values), max(values))
        rows.append((case, quantity, who, *map(number, spread), str(len(values))))
    return aligned(rows)


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """Return a table of the ratios with their goals."""
    head = ("case", "what", "ratio of", "to", "median", "min", "max", "rounds", "goal", "")
    rows: list[Sequence[str]] = [head]
    for ratio in ratios:
        goal = ratio.goal
        spread = (ratio.median, min(ratio.values), max(ratio.values))
        row = (
            ratio.case,
            goal.quantity,
            goal.who,
            goal.against,
            *map(number, spread),
            str(len(ratio.values)),
        )
        rows.append((*row, str(goal), ratio.verdict))
    return aligned(rows)


def seconds_table(measured: Mapping[str, Measured], limit: float) -> str:
    """Return how long each measurement took, and a warning if the whole took longer than the limit."""
    seconds = {name: entry.seconds or 0.0 for name, entry in measured.items()}
    whole = sum(seconds.values())
    rows = [("measurement", "seconds"), *((name, f"{value:.0f}") for name, value in seconds.items())]
    table = aligned([*rows, ("all", f"{whole:.0f}")])
    if whole <= limit:
        return table
    return (
        f"{table}\nWARNING: the run took {whole / 60:.1f} minutes, and should take at most {limit / 60:.0f}."
    )


def markdown(ratios: Sequence[Ratio]) -> str:
    """Return a Markdown table of the ratios with their goals."""
    head = ("", "case", "ratio of", "to", "median", "spread", "rounds", "goal", "")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for ratio in ratios:
        goal = ratio.goal
        what = f"{goal.measurement}: {goal.quantity}"
        spread = f"{number(min(ratio.values))} to {number(max(ratio.values))}"
        sign = str(goal).replace("<=", "≤").replace(">=", "≥")
        verdict = f"**{ratio.verdict.lower()}**" if ratio.met is False else ratio.verdict
        middle, rounds = number(ratio.median), str(len(ratio.values))
        cells = (what, ratio.case, goal.who, goal.against, middle, spread, rounds, sign, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def raw(
    figures: Sequence[Figure],
    ratios: Sequence[Ratio],
    machine: dict[str, Any],
    measured: dict[str, Measured],
    quick: bool = False,
) -> str:
    """Return the figures, the ratios, the machine and the times of the run as JSON."""
    judged = [
        {**asdict(ratio.goal), "case": ratio.case, "values": ratio.values, "met": ratio.met}
        for ratio in ratios
    ]
    content = {
        "machine": machine,
        "quick": quick,
        "measured": {name: asdict(entry) for name, entry in measured.items()},
        "ratios": judged,
        "figures": [asdict(figure) for figure in figures],
    }
    return json.dumps(content, separators=(",", ":"))


def number(value: float) -> str:
    """Return a number with three significant digits.

    >>> [number(value) for value in (0, 0.01234, 1.5, 20, 999.6, 123456.0)]
    ['0', '0.0123', '1.5', '20', '1 000', '123 456']
    """
    # From here on, three digits would be written as 1e+03.
    if abs(value) >= 999.5:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text in columns. Columns of numbers are aligned to the right."""
    columns = max(map(len, rows))
    rows = [(*row, *[""] * (columns - len(row))) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(columns)]
    numeric = [_is_numeric(row[column] for row in rows[1:]) for column in range(columns)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_numeric(cells: Iterable[str]) -> bool:
    return all(re.fullmatch(r"-?[\d. ]+(e[-+]\d+)?", cell) for cell in cells if cell)
