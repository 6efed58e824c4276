"""Whether a store can be that of the training in a model directory."""

from __future__ import annotations

import json

import pytest

from input_checkpoint import CheckpointRef, DifferentRunError
from input_checkpoint.format.lineage import InferredLineage, Lineage
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.training.run_tag import (
    MAX_TAG_BYTES,
    RunTag,
    check_same_run,
    decode_tag,
    encode_tag,
)

OURS = RunTag("aaaa", "s3://bucket/run", "main", lineage=3)
SAVED = (CheckpointRef("main", 1, 20),)


def check(tag, run_id="aaaa", checkpoints=SAVED, proven=(), lineage=Lineage) -> None:
    listing = WorkerListing(checkpoints, lineage("main", 1, (), run_id=run_id))
    check_same_run(tag, listing, proven, uri="s3://bucket/store", model_dir="/models/run")


def test_the_store_of_the_same_run_is_accepted():
    check(OURS)


def test_the_store_of_another_run_is_refused():
    with pytest.raises(DifferentRunError, match=r"/models/run belongs to run aaaa, .*s3://bucket/run"):
        check(OURS, run_id="bbbb")


def test_a_model_directory_without_a_mark_is_refused_a_used_store():
    with pytest.raises(DifferentRunError, match="nothing in /models/run belongs to it"):
        check(None)


def test_without_a_mark_a_proven_pair_is_enough():
    check(None, proven=[20])


def test_with_the_mark_of_another_run_a_proven_pair_is_not_enough():
    with pytest.raises(DifferentRunError):
        check(OURS, run_id="bbbb", proven=[20])


@pytest.mark.parametrize("tag", [None, OURS])
def test_a_store_without_checkpoints_is_accepted(tag):
    check(tag, run_id="bbbb", checkpoints=())


@pytest.mark.parametrize("tag", [None, OURS])
def test_a_store_whose_run_id_is_unknown_is_accepted(tag):
    check(tag, run_id="")
    check(tag, run_id="", lineage=InferredLineage)


def test_an_empty_store_is_accepted():
    check_same_run(OURS, WorkerListing((), None), (), uri="s3://bucket/store", model_dir="/models/run")


@pytest.mark.parametrize("ended_at", [None, 0, 20])
def test_a_mark_comes_back_as_it_was_written(ended_at):
    tag = RunTag("aaaa", "s3://bucket/run", "main", 3, ended_at)
    assert decode_tag(encode_tag(tag).encode()) == tag


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\x00", b"\xff", b"[" * 50_000, b'{"run_id": "a", "lineage": "x"}']
)
def test_a_damaged_mark_is_as_good_as_none(data):
    assert decode_tag(data) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("lineage", True), ("lineage", -1), ("lineage", 1.0), ("ended_at", 2**63), ("run_id", 5)],
)
def test_a_mark_with_a_wrong_field_is_as_good_as_none(field, value):
    fields = {**json.loads(encode_tag(OURS)), field: value}
    assert decode_tag(json.dumps(fields).encode()) is None


def test_a_mark_that_is_much_too_long_is_as_good_as_none():
    assert decode_tag(encode_tag(OURS).encode() + b" " * MAX_TAG_BYTES) is None
