"""JSON is read as the format allows it, and nothing else is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint.errors import UNREADABLE_JSON
from input_checkpoint.format.limits import MAX_DEPTH
from input_checkpoint.format.strict_json import parse_object, read_flag, read_number, read_objects, read_text

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), values, max_size=5), st.booleans())
def test_what_was_written_is_read(fields, ascii_only):
    assert parse_object(json.dumps(fields, ensure_ascii=ascii_only).encode()) == fields


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"a": 1', id="truncated"),
        pytest.param(b'{"a": 1} {}', id="more than one"),
        pytest.param(b'{"a": NaN}', id="NaN"),
        pytest.param(b'{"a": -Infinity}', id="infinity"),
        pytest.param(b'{"a": 1e999}', id="a float that is infinite"),
        pytest.param(b'{"a": 0.' + b"1" * 1000 + b"}", id="a long float"),
        pytest.param(b'{"a": 9223372036854775808}', id="more than 64 bits"),
        pytest.param(b'{"a": -9223372036854775809}', id="less than 64 bits"),
        pytest.param(b'{"a": ' + b"9" * 1_000_000 + b"}", id="a million digits"),
        pytest.param(b'{"a": 1, "a": 2}', id="the same name twice"),
        pytest.param(b'{"a": {"b": 1, "b": 1}}', id="the same name twice, inside"),
        pytest.param(b'{"a": "\\ud800"}', id="a lone surrogate"),
        pytest.param(b'{"\\uDFFF": 1}', id="a lone surrogate in a name"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', id="an encoded surrogate"),
        pytest.param(b'{"a": "\xff"}', id="not UTF-8"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', id="a byte order mark"),
        pytest.param(b"[" * 1_000_000, id="nested without end"),
        pytest.param(b'{"a":' * 1_000_000, id="objects nested without end"),
        pytest.param(b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", id="nested too deeply"),
    ],
)
def test_anything_else_is_refused(data):
    with pytest.raises(UNREADABLE_JSON):
        parse_object(data)


def test_a_surrogate_pair_is_one_character():
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_nesting_up_to_the_limit_is_read():
    parse_object(b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")


@pytest.mark.parametrize("value", [True, False, None, 1.0, "1", [], {}, -1, 2**63])
def test_a_number_must_be_a_non_negative_integer_of_63_bits(value):
    with pytest.raises((TypeError, ValueError), match="field"):
        read_number({"field": value}, "field")


@pytest.mark.parametrize("value", [0, 1, 2**63 - 1])
def test_a_number_is_read(value):
    assert read_number({"field": value}, "field") == value


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (read_text, 5),
        (read_text, None),
        (read_flag, 1),
        (read_flag, None),
        (read_objects, {}),
        (read_objects, [1]),
    ],
)
def test_a_field_must_have_its_type(read, value):
    with pytest.raises(TypeError, match="field"):
        read({"field": value}, "field")


def test_a_missing_field_is_an_error():
    with pytest.raises(KeyError):
        read_number({}, "field")
