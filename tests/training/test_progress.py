"""What a run tells its user."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

import pytest

from input_checkpoint import CheckpointInfo, CheckpointRef, KeepLast
from input_checkpoint.format.lineage import Lineage
from input_checkpoint.store.catalog import WorkerListing
from input_checkpoint.training.progress import Progress, format_bytes
from input_checkpoint.training.settings import TrainingSettings

INFO = CheckpointInfo(
    step=120,
    worker="main",
    lineage=1,
    created=datetime(2026, 1, 1, tzinfo=timezone.utc),
    logical_bytes=83_600_000,
    stored_bytes=12_700_000,
    elements=0,
    iterators=("Iterator",),
    host="host",
    pid=1,
)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Progress:
    caplog.set_level(logging.INFO)
    return Progress("s3://bucket/run", logging.getLogger("framework"))


def test_a_save_says_what_was_uploaded_and_how_long_training_paused(said, caplog):
    said.saved(INFO, paused=0.005, seconds=0.92)
    assert "step 120 to s3://bucket/run: 12.7 MB of 83.6 MB new" in caplog.text
    assert "paused for 0.005 s, stored in 0.92 s" in caplog.text


def test_a_restore_says_from_where_and_how_long_it_took(said, caplog):
    said.restored(INFO, seconds=1.5)
    assert "Restored the input from s3://bucket/run to step 120: 83.6 MB in 1.50 s" in caplog.text


def test_a_run_says_where_how_often_and_what_it_found(said, caplog):
    settings = TrainingSettings(save_steps=100, retention=KeepLast(3))
    found = WorkerListing((CheckpointRef("main", 1, 120),), Lineage("main", 1, ()))
    said.begun(settings, found, CheckpointRef("main", 1, 120))
    for part in ("s3://bucket/run", "every 100 steps", "KeepLast(n=3)", "1 checkpoint, up", "from step 120"):
        assert part in caplog.text


def test_a_first_run_says_that_it_found_nothing(said, caplog):
    said.begun(TrainingSettings(save_secs=600), WorkerListing((), None), None)
    for part in ("every 600 s", "no checkpoints", "the beginning of the input"):
        assert part in caplog.text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 KB"), (5_300_000, "5.3 MB"), (2 * 10**9, "2.0 GB")],
)
def test_sizes_are_told_in_the_unit_that_fits(count, text):
    assert format_bytes(count) == text
