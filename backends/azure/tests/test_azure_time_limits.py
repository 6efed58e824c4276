"""Requests to Azure end in time, through both engines."""

from __future__ import annotations

import base64

import pytest

from tests.support.misbehaving_server import EndsInTime


@pytest.fixture(params=["fsspec", "obstore"])
def place_at(request):
    def place(port):
        if request.param == "obstore":
            pytest.importorskip("obstore")
        key = base64.b64encode(b"key of the account").decode()
        account = (
            f"DefaultEndpointsProtocol=http;AccountName=account;AccountKey={key};"
            f"BlobEndpoint=http://127.0.0.1:{port}/account;"
        )
        return "abfs://container/run", {"connection_string": account, "engine": request.param}

    return place


class TestAzure(EndsInTime):
    pass
