"""The GCS backend keeps the contract, even if the server crashes."""

from __future__ import annotations

import urllib.error
import urllib.request
import uuid
from typing import Optional
from urllib.parse import quote

import pytest

from input_checkpoint import BackendError, BackendUnavailableError, open_backend
from input_checkpoint.testing import BackendContract
from input_checkpoint_gcs import GcsBackend, json_api
from input_checkpoint_gcs.json_api import page
from integration.servers.fake_gcs import FakeGcs


class TestGcsBackend(BackendContract):
    """Checks what is stored with plain HTTP requests."""

    race_rounds = 5
    listed_keys = 90

    @pytest.fixture(autouse=True)
    def _small_pages(self, monkeypatch):
        monkeypatch.setattr(json_api, "PAGE_SIZE", 20)

    @pytest.fixture
    def backend(self, fake_gcs):
        self.server = fake_gcs
        self.prefix = uuid.uuid4().hex
        place = fake_gcs.place(self.prefix)
        backend = open_backend(place.uri, place.storage_options)
        yield backend
        backend.close()

    def stored(self, backend, key: str) -> Optional[bytes]:
        name = quote(f"{self.prefix}/{key}", safe="")
        path = f"/download/storage/v1/b/{self.server.bucket}/o/{name}?alt=media"
        try:
            with urllib.request.urlopen(self.server.url + path) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None

    def plant(self, backend, key: str, data: bytes) -> None:
        name = quote(f"{self.prefix}/{key}", safe="")
        path = f"/upload/storage/v1/b/{self.server.bucket}/o?uploadType=media&name={name}"
        ask = urllib.request.Request(self.server.url + path, data=data, method="POST")
        ask.add_header("Content-Type", "application/octet-stream")
        urllib.request.urlopen(ask).close()

    def test_both_schemes_open_it(self, backend):
        place = self.server.place(self.prefix)
        backend.put("key", b"data")
        for uri in (place.uri, place.uri.replace("gs://", "gcs://")):
            opened = open_backend(uri, place.storage_options)
            assert isinstance(opened, GcsBackend)
            assert opened.get("key") == b"data"

    def test_an_unknown_engine_is_refused(self, backend):
        place = self.server.place(self.prefix)
        assert isinstance(open_backend(place.uri, {**place.storage_options, "engine": "fsspec"}), GcsBackend)
        with pytest.raises(BackendError, match=r"no engine 'obstore' for it\. Choose 'fsspec'"):
            open_backend(place.uri, {**place.storage_options, "engine": "obstore"})

    def test_a_uri_without_a_prefix_opens_the_whole_bucket(self, backend):
        place = self.server.place(self.prefix)
        backend.put("key", b"data")
        everything = open_backend(f"gs://{self.server.bucket}", place.storage_options)
        assert everything.get(f"{self.prefix}/key") == b"data"
        assert [info.key for info in everything.list(self.prefix)] == [f"{self.prefix}/key"]

    @pytest.mark.parametrize("data", [b"\r\n--==0==--\r\nrest", b"\n--==0==\n\n", b"--\r\n", b"\r\n"])
    def test_data_that_looks_like_the_end_of_an_upload_is_stored_whole(self, backend, data):
        backend.create("key", data)
        assert self.stored(backend, "key") == data

    def test_list_requests_a_page_when_it_is_needed(self, backend, monkeypatch):
        for number in range(30):
            backend.put(f"{number:02d}", b"")
        requested = []
        monkeypatch.setattr(json_api, "page", lambda *args: requested.append(args) or page(*args))
        listing = backend.list()
        assert [next(listing).key for _ in range(20)] == [f"{number:02d}" for number in range(20)]
        assert len(requested) == 1
        assert len(list(listing)) == 10
        assert len(requested) == 2

    def test_list_returns_when_each_object_was_stored(self, backend):
        backend.put("first", b"")
        backend.put("second", b"")
        first, second = backend.list()
        assert first.modified is not None
        assert second.modified is not None
        assert first.modified < second.modified < first.modified + 60

    def test_replacing_an_object_updates_its_time(self, backend):
        backend.put("key", b"1")
        (before,) = backend.list()
        backend.put("key", b"2")
        (after,) = backend.list()
        assert after.modified > before.modified


class TestServerThatIsKilled:
    def test_a_backend_works_again_after_the_server_restarts(self, tmp_path, hasty, fake_gcs):
        # The fixture `fake_gcs` skips this test where the server is not available.
        server = FakeGcs(tmp_path)
        place = server.place("run")
        with server.running():
            backend = open_backend(place.uri, place.storage_options)
            backend.create("kept", b"data")
            server.kill()
            with pytest.raises(BackendUnavailableError):
                backend.get("kept")
            server.start()
            assert backend.get("kept") == b"data"
            assert [info.key for info in backend.list()] == ["kept"]
