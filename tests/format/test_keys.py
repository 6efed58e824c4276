"""Keys: what a parser accepts is exactly what the library itself would write."""

from __future__ import annotations

import re
from typing import Callable, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_checkpoint import CheckpointRef, MarkRef
from input_checkpoint.format.keys import (
    MAX_LINEAGE,
    MAX_STEP,
    announcement_key,
    check_step,
    copy_announcement_key,
    folder_patterns,
    lineage_key,
    manifest_key,
    mark_key,
    pack_key,
    parse_announcement_key,
    parse_checkpoint_key,
    parse_lineage_key,
    parse_mark_key,
    parse_pack_key,
    parse_pin_key,
    pin_key,
    worker_of,
)

workers = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)
lineages = st.integers(1, MAX_LINEAGE) | st.integers(1, 200)
refs = st.builds(CheckpointRef, workers, lineages, st.integers(0, MAX_STEP) | st.integers(0, 10**6))
marks = st.builds(
    lambda ref, lineage, step: MarkRef(ref, CheckpointRef(ref.worker, lineage, step)),
    refs,
    lineages,
    st.integers(0, MAX_STEP) | st.integers(0, 10**6),
).filter(lambda mark: mark.base.lineage <= mark.ref.lineage and mark.base.step <= mark.ref.step)
save_ids = st.from_regex(r"[0-9a-f]{8}", fullmatch=True)

REF = CheckpointRef("main", 1, 10)
MARK = MarkRef(CheckpointRef("main", 1, 10), CheckpointRef("main", 1, 10))
KEYS = {
    "manifest": (manifest_key(REF), parse_checkpoint_key),
    "mark": (mark_key(MARK), parse_mark_key),
    "lineage": (lineage_key("main", 1), parse_lineage_key),
    "announcement": (announcement_key(REF, "0123abcd"), parse_announcement_key),
    "pin": (pin_key(REF), parse_pin_key),
    "pack": (pack_key(REF, "0123abcd", 0), parse_pack_key),
}
every_kind = pytest.mark.parametrize(("key", "parse"), KEYS.values(), ids=KEYS.keys())
Parse = Callable[[str], Optional[object]]


@given(refs, save_ids, st.integers(0, 10**9 - 1))
def test_every_key_that_is_written_is_read_back(ref, save_id, number):
    assert parse_checkpoint_key(manifest_key(ref)) == ref
    assert parse_pin_key(pin_key(ref)) == ref
    assert parse_announcement_key(announcement_key(ref, save_id)) == ref
    assert parse_pack_key(pack_key(ref, save_id, number)) == ref
    assert parse_lineage_key(lineage_key(ref.worker, ref.lineage)) == ref.lineage


@given(marks)
def test_the_key_of_a_mark_names_the_mark_and_its_base(mark):
    assert parse_mark_key(mark_key(mark)) == mark
    assert parse_checkpoint_key(mark_key(mark)) is None


@pytest.mark.parametrize(
    "base",
    [
        pytest.param(CheckpointRef("worker-1", 2, 10), id="another worker"),
        pytest.param(CheckpointRef("main", 3, 10), id="a later run"),
        pytest.param(CheckpointRef("main", 2, 21), id="a later step"),
    ],
)
def test_a_mark_does_not_lean_on_what_comes_after_it(base):
    with pytest.raises(ValueError, match="does not come before it"):
        mark_key(MarkRef(CheckpointRef("main", 2, 20), base))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("000000000020-00000003-000000000010", id="a base of a later run"),
        pytest.param("000000000020-00000001-000000000021", id="a base of a later step"),
        pytest.param("000000000020-00000000-000000000010", id="a base of lineage zero"),
        pytest.param("000000000020-00000001", id="no step of the base"),
        pytest.param("000000000020", id="no base"),
        pytest.param("000000000020-00000001-00000000010", id="a step of the base that is too short"),
        pytest.param("000000000020-0000001-000000000010", id="a lineage of the base that is too short"),
        pytest.param("000000000020-00000001-000000000010-0123abcd", id="an id"),
    ],
)
def test_a_name_that_no_mark_has_is_no_key(name):
    assert parse_mark_key("checkpoints/main/00000002/000000000020-00000001-000000000010.mark") is not None
    assert parse_mark_key(f"checkpoints/main/00000002/{name}.mark") is None


def test_the_announcement_of_a_copy_is_newer_than_every_run():
    save = parse_announcement_key(copy_announcement_key("main", 7, "0123abcd"))
    assert save == CheckpointRef("main", 99_999_999, 7)


