"""The identity and the description of a checkpoint can be written as JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import datetime, timezone

from input_checkpoint import CheckpointInfo, CheckpointRef, MarkRef, SaveContext
from input_checkpoint.checkpoint import PackEntry

INFO = CheckpointInfo(
    step=500,
    worker="main",
    lineage=2,
    created=datetime(2026, 3, 4, 12, 30, tzinfo=timezone.utc),
    logical_bytes=9000,
    stored_bytes=400,
    elements=30,
    iterators=("Iterator", "scope/Iterator_1"),
    host="host.example",
    pid=4711,
    packs=(PackEntry("packs/main/old.pack", 8000, False), PackEntry("packs/main/new.pack", 400, True)),
    table_bytes=120,
    context=SaveContext(model_digest="0f", save_steps=10),
    marks=(510, 530),
)


def test_a_ref_has_a_json_form() -> None:
    assert json.loads(json.dumps(INFO.ref.to_dict())) == {"worker": "main", "lineage": 2, "step": 500}


def test_a_ref_can_be_created_from_its_json_form() -> None:
    assert CheckpointRef(**json.loads(json.dumps(INFO.ref.to_dict()))) == INFO.ref


def test_a_mark_ref_has_a_json_form() -> None:
    mark = MarkRef(CheckpointRef("main", 2, 530), base=INFO.ref)
    assert json.loads(json.dumps(mark.to_dict())) == {
        "ref": {"worker": "main", "lineage": 2, "step": 530},
        "base": {"worker": "main", "lineage": 2, "step": 500},
    }


def test_an_info_has_a_json_form_with_every_field() -> None:
    as_json = json.loads(json.dumps(INFO.to_dict()))
    assert as_json == INFO.to_dict()
    assert as_json == {
        **{field.name: getattr(INFO, field.name) for field in fields(INFO)},
        "created": "2026-03-04T12:30:00+00:00",
        "iterators": ["Iterator", "scope/Iterator_1"],
        "packs": [
            {"key": "packs/main/old.pack", "size": 8000, "new": False},
            {"key": "packs/main/new.pack", "size": 400, "new": True},
        ],
        "marks": [510, 530],
        "context": {"model_digest": "0f", "pipeline": {}, "save_steps": 10, "draws": None},
    }
