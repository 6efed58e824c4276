"""tests/store/test_corruption.py, with every object damaged at many positions in turn."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support import corruption
from tests.support.corruption import check_that_no_damage_goes_unnoticed

pytestmark = pytest.mark.timeout(1800)


def test_a_flipped_bit_is_detected_at_every_position() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.flips, most=120)) > 2000


def test_a_truncated_object_is_detected_at_every_length() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.truncations, most=60)) > 1000


def test_swapped_objects_are_detected() -> None:
    assert check_that_no_damage_goes_unnoticed(corruption.swaps) > 60
