"""A checkpoint of another pipeline is refused, or warned about, before its state is touched."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from input_checkpoint import CheckpointInfo, PipelineMismatchError
from input_checkpoint.checkpoint import SaveContext
from input_checkpoint.training.pipeline_change import Fingerprint, Transformation
from input_checkpoint.training.pipeline_check import PipelineCheck

URI = "s3://bucket/run"


def pipeline(buffer: str = "1000", files: str = "a") -> dict[str, Fingerprint]:
    source = Transformation("TextLine", content={"files": files})
    shuffle = Transformation("Shuffle", (0,), layout={"buffer_size": buffer})
    return {"Iterator": Fingerprint.of([source, shuffle], "2.15")}


def saved_from(fingerprints: dict[str, Fingerprint]) -> CheckpointInfo:
    stored: dict[str, Any] = {name: fingerprint.to_json() for name, fingerprint in fingerprints.items()}
    return CheckpointInfo(
        step=20,
        worker="main",
        lineage=1,
        created=datetime(2026, 1, 1, tzinfo=timezone.utc),
        logical_bytes=0,
        stored_bytes=0,
        elements=0,
        iterators=("Iterator",),
        host="host",
        pid=1,
        context=SaveContext(pipeline=stored),
    )


def test_the_same_pipeline_passes_in_silence(caplog):
    PipelineCheck(pipeline(), "refuse", URI)(saved_from(pipeline()))
    assert caplog.text == ""


def test_a_state_that_cannot_be_restored_is_refused_with_what_changed_and_a_way_out():
    with pytest.raises(PipelineMismatchError, match=r"buffer_size.*1000.*500.*resume='fresh'") as raised:
        PipelineCheck(pipeline("500"), "refuse", URI)(saved_from(pipeline()))
    assert (raised.value.uri, raised.value.step) == (URI, 20)


def test_other_data_are_warned_about_once(caplog):
    check = PipelineCheck(pipeline(files="b"), "refuse", URI)
    for _ in range(2):
        check(saved_from(pipeline()))
    assert caplog.text.count("has changed") == 1


def test_warn_turns_a_refusal_into_a_warning_that_names_the_danger(caplog):
    PipelineCheck(pipeline("500"), "warn", URI)(saved_from(pipeline()))
    assert "segmentation fault" in caplog.text


def test_ignore_compares_nothing(caplog):
    PipelineCheck(pipeline("500"), "ignore", URI)(saved_from(pipeline()))
    assert caplog.text == ""


def test_a_checkpoint_without_fingerprints_passes(caplog):
    PipelineCheck(pipeline(), "refuse", URI)(saved_from({}))
    assert caplog.text == ""


def test_a_fingerprint_of_another_version_is_not_compared():
    info = saved_from(pipeline())
    info.context.pipeline["Iterator"]["version"] += 1
    PipelineCheck(pipeline("500"), "refuse", URI)(info)
