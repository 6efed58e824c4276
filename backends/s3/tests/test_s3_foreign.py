"""Whatever else lies under the prefix of a store, it is there afterwards."""

from __future__ import annotations

import sys
import uuid

import pytest

from input_checkpoint import open_backend
from tests.support.foreign import NEARLY_OURS, check_objects_stay

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

    def __init__(self, s3_server, client, engine: str) -> None:
        self.client = client
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
def test_objects_with_names_that_are_nearly_ours_stay(s3_server, s3_client, engine, names):
    bucket = Bucket(s3_server, s3_client, engine)
    check_objects_stay(bucket.open, bucket.plant, bucket.stored, names)
