"""A save uploads little more than what has changed, and a restore reads little more than the state.

Bytes and objects are counted, so the results are the same on every machine.
integration/test_incremental_at_length.py makes as many saves as the benchmark.
"""

from __future__ import annotations

import pytest

from benchmarks import incremental
from benchmarks.incremental import BAR_TURNOVER, OBJECTS_BAR, RESTORE_BAR, UPLOAD_BAR, Figures, measure


@pytest.fixture(scope="module", params=[(800, 20_000), (8_000, 2_048)], ids=["20 kB", "2 KiB"])
def figures(request: pytest.FixtureRequest) -> Figures:
    elements, element_bytes = request.param
    return measure(BAR_TURNOVER, 40, elements, element_bytes)


def test_a_save_uploads_at_most_8_percent_when_5_percent_have_changed(figures: Figures) -> None:
    assert max(figures.uploads) <= UPLOAD_BAR * figures.full


def test_a_restore_after_many_saves_reads_at_most_one_and_a_half_times_the_state(figures: Figures) -> None:
    assert figures.read <= RESTORE_BAR


def test_a_restore_after_many_saves_reads_at_most_four_times_the_objects_of_a_full_save(
    figures: Figures,
) -> None:
    assert figures.objects <= OBJECTS_BAR


def test_the_benchmark_lists_the_limits_that_were_exceeded() -> None:
    assert Figures(100, (8, 9), 1.6, 4.1).missed(BAR_TURNOVER) == [
        "a restore reads 1.60 times the state, the limit is 1.5",
        "a restore reads 4.10 times the objects of a full save, the limit is 4.0",
        "the largest save uploads 0.0900 of a full one, the limit is 0.08",
    ]


def test_the_benchmark_prints_bytes_and_counts_exceeded_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Figures(full=2_000_000, uploads=(100_000, 180_000), read=1.2, objects=2.0)
    monkeypatch.setattr(incremental, "measure", lambda *args: found)
    exceeded = incremental.main()
    assert exceeded == len(incremental.BUFFERS)
    assert "0.14 MB   7.0%      0.18 MB   9.0%" in capsys.readouterr().out
