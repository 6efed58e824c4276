"""Failures of S3 are reported soon, as errors of this library, and without secrets."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import fsspec.config
import pytest
from aiobotocore.session import AioSession

from input_checkpoint import (
    Backend,
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectExistsError,
    ObjectNotFoundError,
    open_backend,
)
from tests.support.answering_server import (
    Answer,
    answering,
    mute_server,
    unused_port,
    write_self_signed_certificate,
)
from tests.support.engines import NEEDS_OBSTORE
from tests.support.operations import OPERATIONS, every_operation, outcome

SECRET = "hunter2"
SESSION = AioSession()  # shared: a session reads megabytes of API descriptions before its first call


def options_for(url: str, **more: Any) -> dict[str, Any]:
    return {
        "key": "AKIAEXAMPLE",
        "secret": SECRET,
        "endpoint_url": url,
        "client_kwargs": {"region_name": "us-east-1"},
        **more,
    }


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)])
def engine(request) -> str:
    return request.param


def opened(engine: str, uri: str, options: Mapping[str, Any]) -> Backend:
    session = {"session": SESSION} if engine == "fsspec" and "profile" not in options else {}
    return open_backend(uri, {**options, **session, "engine": engine})


@pytest.fixture
def closed_port() -> int:
    return unused_port()


@pytest.fixture
def mute_port() -> Iterator[int]:
    with mute_server() as port:
        yield port


class TestServerThatIsDown:
    @every_operation
    def test_every_operation_is_unavailable_within_half_a_minute(self, engine, closed_port, operation):
        backend = opened(engine, "s3://bucket/run", options_for(f"http://127.0.0.1:{closed_port}"))
        started = time.monotonic()
        with pytest.raises(
            BackendUnavailableError, match=r"s3://bucket/run.*trying again may help"
        ) as raised:
            operation(backend)
        assert time.monotonic() - started < 30
        assert SECRET not in str(raised.value)


class TestServerThatNeverAnswers:
    @every_operation
    def test_every_operation_is_unavailable_in_bounded_time(self, engine, mute_port, operation):
        short_timeouts = {"connect_timeout": 0.3, "read_timeout": 0.3, "retries": {"max_attempts": 0}}
        options = options_for(f"http://127.0.0.1:{mute_port}", config_kwargs=short_timeouts)
        backend = opened(engine, "s3://bucket/run", options)
        error = outcome(lambda: operation(backend), within=20)
        assert isinstance(error, BackendUnavailableError)
        assert SECRET not in str(error)


class TestMissingBucket:
    @every_operation
    def test_the_error_names_it(self, engine, s3_server, operation):
        backend = opened(engine, "s3://no-such-bucket/run", s3_server.options)
        with pytest.raises(BackendNotFoundError, match="no-such-bucket") as raised:
            operation(backend)
        assert "does not exist" in str(raised.value)

    @pytest.mark.parametrize("operation", ["get", "put", "create", "list", "delete"])
    def test_it_is_distinguished_from_a_missing_object(self, engine, s3_server, operation):
        backend = opened(engine, "s3://no-such-bucket/run", s3_server.options)
        with pytest.raises(BackendNotFoundError) as raised:
            OPERATIONS[operation](backend)
        assert not isinstance(raised.value, ObjectNotFoundError)
        assert "bucket" in str(raised.value)

    def test_a_uri_without_a_bucket_is_refused(self, engine, s3_server):
        with pytest.raises(BackendNotFoundError, match="names no bucket"):
            opened(engine, "s3://", s3_server.options)


class TestWrongCredentials:
    @every_operation
    def test_the_error_does_not_show_them(self, engine, s3_server, checks_credentials, operation):
        options = {**s3_server.options, "key": "AKIAWRONG", "secret": SECRET, "token": f"token-{SECRET}"}
        backend = opened(engine, f"s3://{s3_server.bucket}/{uuid.uuid4().hex}", options)
        with pytest.raises(BackendPermissionError) as raised:
            operation(backend)
        assert backend.uri in str(raised.value)
        assert SECRET not in str(raised.value)

    def test_the_error_says_where_to_set_them(self, engine, s3_server, checks_credentials):
        options = {**s3_server.options, "key": "AKIAWRONG"}
        with pytest.raises(BackendPermissionError, match=r"not accepted.*storage_options"):
            opened(engine, f"s3://{s3_server.bucket}/run", options).get("key")

    def test_missing_credentials_are_refused(self, engine, s3_server, monkeypatch, tmp_path):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        options = {name: s3_server.options[name] for name in ("endpoint_url", "client_kwargs")}
        with pytest.raises(BackendPermissionError, match="credentials"):
            opened(engine, f"s3://{s3_server.bucket}/run", options).put("key", b"data")

    def test_a_missing_profile_is_not_reported_as_an_unavailable_server(self, engine, s3_server):
        options = {"profile": "no-such-profile", "endpoint_url": s3_server.url}
        with pytest.raises(BackendError, match="no-such-profile") as raised:
            opened(engine, f"s3://{s3_server.bucket}/run", options).get("key")
        assert not isinstance(raised.value, BackendUnavailableError)


class TestDeniedDelete:
    @pytest.fixture
    def backend(self, engine, s3_server, s3_client) -> Iterator[Backend]:
        """A backend whose objects below ``locked/`` the server refuses to delete."""
        prefix = uuid.uuid4().hex
        s3_client.put_bucket_policy(
            Bucket=s3_server.bucket,
            Policy=json.dumps(
                {
                    "Version": "2012-10-17",
                    "Statement": [
                        {
                            "Effect": "Deny",
                            "Principal": "*",
                            "Action": "s3:DeleteObject",
                            "Resource": f"arn:aws:s3:::{s3_server.bucket}/{prefix}/locked/*",
                        }
                    ],
                }
            ),
        )
        backend = opened(engine, f"s3://{s3_server.bucket}/{prefix}", s3_server.options)
        for key in ("free/1", "locked/1", "locked/2"):
            backend.put(key, b"data")
        yield backend
        s3_client.delete_bucket_policy(Bucket=s3_server.bucket)

    def test_it_raises_although_a_bulk_delete_answers_200(self, backend):
        named = r"2 objects.*/locked/1 .*AccessDenied.*s3:DeleteObject"
        with pytest.raises(BackendPermissionError, match=named):
            backend.delete(["free/1", "locked/1", "locked/2"])

    def test_the_other_objects_are_deleted(self, backend):
        with pytest.raises(BackendPermissionError):
            backend.delete(["locked/1", "free/1", "locked/2"])
        assert [info.key for info in backend.list()] == ["locked/1", "locked/2"]

    def test_it_raises_for_the_second_batch_too(self, backend):
        keys = [f"free/{number}" for number in range(1500)]
        with pytest.raises(BackendPermissionError, match=r"objects.*/locked/1 "):
            backend.delete([*keys, "locked/1"])


def s3_error(status: int, code: str) -> Answer:
    """Return an error answer in the format of S3."""
    body = f"<Error><Code>{code}</Code><Message>the message</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


@contextlib.contextmanager
def backend_at(engine: str, answer: Optional[Answer], **more: Any) -> Iterator[Backend]:
    # After a broken connection, aiohttp before 3.14 sends the request again by itself, without its body.
    short_timeouts = {"read_timeout": 5, "retries": {"max_attempts": 0}}
    with answering(answer) as url:
        yield opened(engine, "s3://bucket/run", options_for(url, config_kwargs=short_timeouts, **more))


@pytest.mark.usefixtures("no_pauses")
class TestErrorAnswer:
    @every_operation
    def test_throttling_is_unavailable(self, engine, operation):
        with (
            backend_at(engine, s3_error(503, "SlowDown")) as backend,
            pytest.raises(BackendUnavailableError, match=r"s3://bucket/run.*trying again may help"),
        ):
            operation(backend)

    @pytest.mark.parametrize(("status", "code"), [(429, "TooManyRequests"), (500, "InternalError")])
    def test_a_failure_of_the_server_is_unavailable(self, engine, status, code):
        with (
            backend_at(engine, s3_error(status, code)) as backend,
            pytest.raises(BackendUnavailableError, match="may help"),
        ):
            backend.put("key", b"data")

    @pytest.mark.parametrize("operation", ["put", "create", "list", "delete", "get"])
    @pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
    def test_refused_credentials_are_a_permission_error(self, engine, operation, code):
        with (
            backend_at(engine, s3_error(403, code)) as backend,
            pytest.raises(
                BackendPermissionError, match=rf"s3://bucket/run.*not accepted \({code}\).*storage_options"
            ),
        ):
            OPERATIONS[operation](backend)

    @pytest.mark.parametrize("operation", ["put", "create", "list", "delete", "get"])
    def test_a_wrong_clock_is_not_reported_as_wrong_credentials(self, engine, operation):
        with (
            backend_at(engine, s3_error(403, "RequestTimeTooSkewed")) as backend,
            pytest.raises(BackendPermissionError, match="Set the clock"),
        ):
            OPERATIONS[operation](backend)

    @every_operation
    def test_missing_permissions_are_listed(self, engine, operation):
        with (
            backend_at(engine, s3_error(403, "AccessDenied")) as backend,
            pytest.raises(BackendPermissionError, match=r"access denied.*s3:DeleteObject"),
        ):
            operation(backend)

    @pytest.mark.parametrize(
        ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (400, "InvalidRequest")]
    )
    def test_a_server_without_conditional_writes_is_refused_with_the_alternative(self, engine, status, code):
        with (
            backend_at(engine, s3_error(status, code)) as backend,
            pytest.raises(BackendError, match=r"does not support conditional writes.*commit_lock") as raised,
        ):
            backend.create("key", b"data")
        assert not isinstance(raised.value, BackendUnavailableError)

    @pytest.mark.parametrize("operation", ["put", "create"])
    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (403, "QuotaExceeded"),
            (400, "XMinioAdminBucketQuotaExceeded"),
            (507, "XMinioStorageFull"),
            (400, "ServiceQuotaExceededException"),
            (507, "InsufficientStorage"),
        ],
    )
    def test_a_full_quota_is_permanent(self, engine, operation, status, code):
        with (
            backend_at(engine, s3_error(status, code)) as backend,
            pytest.raises(BackendError, match=rf"no space left.*\({code}: the message\).*quota") as raised,
        ):
            OPERATIONS[operation](backend)
        assert not isinstance(raised.value, BackendUnavailableError)

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (503, "SlowDown"),
            (403, "AccessDenied"),
            (403, "AccountProblem"),
            (400, "InvalidTag"),
            (404, "NoSuchBucket"),
        ],
    )
    def test_the_servers_own_code_is_in_the_message(self, engine, status, code):
        with backend_at(engine, s3_error(status, code)) as backend, pytest.raises(BackendError, match=code):
            backend.put("key", b"data")

    @pytest.mark.parametrize("code", ["AccessDenied", "SlowDown"])
    def test_the_servers_own_message_is_kept(self, engine, code):
        with (
            backend_at(engine, s3_error(403, code)) as backend,
            pytest.raises(BackendError, match=f"{code}: the message"),
        ):
            backend.put("key", b"data")

    def test_a_conflict_of_two_writers_does_not_mean_that_the_key_exists(self, engine):
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html says to retry
        with (
            backend_at(engine, s3_error(409, "ConditionalRequestConflict")) as backend,
            pytest.raises(BackendUnavailableError, match="may help"),
        ):
            backend.create("key", b"data")

    def test_a_key_that_exists_is_named(self, engine):
        with (
            backend_at(engine, s3_error(412, "PreconditionFailed")) as backend,
            pytest.raises(ObjectExistsError, match="run/key") as raised,
        ):
            backend.create("key", b"data")
        assert (raised.value.uri, raised.value.key) == ("s3://bucket/run", "key")

    def test_a_connection_that_breaks_during_an_upload_is_unavailable(self, engine):
        with (
            backend_at(engine, None) as backend,
            pytest.raises(BackendUnavailableError, match=r"cannot write s3://bucket/run/key"),
        ):
            backend.put("key", bytes(1 << 20))


class TestCertificate:
    @pytest.fixture
    def certificate(self, tmp_path) -> Path:
        write_self_signed_certificate(tmp_path / "server.pem")
        return tmp_path / "server.pem"

    def test_one_that_is_not_trusted_is_not_reported_as_unavailable(self, engine, certificate):
        with answering(s3_error(404, "NoSuchKey"), certificate) as url:
            backend = opened(
                engine, "s3://bucket/run", options_for(url, config_kwargs={"retries": {"max_attempts": 0}})
            )
            with pytest.raises(BackendError, match=r"certificate is not trusted.*ca\.pem") as raised:
                backend.get("key")
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_one_that_verify_names_is_trusted(self, engine, certificate):
        with answering(s3_error(404, "NoSuchKey"), certificate) as url:
            options = options_for(url)
            options["client_kwargs"]["verify"] = str(certificate)
            with pytest.raises(ObjectNotFoundError):
                opened(engine, "s3://bucket/run", options).get("key")


class TestOptions:
    @pytest.mark.parametrize("write", ["put", "create"])
    def test_encryption_and_storage_class_are_sent_with_every_write(
        self, engine, s3_server, s3_client, write
    ):
        more = {"ServerSideEncryption": "AES256", "StorageClass": "STANDARD_IA"}
        prefix = uuid.uuid4().hex
        backend = opened(
            engine, f"s3://{s3_server.bucket}/{prefix}", {**s3_server.options, "s3_additional_kwargs": more}
        )
        OPERATIONS[write](backend)
        head = s3_client.head_object(Bucket=s3_server.bucket, Key=f"{prefix}/key")
        assert {name: head[name] for name in more} == more

    @pytest.mark.parametrize(
        "given",
        [
            {"use_listings_cache": True},
            {"use_listings_cache": False},
            {"skip_instance_cache": False},
            {"skip_instance_cache": True},
            {"config_kwargs": None},
            {"config_kwargs": {}},
            {"config_kwargs": {"connect_timeout": 1, "max_pool_connections": 3}},
            {"s3_additional_kwargs": None},
        ],
        ids=str,
    )
    def test_an_option_that_the_backend_sets_itself_may_be_given(self, engine, s3_server, given):
        if engine == "obstore" and given.get("config_kwargs"):
            given = {"config_kwargs": {"connect_timeout": 1}}
        backend = opened(
            engine, f"s3://{s3_server.bucket}/{uuid.uuid4().hex}", {**s3_server.options, **given}
        )
        for number in range(2):
            backend.put(f"{number}", b"data")
            assert len(list(backend.list())) == number + 1

    def test_client_kwargs_may_be_none(self, engine, s3_server, monkeypatch):
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        options = {**s3_server.options, "client_kwargs": None}
        opened(engine, f"s3://{s3_server.bucket}/{uuid.uuid4().hex}", options).put("key", b"data")

    def test_options_may_also_be_in_the_configuration_of_fsspec(self, engine, s3_server, monkeypatch):
        conf = {**s3_server.options, "config_kwargs": {"connect_timeout": 1}, "use_listings_cache": True}
        monkeypatch.setitem(fsspec.config.conf, "s3", conf)
        opened(engine, f"s3://{s3_server.bucket}/{uuid.uuid4().hex}", {}).put("key", b"data")

    def test_even_a_large_object_is_not_a_multipart_upload(self, engine, s3_server, s3_client):
        prefix = uuid.uuid4().hex
        backend = opened(engine, f"s3://{s3_server.bucket}/{prefix}", s3_server.options)
        backend.put("key", bytes(120 << 20))
        etag = s3_client.head_object(Bucket=s3_server.bucket, Key=f"{prefix}/key")["ETag"]
        assert "-" not in etag  # the ETag of a multipart upload has one


class TestSecrets:
    def test_options_do_not_appear_in_the_uri_or_the_repr(self, engine):
        backend = opened(
            engine, "s3://bucket/run", options_for("http://127.0.0.1:9", token=f"token-{SECRET}")
        )
        assert SECRET not in backend.uri + repr(backend)

    def test_credentials_in_the_uri_are_refused_without_repeating_them(self, engine, s3_server):
        with pytest.raises(BackendError, match="must not be part of the URI") as raised:
            opened(engine, f"s3://AKIA:{SECRET}@bucket/run", s3_server.options)
        assert SECRET not in str(raised.value)

    def test_credentials_in_the_endpoint_do_not_appear_in_errors(self, engine, closed_port):
        backend = opened(
            engine, "s3://bucket/run", options_for(f"http://joe:{SECRET}@127.0.0.1:{closed_port}", anon=True)
        )
        with pytest.raises(BackendError) as raised:
            backend.get("key")
        assert SECRET not in str(raised.value)
