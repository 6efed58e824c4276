"""A forked child and its parent both go on working, whatever the parent has done over S3."""

from __future__ import annotations

import uuid

import pytest

from input_checkpoint.backends import obstore
from input_checkpoint_s3.backend import S3Backend, open_s3
from tests.support.engines import NEEDS_OBSTORE
from tests.support.forking import WAYS, needs_fork, run_forking

pytestmark = needs_fork


@pytest.mark.parametrize("engine", ["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE), "generic"])
@pytest.mark.parametrize("how", WAYS)
def test_parent_and_child_work(s3_server, engine, how):
    uri = f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
    assert run_forking(how, uri, {**s3_server.options, "engine": engine}) == ""


@NEEDS_OBSTORE
def test_a_forked_process_uses_s3fs_in_place_of_obstore(s3_server, monkeypatch, caplog):
    monkeypatch.setattr(obstore, "_forked_after_import", True)
    caplog.set_level("INFO")
    backend = open_s3(f"s3://{s3_server.bucket}/run", {**s3_server.options, "engine": "obstore"})
    assert isinstance(backend.client, S3Backend)
    assert "'spawn' or 'forkserver'" in caplog.text
