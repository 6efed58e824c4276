"""Nothing that holds credentials shows them, and nothing that is stored holds them."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.location import parse_location
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.backends.retrying import RetryingBackend
from input_checkpoint.training.run_tag import RunTag, encode_tag
from input_checkpoint.training.settings import TrainingSettings
from tests.support.planted_secrets import our_log
from tests.support.s3_server import S3Server

PLANTED = "pl4ntedSECRET"
URI = f"memory://joe:{PLANTED}@place/{uuid.uuid4().hex}"


@pytest.mark.parametrize(
    "made",
    [
        lambda: MemoryBackend(URI),
        lambda: RetryingBackend(MemoryBackend(URI)),
        lambda: ic.open_backend(URI, {"commit_lock": f"{URI}-locks"}),
        lambda: ic.CheckpointStore.open(URI, create=True),
        lambda: ic.CheckpointStore.open(URI, create=True).begin_run("main"),
        lambda: ic.CheckpointStore.open(URI, create=True).verify(),
        lambda: ic.CheckpointStore.open(URI, create=True).begin_run("main").prune(ic.KeepLast(1)),
        lambda: ic.KeepWithModel(f"ftp://joe:{PLANTED}@host/run", {"password": PLANTED}),
        lambda: TrainingSettings(backend=URI, storage_options={"secret": PLANTED}, save_steps=10),
        lambda: ic.BackendError("no access", uri=URI),
    ],
)
def test_no_object_shows_a_credential(made: Any) -> None:
    shown = made()
    assert PLANTED not in f"{shown!r} {shown} {getattr(shown, 'uri', '')}"


def test_a_location_shows_no_password() -> None:
    assert PLANTED not in repr(parse_location(f"ftp://joe:{PLANTED}@host/run"))


def test_nothing_that_is_stored_or_logged_holds_a_credential(s3_server: S3Server) -> None:
    options = {**s3_server.options, "key": f"AKIA{PLANTED}", "secret": PLANTED, "token": f"{PLANTED}/t"}
    uri = f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
    with our_log() as said:
        store = ic.CheckpointStore.open(uri, options, create=True)
        run = store.begin_run("main")
        info = run.save(10, [ic.IteratorState("Iterator", [(b"key", b"payload" * 500)])])
        store.pin(info, note="kept")
        run.prune(ic.KeepLast(1))
    backend = ic.open_backend(uri, options)
    stored = {entry.key: backend.get(entry.key) for entry in backend.list()}
    assert len(stored) >= 4
    for key, data in stored.items():
        assert PLANTED.encode() not in data, key
        assert PLANTED not in key
    assert PLANTED not in "\n".join(said)
    assert PLANTED not in encode_tag(RunTag("5f0c", store.uri, "main", 1))


def test_a_run_tag_names_the_store_without_its_password() -> None:
    store = ic.CheckpointStore.open(URI, create=True)
    assert '"uri": "memory://***@place/' in encode_tag(RunTag("5f0c", store.uri, "main", 1))


def test_a_retry_is_logged_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    class Down(MemoryBackend):
        def put(self, key: str, data: Any) -> None:
            raise ic.BackendUnavailableError(f"PUT {URI}/{key}?sig={PLANTED}: no answer")

    caplog.set_level(logging.DEBUG)
    backend = RetryingBackend(Down(URI), ic.RetryPolicy(timeout=0.2, initial_delay=0.1))
    with pytest.raises(ic.BackendUnavailableError):
        backend.put("key", b"data")
    assert "trying again" in caplog.text
    assert PLANTED not in caplog.text