# Strings in which anything that a number, a name or an id may consist of comes in any amount.
near = st.from_regex(
    r"(checkpoints|lineages|saves|pins|packs)/[a-zA-Z0-9_\-. ]{0,5}(/[0-9\u0660-\u0669]{0,21}){1,2}"
    r"(-[0-9a-fA-F]{0,9}){0,2}(\.manifest|\.mark|\.json|\.pack|\.Pack|~|\n|)",
    fullmatch=True,
)


near_marks = st.from_regex(
    r"checkpoints/main/0000000[0-9]/[0-9]{11,13}-[0-9]{7}[0-9]?-0000000000[0-9]{1,3}\.mark", fullmatch=True
)


@given(near | near_marks)
def test_whatever_a_parser_accepts_rebuilds_the_very_same_key(key):
    if (ref := parse_checkpoint_key(key)) is not None:
        assert manifest_key(ref) == key
    if (mark := parse_mark_key(key)) is not None:
        assert mark_key(mark) == key
    if (ref := parse_pin_key(key)) is not None:
        assert pin_key(ref) == key
    if (ref := parse_announcement_key(key)) is not None:
        assert announcement_key(ref, key[-8:]) == key
    if (ref := parse_pack_key(key)) is not None:
        save_id, number = key.rpartition(".")[0].split("/")[-1].split("-")[1:]
        assert pack_key(ref, save_id, int(number)) == key
    if (number := parse_lineage_key(key)) is not None:
        assert lineage_key(key.split("/")[1], number) == key


@every_kind
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("/main/", "/my worker/", id="a space in the worker"),
        pytest.param("/main/", "/wörker/", id="a letter that is not ASCII in the worker"),
        pytest.param("/main/", "/-main/", id="a worker that starts with a dash"),
        pytest.param("/main/", "//", id="no worker"),
        pytest.param("/main/", "/main/main/", id="one folder too many"),
        pytest.param("00000001", "0000001", id="a lineage that is too short"),
        pytest.param("00000001", "000000001", id="a lineage with an extra zero"),
        pytest.param("00000001", "0000000\u0661", id="a digit of another script"),
        pytest.param("00000001", "0000000\u00b9", id="a superscript"),
        pytest.param("00000001", "00000000", id="lineage zero"),
        pytest.param("00000001", "+0000001", id="a sign"),
        pytest.param("00000001", "0000_001", id="an underscore between digits"),
        pytest.param("00000001", "9" * 5000, id="more digits than Python converts"),
    ],
)
def test_a_name_that_the_library_would_not_give_is_no_key(key, parse: Parse, old, new):
    assert parse(key) is not None
    assert parse(key.replace(old, new)) is None


@every_kind
@pytest.mark.parametrize("end", ["~", "\n", " ", "/", ".tmp", " (conflicted copy)", "\u200b"])
def test_nothing_may_follow_a_key(key, parse: Parse, end):
    assert parse(key + end) is None


@pytest.mark.parametrize("name", ["manifest", "mark", "announcement", "pin", "pack"])
@pytest.mark.parametrize(
    "step",
    ["00000000010", "0000000000010", "00000000001\u0660", str(MAX_STEP + 1), "-00000000010", "9" * 5000],
)
def test_a_step_has_twelve_digits_or_as_many_as_it_needs(name, step):
    key, parse = KEYS[name]
    assert parse(key.replace("000000000010", step)) is None


@pytest.mark.parametrize("name", ["announcement", "pack"])
@pytest.mark.parametrize("save_id", ["0123abc", "0123abcde", "0123ABCD", "0123abcg", "best.ckpt", ""])
def test_a_save_id_is_eight_hexadecimal_digits(name, save_id):
    key, parse = KEYS[name]
    assert parse(key.replace("0123abcd", save_id)) is None


@pytest.mark.parametrize("number", ["0", "0000", "000000", "0000x", "\u0660" * 5])
def test_a_pack_number_has_five_digits_or_as_many_as_it_needs(number):
    key, parse = KEYS["pack"]
    assert parse(key.replace("-00000.", f"-{number}.")) is None


@every_kind
def test_a_worker_is_known_by_any_of_its_keys(key, parse: Parse):
    assert worker_of(key) == "main"
    assert worker_of(key + "~") is None


@pytest.mark.parametrize("step", [-1, MAX_STEP + 1])
def test_a_step_that_no_key_can_hold_is_refused(step):
    with pytest.raises(ValueError, match=f"not a step: {step}"):
        check_step(step)


@given(refs, save_ids)
def test_every_object_of_a_worker_is_in_one_of_its_folders(ref, save_id):
    keys = (manifest_key(ref), pin_key(ref), announcement_key(ref, save_id), pack_key(ref, save_id, 0))
    for key in (*keys, mark_key(MarkRef(ref, ref)), lineage_key(ref.worker, ref.lineage)):
        folder = key.rpartition("/")[0]
        assert any(re.fullmatch(pattern, folder) for pattern in folder_patterns(ref.worker))
