"""Fills the tables of figures in the documentation from the raw figures of a run.

Run it with ``python -m benchmarks.documentation docs/benchmarks/raw.json``. A table stands between two
markers, ``<!-- figures: stall -->`` and ``<!-- end of figures -->``. `TABLES` has the names that a marker may
use. With ``--check``, nothing is written, and a document that differs is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from benchmarks.report import MEASUREMENTS, Figure, Goal, Measured, Ratio, number

DOCUMENTS = (Path("README.md"), Path("docs/benchmarks.md"))

_MARKED = re.compile(
    r"(?P<begin><!-- figures: (?P<name>[^>]+?) -->\n)(?P<table>.*?)(?P<end><!-- end of figures -->)",
    re.DOTALL,
)
_BEGIN, _END = "<!-- figures:", "<!-- end of figures -->"
_ABSENT = "*Not part of this run.*"

_UNITS: Mapping[str, Sequence[tuple[float, str]]] = {
    "s": ((1.0, "s"), (1e-3, "ms")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")),
    "bytes/s": ((1e6, "MB/s"),),
    "µs": ((1.0, "µs"),),
}


class DocumentationError(Exception):
    """The documents and the figures do not fit together."""


@dataclass(frozen=True)
class Results:
    """The raw figures of a run, as `report.raw` writes them."""

    machine: Mapping[str, Any]
    figures: Sequence[Figure]
    ratios: Sequence[Ratio]
    measured: Mapping[str, Measured]
    """When, and for how many seconds, each measurement ran."""
    quick: bool

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read what `report.raw` has written."""
        content = json.loads(text)
        return cls(
            content["machine"],
            [Figure(**figure) for figure in content["figures"]],
            [_ratio(entry) for entry in content["ratios"]],
            {name: Measured(**entry) for name, entry in content["measured"].items()},
            content["quick"],
        )


@dataclass(frozen=True)
class Row:
    """Rows of the short table: one quantity, ours and a competitor's, in a few cases."""

    what: str
    measurement: str
    quantity: str
    ours: str = "ours"
    theirs: str = "TensorFlow's hook"
    kinds: Sequence[str] = ("pictures", "tokens", "256 B")
    """For each of these, the row of the last case whose name starts with it: the largest state, the longest
    interval, or a checkpoint that is not in the page cache."""


SHORT = (
    Row("training pauses for a save", "stall", "stall [s]"),
    Row("a restart, from the start of the process to the end of its first step", "restart",
        "from the start of the process to the end of the first step [s]",
        kinds=("pictures 3 000", "pictures 10 000", "tokens", "256 B")),
    Row("a restart, from the start of the hooks until the second step begins", "restart",
        "from begin() until the second step begins [s]",
        kinds=("pictures 3 000", "pictures 10 000", "tokens", "256 B")),
    Row("a save writes", "upload", "uploaded per save [bytes]"),
)  # fmt: skip


def filled(text: str, results: Results) -> str:
    """Return the document with every marked table replaced.

    Raises:
        DocumentationError: a marker has no such table, or has no end.
    """
    if text.count(_BEGIN) != len(_MARKED.findall(text)) or text.count(_END) != text.count(_BEGIN):
        raise DocumentationError(f"each {_BEGIN} … --> needs its own {_END}")

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise DocumentationError(f"there is no table {name!r}; there are: {', '.join(TABLES)}")
        return f"{match['begin']}\n{TABLES[name](results)}\n\n{match['end']}"

    return _MARKED.sub(replaced, text)


def run_table(results: Results) -> str:
    """Return when and how long each measurement ran, and how many of its goals were met."""
    lines = ["| measurement | date | seconds | judged ratios | met |", "|---|---|---|---|---|"]
    judged = [ratio for ratio in results.ratios if ratio.met is not None]
    total: list[Optional[float]] = []
    for name, measured in results.measured.items():
        verdicts = [bool(ratio.met) for ratio in judged if ratio.goal.measurement == name]
        total.append(measured.seconds)
        cells = (f"`{name}`", measured.date, _seconds(measured.seconds), len(verdicts), sum(verdicts))
        lines.append(_line(cells))
    known = [seconds for seconds in total if seconds is not None]
    whole = _seconds(sum(known) if len(known) == len(total) else None)
    lines.append(_line(("all", "", whole, len(judged), sum(bool(ratio.met) for ratio in judged))))
    return "\n".join([*lines, "", _machine(results.machine)])


