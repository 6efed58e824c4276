"""A mark is read exactly as it was written, or not at all."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import CheckpointRef, CheckpointTooLargeError, CorruptCheckpointError, Mark, MarkRef
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.limits import MAX_MARK_BYTES, MAX_NUMBER
from input_checkpoint.format.mark import decode_mark, encode_mark

BASE = CheckpointRef("main", 1, 500)
REF = MarkRef(CheckpointRef("main", 2, 530), BASE)
MARK = Mark(
    ref=REF,
    draws={"Iterator": 30, "scope/Iterator_1": 0},
    digests={"Iterator": "9f3c"},
    model_digest="0f",
    created=datetime(2026, 3, 4, 12, 30, tzinfo=timezone.utc),
    host="host.example",
    pid=4711,
)


@st.composite
def marks(draw: st.DrawFn) -> Mark:
    base = CheckpointRef("main", draw(st.integers(1, 9)), draw(st.integers(0, 10**6)))
    ref = CheckpointRef("main", draw(st.integers(base.lineage, 10)), draw(st.integers(base.step, 10**13)))
    draws = draw(st.dictionaries(st.text("ab/_:é", max_size=6), st.integers(0, MAX_NUMBER), max_size=4))
    digests = {name: draw(st.text("0123456789abcdef", min_size=1)) for name, count in draws.items() if count}
    return Mark(MarkRef(ref, base), draws, digests, draw(st.none() | st.just("0f")))


def fields_of(mark: Mark) -> dict[str, Any]:
    return json.loads(encode_mark(mark))["mark"]


def record_of(fields: dict[str, Any]) -> bytes:
    """A record with these fields and the right checksum."""
    right = digest(json.dumps(fields, sort_keys=True).encode()).hex()
    return json.dumps({"mark": fields, "digest": right}).encode()


@given(marks())
def test_a_mark_is_decoded_as_it_was_encoded(mark: Mark) -> None:
    assert decode_mark(encode_mark(mark)) == mark


def test_a_stored_mark_has_the_documented_fields() -> None:
    assert fields_of(MARK) == {
        "ref": {"worker": "main", "lineage": 2, "step": 530},
        "base": {"worker": "main", "lineage": 1, "step": 500},
        "draws": {"Iterator": 30, "scope/Iterator_1": 0},
        "digests": {"Iterator": "9f3c"},
        "model_digest": "0f",
        "created": "2026-03-04T12:30:00+00:00",
        "host": "host.example",
        "pid": 4711,
    }


def test_a_mark_says_who_wrote_it() -> None:
    now = datetime.now(timezone.utc)
    mark = decode_mark(encode_mark(Mark(REF, {}, {})))
    assert mark.host
    assert mark.pid > 0
    assert abs((mark.created - now).total_seconds()) < 60


def test_a_mark_without_a_model_digest_can_be_read() -> None:
    assert decode_mark(encode_mark(replace(MARK, model_digest=None))).model_digest is None


def test_a_field_that_a_reader_does_not_know_is_ignored() -> None:
    assert decode_mark(record_of({**fields_of(MARK), "later": 1})) == MARK


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError):
        decode_mark(data)


def test_a_truncated_mark_is_refused_as_corrupt() -> None:
    data = encode_mark(MARK)
    for end in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            decode_mark(data[:end])


@given(st.integers(0), st.integers(0, 7))
def test_a_mark_with_a_flipped_bit_is_refused_or_reads_the_same(at: int, bit: int) -> None:
    data = bytearray(encode_mark(MARK))
    data[at % len(data)] ^= 1 << bit
    with contextlib.suppress(CorruptCheckpointError):
        assert decode_mark(bytes(data)) == MARK


def test_a_mark_with_a_changed_number_fails_its_checksum() -> None:
    damaged = encode_mark(MARK).replace(b'"Iterator": 30', b'"Iterator": 31')
    with pytest.raises(CorruptCheckpointError, match="checksum"):
        decode_mark(damaged)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ref", None),
        ("ref", {"worker": "main", "lineage": 1}),
        ("ref", {"worker": "main", "lineage": 1, "step": True}),
        ("ref", {"worker": "my worker", "lineage": 2, "step": 530}),
        ("base", {"worker": "worker-1", "lineage": 1, "step": 500}),
        ("base", {"worker": "main", "lineage": 3, "step": 500}),
        ("base", {"worker": "main", "lineage": 0, "step": 500}),
        ("base", {"worker": "main", "lineage": 1, "step": 531}),
        ("draws", []),
        ("draws", {"Iterator": -1}),
        ("draws", {"Iterator": 1.0}),
        ("draws", {"Iterator": "30"}),
        ("draws", {"Iterator": 0}),
        ("digests", {}),
        ("digests", {"Iterator": ""}),
        ("digests", {"Iterator": "9F3C"}),
        ("digests", {"Iterator": 5}),
        ("digests", {"Iterator": "9f3c", "other": "9f3c"}),
        ("digests", {"Iterator": "9f3c", "scope/Iterator_1": "9f3c"}),
        ("model_digest", 5),
        ("created", "yesterday"),
        ("host", None),
        ("pid", -1),
    ],
)
def test_a_mark_with_a_wrong_field_is_refused_as_corrupt(field: str, value: Any) -> None:
    with pytest.raises(CorruptCheckpointError, match="cannot be read"):
        decode_mark(record_of({**fields_of(MARK), field: value}))


@pytest.mark.parametrize("field", ["ref", "base", "draws", "digests", "created", "host", "pid"])
def test_a_mark_without_a_field_is_refused_as_corrupt(field: str) -> None:
    fields = fields_of(MARK)
    del fields[field]
    with pytest.raises(CorruptCheckpointError, match="cannot be read"):
        decode_mark(record_of(fields))


def test_a_mark_beyond_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(CorruptCheckpointError, match="more than the format allows"):
        decode_mark(encode_mark(MARK) + b" " * MAX_MARK_BYTES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": {"Iterator": 30, "other": 1}}, "Missing or superfluous: other"),
        ({"draws": {"Iterator": 0}}, "Missing or superfluous: Iterator"),
        ({"draws": {"Iterator": -1}}, "counts -1 draws from Iterator"),
        ({"digests": {"Iterator": "NaN"}}, "not hexadecimal"),
        ({"ref": MarkRef(CheckpointRef("main", 1, -1), CheckpointRef("main", 1, -1))}, "no key can hold"),
        ({"ref": MarkRef(BASE, REF.ref)}, "does not come before it"),
    ],
)
def test_a_mark_that_no_reader_would_accept_is_not_encoded(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_mark(replace(MARK, **changes))


def test_a_mark_that_is_too_large_is_not_encoded() -> None:
    draws = {f"{number}" * 200: 0 for number in range(1000, 4000)}
    with pytest.raises(CheckpointTooLargeError, match=r"step 530.*3000 iterators"):
        encode_mark(Mark(REF, draws, {}))
