"""Renewed credentials are found when the server refuses the old ones."""

from __future__ import annotations

import json
import uuid

import boto3
import pytest

from input_checkpoint import BackendPermissionError, open_backend
from tests.support.answering_server import Answer, answering
from tests.support.engines import NEEDS_OBSTORE
from tests.support.operations import OPERATIONS, every_operation

ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


@pytest.fixture(params=["fsspec", pytest.param("obstore", marks=NEEDS_OBSTORE)])
def engine(request) -> str:
    return request.param


class Rotation:
    """A user of the server, whose access key is in a credentials file."""

    def __init__(self, url, file) -> None:
        options = {"endpoint_url": url, "region_name": "us-east-1"}
        self.name = uuid.uuid4().hex
        self.file = file
        self.iam = boto3.client("iam", aws_access_key_id="a", aws_secret_access_key="a", **options)
        self.iam.create_user(UserName=self.name)
        self.iam.put_user_policy(UserName=self.name, PolicyName="all", PolicyDocument=json.dumps(ALL))
        self.key = self.new_key()
        self.write(self.key)

    def new_key(self):
        return self.iam.create_access_key(UserName=self.name)["AccessKey"]

    def write(self, key) -> None:
        self.file.write_text(
            f"[default]\naws_access_key_id = {key['AccessKeyId']}\n"
            f"aws_secret_access_key = {key['SecretAccessKey']}\n"
        )

    def end_old_key(self) -> None:
        self.iam.delete_access_key(UserName=self.name, AccessKeyId=self.key["AccessKeyId"])


@pytest.fixture
def rotation(s3_server, monkeypatch, tmp_path) -> Rotation:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return Rotation(s3_server.url, tmp_path / "credentials")


def options_for(url, engine, **more):
    return {"endpoint_url": url, "client_kwargs": {"region_name": "us-east-1"}, "engine": engine, **more}


@every_operation
def test_a_rewritten_credentials_file_is_read_again(engine, s3_server, rotation, request, operation):
    backend = open_backend(f"s3://{s3_server.bucket}/{uuid.uuid4().hex}", options_for(s3_server.url, engine))
    backend.put("key", b"data")
    rotation.write(rotation.new_key())
    rotation.end_old_key()
    request.getfixturevalue("checks_credentials")
    if operation is OPERATIONS["create"]:
        backend.delete(["key"])
    operation(backend)


def test_credentials_that_stay_refused_are_an_error(engine, s3_server, rotation, request):
    backend = open_backend(f"s3://{s3_server.bucket}/run", options_for(s3_server.url, engine))
    backend.put("key", b"data")
    rotation.end_old_key()
    request.getfixturevalue("checks_credentials")
    with pytest.raises(BackendPermissionError, match=r"not accepted \(InvalidAccessKeyId\)"):
        backend.get("key")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ExpiredToken"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (400, "TokenRefreshRequired"),
        (400, "InvalidToken"),
        (401, "Unauthorized"),
    ],
)
def test_every_answer_about_credentials_lets_them_be_looked_up_once(
    engine, rotation, monkeypatch, status, code
):
    lookups = []
    body = f"<Error><Code>{code}</Code><Message>the message</Message></Error>".encode()
    with answering(Answer(status, body, {"Content-Type": "application/xml"})) as url:
        backend = open_backend("s3://bucket/run", options_for(url, engine))
        open_client = backend.open_client
        monkeypatch.setattr(backend._reopening, "_open", lambda: lookups.append(1) or open_client())
        with pytest.raises(BackendPermissionError, match=rf"not accepted \({code}\)"):
            backend.put("key", b"data")
    assert len(lookups) == 1


def test_a_missing_permission_does_not_let_them_be_looked_up(engine, rotation, monkeypatch):
    body = b"<Error><Code>AccessDenied</Code><Message>the message</Message></Error>"
    with answering(Answer(403, body, {"Content-Type": "application/xml"})) as url:
        backend = open_backend("s3://bucket/run", options_for(url, engine))
        monkeypatch.setattr(backend._reopening, "_open", lambda: pytest.fail("looked up"))
        with pytest.raises(BackendPermissionError, match=r"access denied \(AccessDenied: the message\)"):
            backend.put("key", b"data")