def short_table(results: Results) -> str:
    """Return the few rows that a user asks for first, each with a competitor."""
    lines = ["| | pipeline | ours | TensorFlow's hook | ours / TensorFlow's |", "|---|---|---|---|---|"]
    for row in SHORT:
        figures = [
            figure
            for figure in results.figures
            if (figure.measurement, figure.quantity) == (row.measurement, row.quantity)
        ]
        goal = Goal(row.measurement, row.quantity, row.ours, row.theirs)
        by_case = {ratio.case: ratio for ratio in goal.ratios(figures)}
        for case in _last_of_each_kind(list(by_case), row.kinds):
            cells = [_cell(row.quantity, _values(figures, case, who)) for who in (row.ours, row.theirs)]
            lines.append(_line((row.what, case, *cells, _cell("", by_case[case].values))))
        if not by_case:
            lines.append(_line((row.what, _ABSENT, "", "", "")))
    return "\n".join(lines)


def figures_table(measurement: str, results: Results) -> str:
    """Return the figures of a measurement: a table per quantity, a row per case, a column per candidate."""
    figures = [figure for figure in results.figures if figure.measurement == measurement]
    tables = []
    for quantity in _unique(figure.quantity for figure in figures):
        chosen = [figure for figure in figures if figure.quantity == quantity]
        names = [name for name in _unique(figure.who for figure in chosen) if not _is_one(chosen, name)]
        lines = [_line((quantity, *names)), "|---" * (len(names) + 1) + "|"]
        for case in _unique(figure.case for figure in chosen):
            cells = (_cell(quantity, _values(chosen, case, name)) for name in names)
            lines.append(_line((case, *cells)))
        tables.append("\n".join(lines))
    return "\n\n".join(tables) or _ABSENT


def goals_table(measurement: str, results: Results) -> str:
    """Return the judged ratios of a measurement: a row per case, a column per goal.

    Goals that differ only in the cases that they are about share a column.
    """
    judged = [ratio for ratio in results.ratios if ratio.goal.measurement == measurement]
    judged = [ratio for ratio in judged if ratio.met is not None]
    if not judged:
        return _ABSENT
    goals = _unique(_heading(ratio.goal) for ratio in judged)
    lines = [_line(("", *goals)), "|---" * (len(goals) + 1) + "|"]
    for case in _unique(ratio.case for ratio in judged):
        cells = {_heading(ratio.goal): _judged(ratio) for ratio in judged if ratio.case == case}
        lines.append(_line((case, *(cells.get(goal, "") for goal in goals))))
    return "\n".join(lines)


def exponents_table(measurement: str, results: Results) -> str:
    """Return the exponents of a measurement whose cases are ``subject: cost``: a row per cost."""
    found = [ratio for ratio in results.ratios if ratio.goal.measurement == measurement]
    if not found:
        return _ABSENT
    by_place = {tuple(ratio.case.split(": ", 1)): ratio for ratio in found}
    subjects = _unique(subject for subject, _ in by_place)
    lines = [_line(("exponent of", *(f"by {subject}" for subject in subjects)))]
    lines.append("|---" * (len(subjects) + 1) + "|")
    for cost in _unique(cost for _, cost in by_place):
        ratios = (by_place.get((subject, cost)) for subject in subjects)
        lines.append(_line((cost, *("" if ratio is None else _bounded(ratio) for ratio in ratios))))
    return "\n".join(lines)


def _for(table: Callable[[str, Results], str], measurement: str) -> Callable[[Results], str]:
    return lambda results: table(measurement, results)


TABLES: Mapping[str, Callable[[Results], str]] = {
    "the run": run_table,
    "in short": short_table,
    **{name: _for(figures_table, name) for name in MEASUREMENTS},
    **{f"goals of {name}": _for(goals_table, name) for name in MEASUREMENTS},
    "exponents of growth": _for(exponents_table, "growth"),
}


