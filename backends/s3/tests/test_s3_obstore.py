"""The obstore engine treats every option of s3fs as s3fs does, or refuses it."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable

import fsspec.config
import pytest

from input_checkpoint import (
    Backend,
    BackendError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
    open_backend,
)
from tests.support.answering_server import Answer, answering, write_self_signed_certificate
from tests.support.serving import serving

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="obstore needs Python 3.11")

URI = "s3://bucket/run"
LOGIN = {"key": "AKIAEXAMPLE", "secret": "hunter2"}
REGION = {"client_kwargs": {"region_name": "eu-north-7"}}


def opened(options: dict[str, Any]) -> Backend:
    return open_backend(URI, {**options, "engine": "obstore"})


@dataclass
class Recorder:
    """A server that accepts every request and records it."""

    url: str = ""
    requests: list[BaseHTTPRequestHandler] = field(default_factory=list)
    answer: Callable[[bytes], tuple[int, bytes]] = lambda body: (200, b"")

    def header(self, name: str) -> str:
        """Return a header of the last request, or an empty string."""
        return self.requests[-1].headers.get(name) or ""


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorder.requests.append(self)
            status, content = recorder.answer(body)
            self.send_response(status)
            self.send_header("ETag", '"8d777f385d3dfec8815d20f7496026dc"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = _reply  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorder.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield recorder


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch, tmp_path):
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


class TestEngine:
    def test_an_unknown_one_is_refused_with_the_choices(self):
        with pytest.raises(BackendError, match=r"no engine 'rust' for it\. Choose 'fsspec' or 'obstore'"):
            open_backend(URI, {"engine": "rust"})

    def test_a_missing_installation_is_an_error_that_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(BackendError, match=r"pip install 'input-checkpoint-s3\[obstore\]'"):
            opened(LOGIN)


class TestUnsupportedOptions:
    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"version_aware": True}, "version_aware"),
            ({"session": object()}, "session"),
            ({"client_kwargs": {"use_ssl": False}}, "client_kwargs.use_ssl"),
            ({"config_kwargs": {"signature_version": "s3"}}, "config_kwargs.signature_version"),
            ({"config_kwargs": {"retries": {"mode": "adaptive"}}}, "config_kwargs.retries.mode='adaptive'"),
            ({"s3_additional_kwargs": {"ACL": "private"}}, "s3_additional_kwargs.ACL"),
            ({"s3_additional_kwargs": {"SSECustomerKey": "k"}}, "s3_additional_kwargs.SSECustomerKey"),
        ],
    )
    def test_they_are_refused_by_name(self, options, name):
        with pytest.raises(BackendError, match=r"engine='obstore' has no equivalent for") as raised:
            opened({**LOGIN, **options})
        assert f" {name} in storage_options" in str(raised.value)
        assert "hunter2" not in str(raised.value)

    def test_cache_options_are_ignored(self, recorder):
        caches = {"use_listings_cache": False, "skip_instance_cache": True}
        opened({**LOGIN, **REGION, **caches, "endpoint_url": recorder.url}).put("key", b"data")


class TestOptions:
    def test_encryption_is_sent_with_every_write(self, recorder):
        more = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "the-key", "BucketKeyEnabled": True}
        options = {**LOGIN, **REGION, "endpoint_url": recorder.url, "s3_additional_kwargs": more}
        for write in (opened(options).put, opened(options).create):
            write("key", b"data")
            assert recorder.header("x-amz-server-side-encryption") == "aws:kms"
            assert recorder.header("x-amz-server-side-encryption-aws-kms-key-id") == "the-key"
            assert recorder.header("x-amz-server-side-encryption-bucket-key-enabled") == "true"

    def test_only_a_create_sends_the_condition(self, recorder):
        backend = opened({**LOGIN, **REGION, "endpoint_url": recorder.url})
        backend.create("key", b"data")
        assert recorder.header("If-None-Match") == "*"
        backend.put("key", b"data")
        assert recorder.header("If-None-Match") == ""

    def test_requester_pays_is_sent(self, recorder):
        opened({**LOGIN, **REGION, "endpoint_url": recorder.url, "requester_pays": True}).put("key", b"")
        assert recorder.header("x-amz-request-payer") == "requester"

    def test_anon_requests_are_not_signed(self, recorder):
        opened({**REGION, "endpoint_url": recorder.url, "anon": True}).put("key", b"data")
        assert recorder.header("Authorization") == ""

    def test_they_can_come_from_the_configuration_of_fsspec(self, recorder, monkeypatch):
        monkeypatch.setitem(fsspec.config.conf, "s3", {**LOGIN, **REGION, "endpoint_url": recorder.url})
        opened({}).put("key", b"data")
        assert "AKIAEXAMPLE" in recorder.header("Authorization")

    def test_virtual_addressing_puts_the_bucket_into_the_host_name(self, recorder, monkeypatch):
        # A proxy is asked for any host, even one that does not exist.
        monkeypatch.setenv("http_proxy", recorder.url)
        style = {"config_kwargs": {"s3": {"addressing_style": "virtual"}}}
        opened({**LOGIN, **REGION, **style, "endpoint_url": "http://s3.example.org"}).put("key", b"data")
        assert recorder.requests[-1].path == "http://bucket.s3.example.org/run/key"

    def test_the_environment_can_name_a_certificate_authority(self, monkeypatch, tmp_path):
        certificate = tmp_path / "server.pem"
        write_self_signed_certificate(certificate)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        body = b"<Error><Code>NoSuchKey</Code></Error>"
        with answering(Answer(404, body), certificate) as url, pytest.raises(ObjectNotFoundError):
            opened({**LOGIN, **REGION, "endpoint_url": url}).get("key")

    def test_a_missing_file_of_authorities_is_named(self):
        options = {"client_kwargs": {"verify": "/no/such/ca.pem", "region_name": "eu-north-7"}}
        with pytest.raises(BackendError, match=r"/no/such/ca\.pem") as raised:
            opened({**LOGIN, **options, "endpoint_url": "https://127.0.0.1:9"})
        assert not isinstance(raised.value, BackendUnavailableError)


class TestCredentials:
    def test_a_profile_provides_them_and_the_region_and_the_endpoint(self, recorder, tmp_path):
        (tmp_path / "config").write_text(
            "[profile training]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = hunter2\n"
            f"region = eu-north-7\nendpoint_url = {recorder.url}\n"
        )
        opened({"profile": "training"}).put("key", b"data")
        assert "AKIAPROFILE" in recorder.header("Authorization")
        assert "/eu-north-7/s3/" in recorder.header("Authorization")

    def test_the_environment_provides_them(self, recorder, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "the-token")
        opened({**REGION, "endpoint_url": recorder.url}).put("key", b"data")
        assert "AKIAENVIRONMENT" in recorder.header("Authorization")
        assert recorder.header("x-amz-security-token") == "the-token"

    def test_a_credential_process_provides_them(self, recorder, tmp_path):
        program = tmp_path / "credentials.py"
        program.write_text(
            "import json\nprint(json.dumps({'Version': 1, 'AccessKeyId': 'AKIAPROGRAM', "
            "'SecretAccessKey': 'hunter2', 'SessionToken': 't', 'Expiration': '2999-01-01T00:00:00Z'}))"
        )
        process = f"credential_process = {sys.executable} {program}"
        (tmp_path / "config").write_text(f"[profile training]\n{process}\n")
        opened({**REGION, "profile": "training", "endpoint_url": recorder.url}).put("key", b"data")
        assert "AKIAPROGRAM" in recorder.header("Authorization")

    def test_explicit_ones_are_not_mixed_with_the_environment(self, recorder, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFOREIGN")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "foreign")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "foreign")
        opened({**LOGIN, **REGION, "endpoint_url": recorder.url}).put("key", b"data")
        assert "AKIAEXAMPLE" in recorder.header("Authorization")
        assert recorder.header("x-amz-security-token") == ""

    @pytest.mark.parametrize("one", ["key", "secret"])
    def test_a_key_without_a_secret_or_the_reverse_is_refused(self, one):
        with pytest.raises(BackendPermissionError, match=r"not accepted \(PartialCredentialsError: "):
            opened({one: LOGIN[one], **REGION, "endpoint_url": "http://127.0.0.1:9"})


class TestEnvironmentVariablesOfObstore:
    """obstore reads these variables; s3fs does not."""

    @pytest.fixture(autouse=True)
    def _variables(self, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
        monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
        monkeypatch.setenv("AWS_REQUEST_PAYER", "true")

    def test_they_do_not_override_the_options(self, recorder):
        opened({**LOGIN, **REGION, "endpoint_url": recorder.url}).create("key", b"data")
        assert recorder.requests[-1].path == "/bucket/run/key"
        assert recorder.header("Authorization") != ""
        assert recorder.header("If-None-Match") == "*"
        assert recorder.header("x-amz-request-payer") == ""

    def test_they_do_not_make_create_unconditional(self, s3_server):
        backend = open_backend(f"s3://{s3_server.bucket}/taken", {**s3_server.options, "engine": "obstore"})
        backend.create("key", b"1")
        with pytest.raises(ObjectExistsError):
            backend.create("key", b"2")


class TestAnotherRegion:
    @pytest.mark.parametrize(
        "answer",
        [
            Answer(301, b"<Error><Code>PermanentRedirect</Code></Error>"),
            Answer(400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>"),
        ],
    )
    def test_the_error_says_so(self, answer):
        with (
            answering(answer) as url,
            pytest.raises(BackendError, match=r"another region.*region_name") as raised,
        ):
            opened({**LOGIN, **REGION, "endpoint_url": url}).put("key", b"data")
        assert not isinstance(raised.value, BackendUnavailableError)


class TestSecrets:
    def test_an_error_does_not_show_the_request(self):
        with answering(Answer(403, b"<Error><Code>AccessDenied</Code></Error>")) as url:
            backend = opened({**REGION, "endpoint_url": url.replace("//", "//joe:hunter2@"), "anon": True})
            with pytest.raises(BackendPermissionError) as raised:
                backend.get("key")
        assert "hunter2" not in "".join(traceback.format_exception(raised.value))
        assert "hunter2" not in repr(backend) + repr(vars(backend))
