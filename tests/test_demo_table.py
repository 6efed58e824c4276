from __future__ import annotations

from dataclasses import replace

import pytest

from demo.scenario import Outcome
from demo.table import Comparison, compare, render

REFERENCE = [[1, 2], [3, 4], [1, 3]]

OURS = Outcome(
    title="ours",
    runs=5,
    kills=4,
    mid_save=2,
    rolled_back=2,
    input_uri="s3://bucket/input",
    state_bytes_in_model_dir=0,
)


def test_identical_histories_are_exact() -> None:
    found = compare(REFERENCE, REFERENCE)
    assert found == Comparison(expected=6, seen=6, lost=0, repeated=0, steps_off=0)
    assert found.exact


@pytest.mark.parametrize(
    ("history", "lost", "repeated", "steps_off"),
    [
        pytest.param([[1, 2], [1, 2], [3, 4]], 1, 1, 2, id="a repeated step, so the last one is missing"),
        pytest.param([[3, 4], [1, 2], [1, 3]], 0, 0, 2, id="steps in another order"),
        pytest.param([[1, 2], [4, 3], [1, 3]], 0, 0, 1, id="examples of a step in another order"),
        pytest.param([[1, 2], [3, 4], [-1, -1]], 2, 0, 1, id="a step that was never trained"),
        pytest.param([[1, 2], [3, 4]], 2, 0, 1, id="a shorter history"),
        pytest.param([*REFERENCE, [2, 2]], 0, 2, 1, id="a longer history"),
    ],
)
def test_differences_are_counted(history: list[list[int]], lost: int, repeated: int, steps_off: int) -> None:
    found = compare(history, REFERENCE)
    assert (found.lost, found.repeated, found.steps_off) == (lost, repeated, steps_off)
    assert not found.exact


def test_the_table_has_one_line_per_scenario() -> None:
    theirs = replace(OURS, title="theirs", input_uri="model", state_bytes_in_model_dir=17_700_000)
    exact = compare(REFERENCE, REFERENCE)
    head, rule, first, second = render([(OURS, exact), (theirs, exact)]).splitlines()
    assert head.split()[:2] == ["scenario", "runs"]
    assert set(rule) == {"-"}
    assert first.split() == ["ours", "5", "4", "(2)", "6", "6", "0", "0", "0", "0", "s3://bucket/input"]
    assert second.split()[-3:] == ["17.7", "MB", "model"]


def test_the_columns_are_aligned() -> None:
    uninterrupted = replace(OURS, title="uninterrupted", runs=1, kills=0, input_uri="")
    exact = compare(REFERENCE, REFERENCE)
    lines = render([(uninterrupted, exact), (OURS, exact)]).splitlines()
    column = lines[0].index("input state")
    assert [line[column:] for line in lines[2:]] == ["(not saved)", "s3://bucket/input"]
