"""Whatever else lies under the prefix of a store, it is there afterwards."""

from __future__ import annotations

import sys
import uuid

import boto3
import pytest
from hypothesis import HealthCheck, given, settings

from input_checkpoint import open_backend
from tests.support.foreign import NEARLY_OURS, check_objects_stay, foreign_names

ENGINES = [
    "fsspec",
    pytest.param(
        "obstore",
        marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11"),
    ),
]
ONLY_IN_BUCKETS = ("", "saves/", "saves/main/", "packs/main/00000001/", "packs//main", "probe/../probe/a")
"""Marks of folders, and names that no file can have."""


class Bucket:
    """A new prefix, read and written through boto3."""

    def __init__(self, s3_server, engine: str) -> None:
        self.client = boto3.client(
            "s3",
            endpoint_url=s3_server.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        self.bucket = s3_server.bucket
        self.prefix = uuid.uuid4().hex
        self.options = {**s3_server.options, "engine": engine}

    def open(self):
        return open_backend(f"s3://{self.bucket}/{self.prefix}", self.options)

    def plant(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=data)

    def stored(self) -> dict[str, object]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {name: self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read() for name in names}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("names", [NEARLY_OURS, ONLY_IN_BUCKETS])
def test_objects_with_names_that_are_nearly_ours_stay(s3_server, engine, names):
    bucket = Bucket(s3_server, engine)
    check_objects_stay(bucket.open, bucket.plant, bucket.stored, names)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(names=foreign_names)
def test_foreign_objects_stay(s3_server, engine, names):
    bucket = Bucket(s3_server, engine)
    check_objects_stay(bucket.open, bucket.plant, bucket.stored, names)
