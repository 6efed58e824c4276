"""The S3 backend keeps the contract, and so does the generic backend over s3fs."""

from __future__ import annotations

import uuid
from typing import Optional

import boto3
import pytest
import s3fs
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError

from input_checkpoint.backends_builtin import GenericBackend
from input_checkpoint.testing import BackendContract
from input_checkpoint_s3 import S3Backend

SESSION = AioSession()  # one for all: a session reads megabytes of API descriptions before its first call


class S3Contract(BackendContract):
    """Looks around the backend with boto3."""

    race_rounds = 5

    @pytest.fixture(autouse=True)
    def _client(self, s3_server):
        self.client = boto3.client(
            "s3",
            endpoint_url=s3_server.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        self.bucket = s3_server.bucket
        self.prefix = uuid.uuid4().hex

    def stored(self, backend, key: str) -> Optional[bytes]:
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")
        except ClientError:
            return None
        return answer["Body"].read()

    def plant(self, backend, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=data)


class TestS3Backend(S3Contract):
    @pytest.fixture
    def backend(self, s3_server, _client) -> S3Backend:
        return S3Backend(f"s3://{self.bucket}/{self.prefix}", {**s3_server.options, "session": SESSION})


class TestGenericBackendOverS3fs(S3Contract):
    listed_keys = 50  # pages are s3fs's own affair

    @pytest.fixture
    def backend(self, s3_server, _client) -> GenericBackend:
        filesystem = s3fs.S3FileSystem(skip_instance_cache=True, session=SESSION, **s3_server.options)
        return GenericBackend(f"s3://{self.bucket}/{self.prefix}", filesystem, f"{self.bucket}/{self.prefix}")
