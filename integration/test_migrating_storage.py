"""A run is copied to another storage and resumes there."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

import input_checkpoint as ic
from integration.servers.server import Place, Server
from tests.support.kills import train
from tests.support.training import trained_on

ELEMENT_BYTES = 100_000


@pytest.mark.timeout(300)
def test_training_killed_on_the_local_disk_resumes_from_its_copy_on_the_server(
    place: Place, tmp_path: Path
) -> None:
    train(tmp_path / "reference", None, 30)
    assert train(tmp_path / "model", str(tmp_path / "input"), 30, kill_at="step 17")
    local = ic.CheckpointStore.open(str(tmp_path / "input"))
    assert local.copy_to(ic.CheckpointStore.open(place.uri, place.storage_options, create=True)).ok
    train(tmp_path / "model", place.uri, 30, place.storage_options)
    assert trained_on(tmp_path / "model") == trained_on(tmp_path / "reference")


@pytest.mark.timeout(300)
def test_a_copy_of_checkpoints_that_share_data_takes_no_more_bytes_than_the_original(
    server: Server, place: Place, tmp_path: Path
) -> None:
    source = ic.CheckpointStore.open(place.uri, place.storage_options, create=True)
    run = source.begin_run("main")
    elements = [(b"slot %d" % slot, os.urandom(ELEMENT_BYTES)) for slot in range(1000)]
    for step in (10, 20, 30):
        elements = [*elements[50:], *((b"new", os.urandom(ELEMENT_BYTES)) for _ in range(50))]
        run.save(step, [ic.IteratorState("Iterator", elements)])
    elsewhere = server.place(uuid.uuid4().hex)
    target = ic.CheckpointStore.open(elsewhere.uri, elsewhere.storage_options, create=True)
    report = source.copy_to(target)
    assert report.copied_bytes == sum(info.stored_bytes for info in source.checkpoints())
    assert target.verify().problems == {}
    assert [found.in_order() for found in target.load(target.newest("main"))] == [elements]
