"""Reports can be written as JSON, with every field."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from input_checkpoint import CheckpointRef, CopyProgress, CopyReport, MarkRef, VerifyReport

OLD, NEW = CheckpointRef("main", 1, 500), CheckpointRef("worker-1", 2, 700)
OLD_DICT = {"worker": "main", "lineage": 1, "step": 500}
NEW_DICT = {"worker": "worker-1", "lineage": 2, "step": 700}
MARK, MARK_DICT = MarkRef(OLD, OLD), {"ref": OLD_DICT, "base": OLD_DICT}
MARK_PROBLEMS = [{"mark": MARK_DICT, "problem": "it is damaged"}]
PROBLEMS = [{"checkpoint": NEW_DICT, "problem": "its pack is missing"}]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        pytest.param(
            VerifyReport((OLD, NEW), {NEW: "its pack is missing"}, 4000),
            {
                "ok": False,
                "checked": [OLD_DICT, NEW_DICT],
                "problems": PROBLEMS,
                "read_bytes": 4000,
                "mark_problems": [],
            },
            id="VerifyReport",
        ),
        pytest.param(
            VerifyReport((OLD,), {}, 4000, {MARK: "it is damaged"}),
            {
                "ok": False,
                "checked": [OLD_DICT],
                "problems": [],
                "read_bytes": 4000,
                "mark_problems": MARK_PROBLEMS,
            },
            id="VerifyReport with a damaged mark",
        ),
        pytest.param(
            CopyReport((OLD,), (NEW,), {}, 4000),
            {
                "ok": True,
                "copied": [OLD_DICT],
                "present": [NEW_DICT],
                "problems": [],
                "copied_bytes": 4000,
                "copied_marks": [],
                "mark_problems": [],
            },
            id="CopyReport",
        ),
        pytest.param(
            CopyReport((OLD,), (), {NEW: "its pack is missing"}, 4000),
            {
                "ok": False,
                "copied": [OLD_DICT],
                "present": [],
                "problems": PROBLEMS,
                "copied_bytes": 4000,
                "copied_marks": [],
                "mark_problems": [],
            },
            id="CopyReport with a problem",
        ),
        pytest.param(
            CopyReport((OLD,), (), {}, 4000, (MARK,), {MARK: "it is damaged"}),
            {
                "ok": False,
                "copied": [OLD_DICT],
                "present": [],
                "problems": [],
                "copied_bytes": 4000,
                "copied_marks": [MARK_DICT],
                "mark_problems": MARK_PROBLEMS,
            },
            id="CopyReport with marks",
        ),
        pytest.param(
            CopyProgress(1, 3, 500, 2000),
            {"checkpoints": 1, "checkpoints_total": 3, "bytes": 500, "bytes_total": 2000},
            id="CopyProgress",
        ),
    ],
)
def test_a_report_has_a_json_form_with_every_field(report: Any, expected: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict() == expected
    assert {field.name for field in fields(report)} <= report.to_dict().keys()