def cell(quantity: str, values: Sequence[float]) -> str:
    """Return the median, the spread and the number of rounds.

    >>> cell("stall [s]", [0.004, 0.005, 0.0123])
    '5 ms (4 to 12.3; 3 rounds)'
    >>> cell("uploaded [bytes]", [2e6, 2e6])
    '2 MB (2 rounds, all equal)'
    >>> cell("stall [s]", [17.9])
    '17.9 s (1 round)'
    """
    middle = statistics.median(values)
    factor, unit = _scale(quantity, middle)
    median, least, most = (number(value / factor) for value in (middle, min(values), max(values)))
    shown = f"{median} {unit}".strip()
    if len(values) == 1:
        return f"{shown} (1 round)"
    if least == most:
        return f"{shown} ({len(values)} rounds, all equal)"
    return f"{shown} ({least} to {most}; {len(values)} rounds)"


def _cell(quantity: str, values: Sequence[float]) -> str:
    return cell(quantity, values) if values else ""


def _scale(quantity: str, value: float) -> tuple[float, str]:
    """Return what to divide by, and the unit. A quantity has its unit in brackets, or begins with it."""
    bracketed = re.search(r"\[(.+)\]$", quantity)
    unit = bracketed[1] if bracketed else quantity.split(" ", 1)[0]
    scales = _UNITS.get(unit, ((1.0, ""),))
    return next((scale for scale in scales if abs(value) >= scale[0]), scales[-1])


def _judged(ratio: Ratio) -> str:
    return f"{_cell('', ratio.values)} {'met' if ratio.met else '**missed**'}"


def _bounded(ratio: Ratio) -> str:
    if ratio.met is None:
        return f"{_cell('', ratio.values)}, no goal"
    return f"{_cell('', ratio.values)}, {_sign(ratio.goal)}: {'met' if ratio.met else '**missed**'}"


def _heading(goal: Goal) -> str:
    return f"{goal.quantity}: {goal.who} / {goal.against}, {_sign(goal)}"


def _sign(goal: Goal) -> str:
    return str(goal).replace("<=", "≤").replace(">=", "≥")


def _ratio(entry: Mapping[str, Any]) -> Ratio:
    fields = {key: value for key, value in entry.items() if key not in ("case", "values", "met")}
    return Ratio(Goal(**fields), entry["case"], tuple(entry["values"]))


def _values(figures: Iterable[Figure], case: str, who: str) -> list[float]:
    # One per round: some figures, such as the size of the state, are noted several times.
    return list(
        {
            figure.round: figure.value for figure in figures if (figure.case, figure.who) == (case, who)
        }.values()
    )


def _is_one(figures: Iterable[Figure], who: str) -> bool:
    """Return whether a candidate is only the number 1, to compare others with."""
    return all(figure.value == 1 for figure in figures if figure.who == who)


def _last_of_each_kind(cases: Sequence[str], kinds: Sequence[str]) -> list[str]:
    of_kind = ([case for case in cases if case.startswith(kind)] for kind in kinds)
    return [found[-1] for found in of_kind if found]


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _seconds(seconds: Optional[float]) -> str:
    return "not recorded" if seconds is None else f"{seconds:.0f}"


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in _HARDWARE)
    hardware = "{processors} processors ({architecture}), {system}".format(**machine)
    return f"{hardware}; {versions}."


_HARDWARE = ("processors", "architecture", "system")


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Fill or check the documents. Return 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(description="Fills the tables of figures in the documentation.")
    parser.add_argument("raw", type=Path, help="what python -m benchmarks --json has written")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a document differs")
    options = parser.parse_args(arguments)
    results = Results.from_json(options.raw.read_text())
    if results.quick:
        print(f"{options.raw} has the figures of a quick run, which nobody should quote.", file=sys.stderr)
        return 1
    different = []
    for path in DOCUMENTS:
        before = path.read_text()
        try:
            after = filled(before, results)
        except DocumentationError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
        if after != before:
            different.append(path)
            if not options.check:
                path.write_text(after)
    for path in different:
        print(f"{path} {'differs from' if options.check else 'now has'} the figures of {options.raw}.")
    return 1 if options.check and different else 0


if __name__ == "__main__":
    sys.exit(main())
