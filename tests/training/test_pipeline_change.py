"""What has changed between two pipelines, and what follows from it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.training.pipeline_change import (
    FINGERPRINT_VERSION,
    MAX_FINGERPRINT_BYTES,
    Effect,
    Fingerprint,
    PipelineChange,
    Transformation,
    check_on_pipeline_change,
    compare,
    compare_all,
    judge,
)

RANGE = Transformation("Range", content={"stop": "100"}, elements="int64[]")
SHUFFLE = Transformation("Shuffle", (0,), layout={"buffer_size": "1000"}, elements="int64[]")
FLAT_MAP = Transformation("FlatMap", (1,), content={"function f": "aa"}, elements="string[]")
LINES = Transformation("TextLine", depth=1, content={"filenames": "computed (1)"})
BATCH = Transformation("Batch", (2,), elements="string[?]")
PIPELINE = (RANGE, SHUFFLE, FLAT_MAP, LINES, BATCH)


def fingerprint(*transformations: Transformation, producer: str = "2.15") -> Fingerprint:
    return Fingerprint.of(transformations, producer)


def changes(*now: Transformation) -> list[tuple[Effect, str]]:
    found = compare(fingerprint(*PIPELINE), fingerprint(*now))
    return [(change.effect, change.description) for change in found]


def test_equal_pipelines_have_no_changes() -> None:
    assert changes(*PIPELINE) == []


def test_another_value_that_the_state_is_laid_out_by_makes_it_unrestorable() -> None:
    smaller = replace(SHUFFLE, layout={"buffer_size": "500"})
    assert changes(RANGE, smaller, FLAT_MAP, LINES, BATCH) == [
        (Effect.UNRESTORABLE, "buffer_size of Shuffle was 1000 and is 500")
    ]


def test_other_elements_make_it_unrestorable() -> None:
    floats = replace(SHUFFLE, elements="float32[]")
    assert changes(RANGE, floats, FLAT_MAP, LINES, BATCH) == [
        (Effect.UNRESTORABLE, "the elements of Shuffle were int64[] and are float32[]")
    ]


@pytest.mark.parametrize("now", ["string[8]", "string[...]"])
def test_a_size_that_one_of_the_two_leaves_open_is_no_change(now: str) -> None:
    assert changes(RANGE, SHUFFLE, FLAT_MAP, LINES, replace(BATCH, elements=now)) == []


@pytest.mark.parametrize("now", ["string[?,3]", "string[]", "string[?] string[?]", ""])
def test_another_rank_or_number_of_components_makes_it_unrestorable(now: str) -> None:
    found = changes(RANGE, SHUFFLE, FLAT_MAP, LINES, replace(BATCH, elements=now))
    assert [effect for effect, _ in found] == [Effect.UNRESTORABLE]


def test_another_value_leads_to_different_data() -> None:
    longer = replace(RANGE, content={"stop": "200"})
    assert changes(longer, SHUFFLE, FLAT_MAP, LINES, BATCH) == [
        (Effect.DIFFERENT_DATA, "stop of Range was 100 and is 200")
    ]


def test_a_value_that_is_new_is_described_as_not_set_before() -> None:
    stepped = replace(RANGE, content={"stop": "100", "step": "2"})
    assert changes(stepped, SHUFFLE, FLAT_MAP, LINES, BATCH) == [
        (Effect.DIFFERENT_DATA, "step of Range was not set and is 2")
    ]


def test_another_function_leads_to_different_data() -> None:
    other = replace(FLAT_MAP, content={"function f": "bb"})
    assert changes(RANGE, SHUFFLE, other, LINES, BATCH) == [
        (Effect.DIFFERENT_DATA, "the function of FlatMap has changed")
    ]


def test_a_change_inside_a_function_is_reported_there_and_not_for_the_function_too() -> None:
    other = replace(FLAT_MAP, content={"function f": "bb"})
    files = replace(LINES, content={"filenames": "computed (2)"})
    assert changes(RANGE, SHUFFLE, other, files, BATCH) == [
        (Effect.DIFFERENT_DATA, "filenames of TextLine inside FlatMap was computed (1) and is computed (2)")
    ]


def test_a_transformation_that_was_added_is_named_with_its_place() -> None:
    (change,) = changes(
        RANGE, Transformation("Map", (0,)), replace(SHUFFLE, inputs=(1,)), FLAT_MAP, LINES, BATCH
    )
    assert change == (Effect.UNRESTORABLE, "Map was added after Range")


def test_a_transformation_that_was_removed_is_named_with_its_place() -> None:
    (change,) = changes(RANGE, SHUFFLE, FLAT_MAP, LINES)
    assert change == (Effect.UNRESTORABLE, "Batch was removed after TextLine inside FlatMap")


def test_transformations_that_read_others_than_before_make_it_unrestorable() -> None:
    ((effect, description),) = changes(RANGE, SHUFFLE, replace(FLAT_MAP, inputs=(0,)), LINES, BATCH)
    assert effect is Effect.UNRESTORABLE
    assert "connected in another way" in description


def test_pipelines_of_two_releases_of_tensorflow_are_not_compared() -> None:
    newer = fingerprint(RANGE, producer="2.16")
    (change,) = compare(fingerprint(*PIPELINE), newer)
    assert change.effect is Effect.DIFFERENT_DATA
    assert "TensorFlow 2.15" in change.description
    assert "TensorFlow 2.16" in change.description


class TestSeveralIterators:
    def test_a_single_iterator_needs_no_name(self) -> None:
        assert compare_all({"a": fingerprint(RANGE)}, {"b": fingerprint(RANGE)}) == []
        assert compare_all({"a": fingerprint(RANGE)}, {"b": fingerprint(SHUFFLE)}) != []

    def test_each_is_compared_with_the_one_of_its_name(self) -> None:
        longer = fingerprint(replace(RANGE, content={"stop": "200"}))
        stored = {"a": fingerprint(RANGE), "b": fingerprint(RANGE)}
        (change,) = compare_all(stored, {"b": longer, "a": fingerprint(RANGE)})
        assert change.description == "iterator b: stop of Range was 100 and is 200"

    def test_one_that_only_one_graph_has_is_left_to_the_restore(self) -> None:
        stored = {"a": fingerprint(RANGE), "b": fingerprint(RANGE)}
        assert compare_all(stored, {"a": fingerprint(RANGE)}) == []
        assert compare_all({}, stored) == []


class TestVerdict:
    unrestorable = PipelineChange(Effect.UNRESTORABLE, "buffer_size of Shuffle was 1000 and is 500")
    different = PipelineChange(Effect.DIFFERENT_DATA, "the function of Map has changed")

    def test_nothing_changed_nothing_said(self) -> None:
        for mode in ("refuse", "warn", "ignore"):
            found = judge([], mode)
            assert (found.refusal, found.warning) == (None, None)

    def test_refuse_refuses_what_cannot_be_restored_and_says_what_changed(self) -> None:
        found = judge([self.different, self.unrestorable], "refuse")
        assert found.refusal is not None
        assert "buffer_size of Shuffle was 1000 and is 500" in found.refusal
        assert found.warning is None

    def test_refuse_only_warns_of_other_data(self) -> None:
        found = judge([self.different], "refuse")
        assert found.refusal is None
        assert found.warning is not None
        assert "the function of Map has changed" in found.warning

    def test_warn_restores_anyway_and_says_beforehand_that_the_process_may_crash(self) -> None:
        found = judge([self.different, self.unrestorable], "warn")
        assert found.refusal is None
        assert found.warning is not None
        assert "segmentation fault" in found.warning
        assert "the function of Map has changed" in found.warning

    def test_ignore_says_nothing(self) -> None:
        found = judge([self.different, self.unrestorable], "ignore")
        assert (found.refusal, found.warning) == (None, None)

    def test_any_other_mode_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="'refuse', 'warn', 'ignore'; got 'raise'"):
            check_on_pipeline_change("raise")
        assert check_on_pipeline_change("warn") == "warn"


class TestJson:
    def test_a_fingerprint_comes_back_as_it_was(self) -> None:
        whole = fingerprint(*PIPELINE)
        assert Fingerprint.from_json(json.loads(json.dumps(whole.to_json()))) == whole

    def test_one_of_another_version_is_not_read(self) -> None:
        stored = {**fingerprint(*PIPELINE).to_json(), "version": FINGERPRINT_VERSION + 1}
        assert Fingerprint.from_json(stored) is None

    @pytest.mark.parametrize("damaged", [None, [], {}, {"version": 1}, {"version": 1, "transformations": 5}])
    def test_what_is_no_fingerprint_is_an_error(self, damaged: Any) -> None:
        with pytest.raises(CorruptCheckpointError, match="fingerprint"):
            Fingerprint.from_json(damaged)


class TestLongPipeline:
    @staticmethod
    def long(last: Transformation) -> Fingerprint:
        maps = [Transformation("Map", (index,), content={"function f": "a" * 24}) for index in range(200)]
        return fingerprint(RANGE, *maps, last)

    def test_it_is_cut_to_its_greatest_size(self) -> None:
        cut = self.long(SHUFFLE)
        assert 0 < cut.omitted < 200
        size = len(json.dumps(cut.to_json(), separators=(",", ":")))
        assert MAX_FINGERPRINT_BYTES / 2 < size <= MAX_FINGERPRINT_BYTES

    @pytest.mark.parametrize(
        ("last", "effect"),
        [
            pytest.param(replace(SHUFFLE, layout={"buffer_size": "9"}), Effect.UNRESTORABLE, id="layout"),
            pytest.param(replace(SHUFFLE, elements="int32[]"), Effect.UNRESTORABLE, id="elements"),
            pytest.param(replace(SHUFFLE, content={"count": "1"}), Effect.DIFFERENT_DATA, id="content"),
            pytest.param(replace(SHUFFLE, name="Batch"), Effect.UNRESTORABLE, id="structure"),
        ],
    )
    def test_a_change_in_what_was_cut_off_is_noticed(self, last: Transformation, effect: Effect) -> None:
        assert [change.effect for change in compare(self.long(SHUFFLE), self.long(last))] == [effect]

    def test_a_change_that_is_listed_does_not_hide_one_that_was_cut_off(self) -> None:
        before, after = self.long(SHUFFLE), self.long(replace(SHUFFLE, layout={"buffer_size": "9"}))
        longer = replace(RANGE, content={"stop": "200"})
        after = replace(after, transformations=(longer, *after.transformations[1:]))
        assert [change.effect for change in compare(before, after)] == [
            Effect.DIFFERENT_DATA,
            Effect.UNRESTORABLE,
        ]
