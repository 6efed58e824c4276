"""tests/store/test_incremental.py, with as many saves as the benchmark, at every turnover."""

from __future__ import annotations

import pytest

from benchmarks.incremental import BUFFERS, SAVES, TURNOVERS, measure


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("turnover", TURNOVERS)
@pytest.mark.parametrize(("elements", "element_bytes"), BUFFERS)
def test_uploads_and_reads_stay_within_their_limits_after_many_saves(
    turnover: float, elements: int, element_bytes: int
) -> None:
    saves = SAVES if turnover < 1 else 10
    assert measure(turnover, saves, elements, element_bytes).missed(turnover) == []
