"""The history of a worker is linear, however often and from wherever its runs are resumed."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import CheckpointRef, CorruptCheckpointError, MarkRef
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.lineage import (
    Ancestor,
    InferredLineage,
    Lineage,
    abandoned_checkpoints,
    abandoned_marks,
    decode_lineage,
    encode_lineage,
    infer_lineage,
    next_lineage,
)


def ref(lineage: int, step: int, worker: str = "main") -> CheckpointRef:
    return CheckpointRef(worker, lineage, step)


def lineage(number: int, *ancestors: tuple[int, int]) -> Lineage:
    return Lineage("main", number, tuple(Ancestor(*ancestor) for ancestor in ancestors))


def ancestors(of: Lineage) -> list[tuple[int, int]]:
    return [(ancestor.lineage, ancestor.last_step) for ancestor in of.ancestors]


def refs(*pairs: tuple[int, int]) -> list[CheckpointRef]:
    return [ref(*pair) for pair in pairs]


@st.composite
def runs(draw: st.DrawFn) -> tuple[Lineage, list[CheckpointRef], list[CheckpointRef]]:
    """Several restarts, each from a checkpoint of the history.

    Returns the last lineage, every checkpoint ever stored, and the history that the lineage must have.
    """
    current = next_lineage("main", None, None, [])
    stored: list[CheckpointRef] = []
    line: list[CheckpointRef] = []
    for _ in range(draw(st.integers(1, 6))):
        step = line[-1].step if line else 0
        for stride in draw(st.lists(st.integers(1, 20), max_size=5)):
            step += stride
            stored.append(ref(current.number, step))
            line.append(stored[-1])
        parent = draw(st.none() | st.sampled_from(line)) if line else None
        line = line[: line.index(parent) + 1] if parent else []
        current = next_lineage("main", current, parent, stored)
    return current, stored, line


def test_the_first_lineage_is_number_one_and_has_no_ancestors():
    first = next_lineage("main", None, None, [])
    assert (first.number, first.ancestors) == (1, ())


@pytest.mark.parametrize(
    ("newest", "parent", "present", "expected"),
    [
        pytest.param(lineage(1), (1, 20), refs((1, 10), (1, 20)), [(1, 20)], id="from the newest"),
        pytest.param(lineage(1), (1, 10), refs((1, 10), (1, 20)), [(1, 10)], id="from an older one"),
        pytest.param(lineage(1), None, refs((1, 10)), [], id="from the beginning"),
        pytest.param(
            lineage(2, (1, 20)), (2, 30), refs((1, 20), (2, 30)), [(2, 30), (1, 20)], id="two restarts"
        ),
        pytest.param(
            lineage(2, (1, 20)),
            (1, 10),
            refs((1, 10), (1, 20), (2, 30)),
            [(1, 10)],
            id="past a whole lineage",
        ),
        pytest.param(lineage(2, (1, 20)), (1, 20), refs((1, 20)), [(1, 20)], id="nothing saved in between"),
        pytest.param(lineage(2, (1, 20)), (2, 30), refs((2, 30)), [(2, 30)], id="the oldest was pruned"),
    ],
)
def test_a_restart_continues_the_history_up_to_its_parent(newest, parent, present, expected):
    following = next_lineage("main", newest, parent and ref(*parent), present)
    assert following.number == newest.number + 1
    assert ancestors(following) == expected


@given(runs())
def test_the_history_is_what_was_saved_before_each_restart_and_nothing_else(run):
    current, stored, line = run
    assert current.history(stored) == line


@given(runs())
def test_the_history_is_sorted_from_the_oldest_to_the_newest_step(run):
    current, stored, _ = run
    steps = [entry.step for entry in current.history(stored)]
    assert steps == sorted(set(steps))


@given(runs())
def test_a_record_lists_only_ancestors_that_have_checkpoints(run):
    current, stored, _ = run
    assert {ancestor.lineage for ancestor in current.ancestors} <= {entry.lineage for entry in stored}


def test_a_record_stays_small_after_a_hundred_restarts_from_the_same_checkpoint():
    current, present = next_lineage("main", None, None, []), refs((1, 10))
    for _ in range(100):
        current = next_lineage("main", current, ref(1, 10), present)
    assert ancestors(current) == [(1, 10)]


def test_another_worker_has_another_history():
    assert not lineage(1).holds(ref(1, 10, worker="worker-1"))


def test_what_an_older_lineage_saved_after_the_restart_is_not_part_of_the_history():
    assert [lineage(2, (1, 20)).holds(ref(1, step)) for step in (10, 20, 21)] == [True, True, False]


@pytest.mark.parametrize(
    ("own", "abandoned"),
    [((), []), ((30,), []), ((30, 40), [(1, 30), (1, 40)]), ((30, 40, 50), [(1, 30), (1, 40)])],
)
def test_older_checkpoints_outside_the_history_are_abandoned_after_two_commits(own, abandoned):
    stored = refs((1, 10), (1, 20), (1, 30), (1, 40), *((2, step) for step in own))
    assert abandoned_checkpoints(lineage(2, (1, 20)), stored) == refs(*abandoned)


def test_what_a_newer_lineage_saved_is_never_abandoned():
    assert abandoned_checkpoints(lineage(2, (1, 20)), refs((1, 20), (2, 30), (2, 40), (3, 50))) == []


def mark(of: tuple[int, int], base: tuple[int, int]) -> MarkRef:
    return MarkRef(ref(*of), ref(*base))


@pytest.mark.parametrize(("own", "abandoned"), [((), False), ((30,), False), ((30, 40), True)])
def test_older_marks_outside_the_history_are_abandoned_after_two_commits(own, abandoned):
    stored = refs((1, 10), (1, 20), *((2, step) for step in own))
    behind, held = mark((1, 25), (1, 20)), [mark((1, 15), (1, 10)), mark((2, 25), (1, 20))]
    assert abandoned_marks(lineage(2, (1, 20)), stored, [behind, *held]) == ([behind] if abandoned else [])


def test_marks_do_not_count_as_commits_of_the_newest_run():
    marks = [mark((1, 25), (1, 20)), mark((2, 25), (1, 20)), mark((2, 35), (2, 30))]
    assert abandoned_marks(lineage(2, (1, 20)), refs((1, 20), (2, 30)), marks) == []


def test_a_mark_of_a_newer_lineage_is_never_abandoned():
    stored = refs((1, 20), (2, 30), (2, 40))
    assert abandoned_marks(lineage(2, (1, 20)), stored, [mark((3, 50), (2, 40))]) == []


def test_no_mark_is_abandoned_while_the_history_is_inferred():
    inferred = InferredLineage("main", 2, (Ancestor(1, 20),))
    stored = refs((1, 20), (2, 30), (2, 40))
    assert abandoned_marks(inferred, stored, [mark((1, 25), (1, 20))]) == []


@given(runs())
def test_no_part_of_the_history_is_ever_abandoned(run):
    current, stored, line = run
    committed = [*stored, ref(current.number, 10_000), ref(current.number, 10_001)]
    assert not set(abandoned_checkpoints(current, committed)) & set(line)


@given(runs())
def test_a_record_is_decoded_as_it_was_encoded(run):
    assert decode_lineage(encode_lineage(run[0])) == run[0]


@pytest.mark.parametrize(
    "created",
    ["2026-03-04T12:00:00", "2026-03-04T12:00:00Z", "2026-03-04T12:00:00+00:00", "2026-03-04T13:00:00+01:00"],
)
def test_a_time_is_decoded_in_utc_even_without_a_time_zone(created):
    fields = {**json.loads(encode_lineage(lineage(2, (1, 20))))["lineage"], "created": created}
    right = digest(json.dumps(fields, sort_keys=True).encode()).hex()
    found = decode_lineage(json.dumps({"lineage": fields, "digest": right}).encode()).created
    assert (found, found.utcoffset()) == (datetime(2026, 3, 4, 12, tzinfo=timezone.utc), timedelta(0))


@given(runs())
def test_the_checkpoints_of_an_inferred_lineage_are_part_of_its_history(run):
    current, stored, _ = run
    own = [ref(current.number + 1, step) for step in (10_000, 10_010)]
    assert infer_lineage("main", current.number + 1, current, own).history([*stored, *own])[-2:] == own


@given(runs())
def test_the_history_of_an_inferred_lineage_is_sorted_from_the_oldest_to_the_newest_step(run):
    current, stored, _ = run
    own = [ref(current.number + 1, step) for step in (15, 25)]
    steps = [
        found.step
        for found in infer_lineage("main", current.number + 1, current, own).history([*stored, *own])
    ]
    assert steps == sorted(set(steps))


def test_an_inferred_lineage_without_checkpoints_has_the_history_of_the_previous_lineage():
    stored = refs((1, 10), (1, 20), (1, 30), (2, 25))
    assert infer_lineage("main", 3, lineage(2, (1, 20)), stored).history(stored) == refs(
        (1, 10), (1, 20), (2, 25)
    )


def test_an_inferred_lineage_did_not_resume_from_a_step_after_its_own_first_one():
    stored = refs((1, 10), (1, 20), (1, 30), (2, 20), (2, 30))
    assert infer_lineage("main", 2, lineage(1), stored).history(stored) == refs((1, 10), (2, 20), (2, 30))


def test_two_lineages_with_the_same_number_differ():
    assert next_lineage("main", None, None, []) != next_lineage("main", None, None, [])


def test_a_record_says_who_wrote_it():
    now = datetime.now(timezone.utc)
    opened = decode_lineage(encode_lineage(next_lineage("main", None, None, [])))
    assert opened.host
    assert opened.pid > 0
    assert abs((opened.created - now).total_seconds()) < 60


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_corrupt(data):
    with pytest.raises(CorruptCheckpointError):
        decode_lineage(data)


def test_a_truncated_record_is_refused_as_corrupt():
    data = encode_lineage(lineage(2, (1, 20)))
    for end in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            decode_lineage(data[:end])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", None),
        ("number", "one"),
        ("number", float("inf")),
        ("ancestors", 5),
        ("ancestors", [1]),
        ("ancestors", [{"lineage": 1}]),
        ("ancestors", [{"lineage": 1, "last_step": float("inf")}]),
        ("created", "yesterday"),
        ("created", 5),
    ],
)
def test_a_record_with_a_wrong_field_is_refused_as_corrupt(field, value):
    fields = {**json.loads(encode_lineage(lineage(2, (1, 20))))["lineage"], field: value}
    right = digest(json.dumps(fields, sort_keys=True).encode()).hex()
    with pytest.raises(CorruptCheckpointError):
        decode_lineage(json.dumps({"lineage": fields, "digest": right}).encode())


def test_a_record_nested_too_deeply_is_refused_as_corrupt():
    with pytest.raises(CorruptCheckpointError):
        decode_lineage(b"[" * 200_000)


def test_a_record_with_a_changed_digit_is_refused_as_corrupt():
    damaged = encode_lineage(lineage(2, (1, 20))).replace(b'"last_step": 20', b'"last_step": 90')
    assert b'"last_step": 90' in damaged
    with pytest.raises(CorruptCheckpointError):
        decode_lineage(damaged)
