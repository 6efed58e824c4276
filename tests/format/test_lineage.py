"""History is a line, however often a run is restarted from somewhere."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import CheckpointRef, CorruptCheckpointError
from input_checkpoint.format.chunking import digest
from input_checkpoint.format.lineage import (
    Ancestor,
    Lineage,
    abandoned_checkpoints,
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
    """Several restarts, each from somewhere in the history.

    Returns the last lineage, everything that was ever stored, and the history it must see.
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
def test_a_restart_takes_over_the_line_up_to_its_parent(newest, parent, present, expected):
    following = next_lineage("main", newest, parent and ref(*parent), present)
    assert following.number == newest.number + 1
    assert ancestors(following) == expected


@given(runs())
def test_history_is_what_was_written_before_each_restart_and_nothing_else(run):
    current, stored, line = run
    assert current.history(stored) == line


@given(runs())
def test_history_runs_from_old_to_new_steps(run):
    current, stored, _ = run
    steps = [entry.step for entry in current.history(stored)]
    assert steps == sorted(set(steps))


@given(runs())
def test_a_record_names_only_ancestors_of_which_something_is_left(run):
    current, stored, _ = run
    assert {ancestor.lineage for ancestor in current.ancestors} <= {entry.lineage for entry in stored}


def test_a_lineage_that_a_hundred_restarts_did_not_use_stays_small():
    current, present = next_lineage("main", None, None, []), refs((1, 10))
    for _ in range(100):
        current = next_lineage("main", current, ref(1, 10), present)
    assert ancestors(current) == [(1, 10)]


def test_another_worker_has_another_history():
    assert not lineage(1).holds(ref(1, 10, worker="worker-1"))


def test_what_an_older_lineage_wrote_past_the_restart_is_not_held():
    assert [lineage(2, (1, 20)).holds(ref(1, step)) for step in (10, 20, 21)] == [True, True, False]


@pytest.mark.parametrize(
    ("own", "given_up"),
    [((), []), ((30,), []), ((30, 40), [(1, 30), (1, 40)]), ((30, 40, 50), [(1, 30), (1, 40)])],
)
def test_what_was_left_behind_is_given_up_after_two_commits(own, given_up):
    stored = refs((1, 10), (1, 20), (1, 30), (1, 40), *((2, step) for step in own))
    assert abandoned_checkpoints(lineage(2, (1, 20)), stored) == refs(*given_up)


def test_what_a_newer_lineage_wrote_is_never_given_up():
    assert abandoned_checkpoints(lineage(2, (1, 20)), refs((1, 20), (2, 30), (2, 40), (3, 50))) == []


@given(runs())
def test_nothing_of_the_history_is_ever_given_up(run):
    current, stored, line = run
    committed = [*stored, ref(current.number, 10_000), ref(current.number, 10_001)]
    assert not set(abandoned_checkpoints(current, committed)) & set(line)


@given(runs())
def test_a_record_comes_back_as_it_was_written(run):
    assert decode_lineage(encode_lineage(run[0])) == run[0]


@pytest.mark.parametrize(
    "created",
    ["2026-03-04T12:00:00", "2026-03-04T12:00:00Z", "2026-03-04T12:00:00+00:00", "2026-03-04T13:00:00+01:00"],
)
def test_a_time_is_read_in_utc_also_if_no_zone_is_given(created):
    fields = {**json.loads(encode_lineage(lineage(2, (1, 20))))["lineage"], "created": created}
    right = digest(json.dumps(fields, sort_keys=True).encode()).hex()
    found = decode_lineage(json.dumps({"lineage": fields, "digest": right}).encode()).created
    assert (found, found.utcoffset()) == (datetime(2026, 3, 4, 12, tzinfo=timezone.utc), timedelta(0))


@given(runs())
def test_what_a_lost_run_has_saved_is_its_history_whatever_came_before(run):
    current, stored, _ = run
    own = [ref(current.number + 1, step) for step in (10_000, 10_010)]
    assert infer_lineage("main", current.number + 1, current, own).history([*stored, *own])[-2:] == own


@given(runs())
def test_the_guessed_history_of_a_lost_run_goes_from_old_to_new_steps(run):
    current, stored, _ = run
    own = [ref(current.number + 1, step) for step in (15, 25)]
    steps = [
        found.step
        for found in infer_lineage("main", current.number + 1, current, own).history([*stored, *own])
    ]
    assert steps == sorted(set(steps))


def test_a_lost_run_that_has_saved_nothing_has_the_history_of_the_one_before():
    stored = refs((1, 10), (1, 20), (1, 30), (2, 25))
    assert infer_lineage("main", 3, lineage(2, (1, 20)), stored).history(stored) == refs(
        (1, 10), (1, 20), (2, 25)
    )


def test_a_lost_run_was_not_started_from_a_step_that_it_came_to_itself():
    stored = refs((1, 10), (1, 20), (1, 30), (2, 20), (2, 30))
    assert infer_lineage("main", 2, lineage(1), stored).history(stored) == refs((1, 10), (2, 20), (2, 30))


def test_two_lineages_of_the_same_number_are_told_apart():
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


def test_a_record_cut_short_is_refused_as_corrupt():
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
