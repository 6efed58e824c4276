"""The store's specification, on an S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from aiobotocore.session import AioSession

from input_checkpoint import Backend, open_backend
from tests.conftest import memory
from tests.store.conftest import run, store
from tests.store.test_commit import TestCommit
from tests.store.test_damage import TestDamage, TestForgery
from tests.store.test_lineages import TestDamagedLineageRecord, TestLineages, TestRestartFromAnOlderStep
from tests.store.test_listing import TestListing
from tests.store.test_opening import TestOpening
from tests.store.test_pruning import TestPruning
from tests.store.test_saving_and_loading import TestMemory, TestSavingAndLoading
from tests.store.test_verifying import TestVerifying
from tests.support.s3_server import S3Server

# The same tests and fixtures, on the backend below.
__all__ = [
    "TestCommit",
    "TestDamage",
    "TestDamagedLineageRecord",
    "TestForgery",
    "TestLineages",
    "TestListing",
    "TestMemory",
    "TestOpening",
    "TestPruning",
    "TestRestartFromAnOlderStep",
    "TestSavingAndLoading",
    "TestVerifying",
    "memory",
    "run",
    "store",
]


@pytest.fixture(scope="module")
def s3_session() -> AioSession:
    """One session for all tests, because each reads megabytes of API descriptions first."""
    return AioSession()


@pytest.fixture
def backend(s3_server: S3Server, s3_session: AioSession) -> Iterator[Backend]:
    uri = f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
    opened = open_backend(uri, {**s3_server.options, "session": s3_session})
    yield opened
    opened.close()
