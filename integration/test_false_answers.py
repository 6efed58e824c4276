"""tests/store/test_false_answers.py, with the listings of every case false from each of three on."""

from __future__ import annotations

import pytest

from tests.store.test_false_answers import CASES, check_prune_removes_nothing


@pytest.mark.parametrize("by_the_run", [False, True])
@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize(("prefix", "shape"), CASES)
def test_a_prune_removes_nothing_because_of_a_false_listing(
    prefix: str, shape: str, first: int, by_the_run: bool
) -> None:
    check_prune_removes_nothing(prefix, shape, first, by_the_run)
