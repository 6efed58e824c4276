"""Both engines of the S3 backend keep the contract, and so does the generic backend over s3fs."""

from __future__ import annotations

import sys
import time
import uuid
from typing import Optional

import pytest
import s3fs
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError

from input_checkpoint import Backend, BackendError, open_backend
from input_checkpoint.backends.generic import GenericBackend
from input_checkpoint.backends.obstore import ObstoreBackend
from input_checkpoint.testing import BackendContract
from input_checkpoint_s3 import S3Backend

SESSION = AioSession()  # shared: a session reads megabytes of API descriptions before its first call


@pytest.mark.usefixtures("small_pages")
class S3Contract(BackendContract):
    """Checks what is stored through boto3, independently of the backend."""

    race_rounds = 5
    listed_keys = 120

    @pytest.fixture(autouse=True)
    def _client(self, s3_server, s3_client):
        self.client = s3_client
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

    @pytest.mark.parametrize(
        "name", ["a//b", "/", "a/./b", "a/../b", "a/\x01", "a\\b", "a%2Fb", "a/b?c", "a/b#c"]
    )
    def test_a_name_that_only_an_object_store_allows_is_neither_listed_nor_an_error(self, backend, name):
        for planted in (name, "a/object"):
            self.plant(backend, planted, b"theirs")
        assert [info.key for info in backend.list()] == ["a/object"]
        assert [info.key for info in backend.list("a/o")] == ["a/object"]
        assert self.stored(backend, name) == b"theirs"


class TestS3Backend(S3Contract):
    @pytest.fixture
    def backend(self, s3_server, _client) -> S3Backend:
        return S3Backend(f"s3://{self.bucket}/{self.prefix}", {**s3_server.options, "session": SESSION})

    def test_a_folder_mark_is_not_listed(self, backend):
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/", Body=b"")
        assert list(backend.list()) == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11")
class TestObstoreEngine(S3Contract):
    @pytest.fixture
    def backend(self, s3_server, _client) -> Backend:
        return self.opened(s3_server, self.prefix)

    def opened(self, s3_server, prefix: str) -> Backend:
        options = {**s3_server.options, "engine": "obstore"}
        return open_backend(f"s3://{self.bucket}/{prefix}", options)

    def test_the_engine_opens_an_obstore_backend(self, backend):
        assert isinstance(backend, ObstoreBackend)

    def test_list_shows_when_an_object_was_stored(self, backend):
        backend.put("key", b"")
        (info,) = backend.list()
        assert abs(info.modified - time.time()) < 60

    def test_a_whole_bucket_can_be_a_backend(self, backend, s3_server):
        backend.put("key", b"data")
        everything = self.opened(s3_server, "")
        assert everything.get(f"{self.prefix}/key") == b"data"
        assert [info.key for info in everything.list(self.prefix)] == [f"{self.prefix}/key"]

    def test_a_folder_mark_is_not_listed(self, backend):
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/", Body=b"")
        assert list(backend.list()) == []

    @pytest.mark.parametrize(
        "name", ["a b", "a%20b", "run~1", "a+b&c=d", "é", "a#b", "[x]{y}", "a\\b", "x:y"]
    )
    def test_both_engines_use_the_same_names_for_any_prefix(self, s3_server, name):
        uri = f"s3://{self.bucket}/{self.prefix}/{name}"
        ours = open_backend(uri, {**s3_server.options, "engine": "obstore"})
        theirs = open_backend(uri, {**s3_server.options, "session": SESSION})
        ours.put("by/obstore", b"1")
        theirs.put("by/s3fs", b"2")
        for backend in (ours, theirs):
            assert [info.key for info in backend.list()] == ["by/obstore", "by/s3fs"]
            assert (backend.get("by/obstore"), backend.get("by/s3fs")) == (b"1", b"2")
        ours.delete(["by/s3fs", "by/obstore"])
        assert list(theirs.list()) == []

    def test_a_prefix_that_obstore_cannot_represent_is_refused(self, s3_server):
        with pytest.raises(BackendError, match=r"URI or storage_options are wrong.*empty path segment"):
            self.opened(s3_server, "a//b")


class TestGenericBackendOverS3fs(S3Contract):
    @pytest.fixture
    def backend(self, s3_server, _client) -> GenericBackend:
        filesystem = s3fs.S3FileSystem(skip_instance_cache=True, session=SESSION, **s3_server.options)
        return GenericBackend(f"s3://{self.bucket}/{self.prefix}", filesystem, f"{self.bucket}/{self.prefix}")
