"""Requests to an S3 server end in time, through both engines."""

from __future__ import annotations

import pytest
from aiobotocore.session import AioSession

from input_checkpoint import BackendError, open_backend
from tests.support.misbehaving_server import EndsInTime

SESSION = AioSession()  # shared: a session reads megabytes of API descriptions before its first call


@pytest.fixture(params=["fsspec", "obstore"])
def engine(request):
    return request.param


@pytest.fixture
def place_at(engine):
    def place(port):
        if engine == "obstore":
            pytest.importorskip("obstore")
        login = {"key": "key", "secret": "secret", "client_kwargs": {"region_name": "us-east-1"}}
        return "s3://bucket/run", {
            **login,
            "endpoint_url": f"http://127.0.0.1:{port}",
            "engine": engine,
        }

    return place


class TestS3(EndsInTime):
    @pytest.fixture
    def shared_options(self, engine):
        return {"session": SESSION} if engine == "fsspec" else {}


@pytest.mark.parametrize("engine", ["fsspec", "obstore"])
@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "5"}, {"min_bytes_per_second": -1}])
def test_a_limit_that_is_no_positive_number_is_refused(engine, options):
    with pytest.raises(BackendError, match=f"{next(iter(options))} must be a positive number"):
        open_backend("s3://bucket/run", {"engine": engine, "key": "k", "secret": "s", **options})
