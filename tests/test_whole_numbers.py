"""Steps and counts may be of any integer type, and become plain ints."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from input_checkpoint.whole_numbers import optional_whole_number, plain_number, whole_number


@pytest.mark.parametrize("value", [7, np.int64(7), np.int32(7), np.uint8(7), np.array(7)])
def test_an_integer_of_any_type_becomes_an_int(value: Any) -> None:
    number = whole_number("step", value)
    assert (type(number), number) == (int, 7)


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 7.0, np.float64(7), np.float32(7), "7", None, [7], Fraction(7)]
)
def test_anything_else_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^step must be a whole number, got "):
        whole_number("step", value)


def test_an_optional_number_may_be_missing() -> None:
    assert optional_whole_number("step", None) is None
    assert optional_whole_number("step", np.int64(7)) == 7


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.int64(24), "24"), (np.float64(0.5), "0.5"), (np.float32(0.5), "0.5"), (0.5, "0.5"), ("x", "'x'")],
)
def test_a_number_of_any_type_is_shown_as_a_plain_one(value: Any, plain: str) -> None:
    assert repr(plain_number(value)) == plain
