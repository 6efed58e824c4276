"""Compares histories and formats the results of the demo. Everything here is pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from demo.scenario import Outcome

History = Sequence[Sequence[int]]
"""The example ids of each step. A negative id means that there was no example."""

_HEAD = (
    "scenario",
    "runs",
    "kills (mid-save)",
    "expected",
    "seen",
    "lost",
    "repeated",
    "steps off",
    "in model dir",
    "input state",
)
_TEXT_COLUMNS = {0, len(_HEAD) - 1}


@dataclass(frozen=True)
class Comparison:
    """The history of a model compared with that of the uninterrupted run."""

    expected: int
    seen: int
    lost: int
    """Missing examples. One that is missing twice counts twice."""
    repeated: int
    """Surplus examples: how many more times they were seen than they should be."""
    steps_off: int
    """Steps that were trained on other examples, or in another order, than in the uninterrupted run."""

    @property
    def exact(self) -> bool:
        """Whether both histories are the same."""
        return self.lost == self.repeated == self.steps_off == 0


def compare(history: History, reference: History) -> Comparison:
    """Compare a history with the uninterrupted run's.

    >>> compare([[1, 2], [1, 2]], reference=[[1, 2], [3, 4]])
    Comparison(expected=4, seen=4, lost=2, repeated=2, steps_off=1)
    """
    expected, seen = _count(reference), _count(history)
    # A step that only one of the two has counts as different.
    steps_off = abs(len(history) - len(reference)) + sum(
        list(row) != list(wanted) for row, wanted in zip(history, reference)
    )
    return Comparison(
        expected=_size(expected),
        seen=_size(seen),
        lost=_size(expected - seen),
        repeated=_size(seen - expected),
        steps_off=steps_off,
    )


def render(rows: Sequence[tuple[Outcome, Comparison]]) -> str:
    """Return the table, with one line per scenario."""
    cells = [_HEAD, *(_cells(outcome, comparison) for outcome, comparison in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    lines = ["  ".join(_align(row, widths)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(outcome: Outcome, comparison: Comparison) -> tuple[str, ...]:
    megabytes = (
        f"{outcome.state_bytes_in_model_dir / 1e6:.1f} MB" if outcome.state_bytes_in_model_dir else "0"
    )
    return (
        outcome.title,
        str(outcome.runs),
        f"{outcome.kills} ({outcome.mid_save})" if outcome.kills else "0",
        str(comparison.expected),
        str(comparison.seen),
        str(comparison.lost),
        str(comparison.repeated),
        str(comparison.steps_off),
        megabytes,
        outcome.input_uri or "(not saved)",
    )


def _align(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column in _TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths))
    ]


def _count(history: History) -> Counter[int]:
    return Counter(example for row in history for example in row if example >= 0)


def _size(examples: Counter[int]) -> int:
    return sum(examples.values())
