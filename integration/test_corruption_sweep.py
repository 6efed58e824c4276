"""tests/test_corruption.py, with each object damaged at many places in turn."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support import corruption
from tests.support.corruption import check_that_no_damage_goes_unnoticed

pytestmark = pytest.mark.timeout(1800)


def test_a_flipped_bit_is_noticed_wherever_it_is() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.flips, most=120)) > 2000


def test_an_object_cut_short_is_noticed_wherever_it_ends() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.truncations, most=60)) > 1000
