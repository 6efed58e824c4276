"""Each operation sends as few requests as possible, with the conditions and checksums that make them safe."""

from __future__ import annotations

import base64
import email
import json

import google_crc32c
import pytest
from gcs_scripted_server import Received, content, resource, scripted_server

from input_checkpoint_gcs import GcsBackend

STORED = resource(name="run/key", generation="1")


def parts(request: Received) -> tuple[dict[str, str], bytes]:
    """Return the metadata and the content of an upload, as a MIME parser reads them."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n"
    about, content = email.message_from_bytes(head.encode() + request.body).get_payload()
    return json.loads(about.get_payload()), content.get_payload(decode=True)


class TestUpload:
    @pytest.mark.parametrize("size", [0, 10, 60 << 20], ids=["empty", "small", "60 MiB"])
    def test_create_is_one_request_with_a_condition_whatever_the_size(self, size):
        with scripted_server(lambda request: STORED) as server:
            GcsBackend("gs://bucket/run", server.options()).create("key", bytes(size))
        (request,) = server.received
        assert (request.method, request.path) == ("POST", "/upload/storage/v1/b/bucket/o")
        assert request.query == {"uploadType": "multipart", "ifGenerationMatch": "0"}
        assert size <= len(request.body) < size + 1000

    def test_put_has_no_condition(self):
        with scripted_server(lambda request: STORED) as server:
            GcsBackend("gs://bucket/run", server.options()).put("key", b"data")
        (request,) = server.received
        assert request.query == {"uploadType": "multipart"}

    def test_an_upload_carries_a_checksum_for_the_server_to_compare(self):
        with scripted_server(lambda request: resource(name="run/deep/key", generation="1")) as server:
            GcsBackend("gs://bucket/run", server.options()).put("deep/key", b"data")
        about, content = parts(server.received[0])
        assert about["name"] == "run/deep/key"
        assert content == b"data"
        assert base64.b64decode(about["crc32c"]) == google_crc32c.value(b"data").to_bytes(4, "big")

    def test_an_empty_object_has_a_checksum_too(self):
        with scripted_server(lambda request: STORED) as server:
            GcsBackend("gs://bucket/run", server.options()).put("key", b"")
        assert parts(server.received[0])[0]["crc32c"] == "AAAAAA=="


class TestDownload:
    def test_a_whole_object_is_one_request_without_a_range(self):
        with scripted_server(lambda request: content(b"0123456789")) as server:
            assert GcsBackend("gs://bucket/run", server.options()).get("key") == b"0123456789"
        (request,) = server.received
        assert (request.path, request.query) == ("/download/storage/v1/b/bucket/o/run/key", {"alt": "media"})
        assert "range" not in request.headers

    @pytest.mark.parametrize(
        ("start", "end", "header"), [(2, 5, "bytes=2-4"), (0, 4, "bytes=0-3"), (7, None, "bytes=7-")]
    )
    def test_a_range_is_one_request_for_those_bytes(self, start, end, header):
        with scripted_server(
            lambda request: content(b"part"[: (end or 9) - start], f"bytes {start}-{(end or 9) - 1}/9")
        ) as server:
            assert GcsBackend("gs://bucket/run", server.options()).get("key", start, end)
        (request,) = server.received
        assert request.headers["range"] == header

    def test_a_range_that_the_server_ignores_is_cut_out_of_the_answer(self):
        with scripted_server(lambda request: content(b"0123456789")) as server:
            assert GcsBackend("gs://bucket/run", server.options()).get("key", 2, 5) == b"234"


class TestPrefix:
    def test_characters_with_a_meaning_in_urls_are_quoted(self):
        with scripted_server(lambda request: content(b"data")) as server:
            GcsBackend("gs://bucket/50%25 of run+7&x=1", server.options()).get("key")
        assert server.received[0].path == "/download/storage/v1/b/bucket/o/50%25 of run+7&x=1/key"


class TestList:
    def test_pages_are_requested_until_the_last_one(self):
        def answer(request):
            number = int(request.query.get("pageToken", 0))
            item = {"name": f"run/{number}", "size": "7", "timeCreated": "2026-11-23T02:58:16.47271Z"}
            # A page may be empty and yet not be the last.
            items = {} if number == 1 else {"items": [item]}
            return resource(
                kind="storage#objects", **items, **({"nextPageToken": str(number + 1)} if number < 3 else {})
            )

        with scripted_server(answer) as server:
            listed = list(GcsBackend("gs://bucket/run", server.options()).list())
        assert [info.key for info in listed] == ["0", "2", "3"]
        assert {info.size for info in listed} == {7}
        assert [info.modified for info in listed] == [pytest.approx(1795402696.47271)] * 3
        assert {request.query["prefix"] for request in server.received} == {"run/"}

    def test_empty_objects_that_show_folders_in_the_console_are_skipped(self):
        names = ["run/", "run/folder/", "run/folder/key"]
        items = [{"name": name, "size": "0", "timeCreated": "2026-11-23T02:58:16Z"} for name in names]
        with scripted_server(lambda request: resource(kind="storage#objects", items=items)) as server:
            listed = list(GcsBackend("gs://bucket/run", server.options()).list())
        assert [info.key for info in listed] == ["folder/key"]
