"""The secrets that a backend was given are hidden by their value, however they are spelled."""

from __future__ import annotations

import base64
import html
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from input_checkpoint.redaction.literals import redact_literals, secrets_in, secrets_in_uri
from input_checkpoint.redaction.redactor import excerpt, redact, remember_secrets

SECRET = "p@ss w\"o'rd/+=<é&>"


@pytest.mark.parametrize(
    "spelled",
    [
        SECRET,
        SECRET.upper(),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        quote(quote(SECRET, safe="")),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        SECRET.replace("/", "\\/"),
        html.escape(SECRET),
        html.escape(SECRET, quote=False),
        repr(SECRET)[1:-1],
        *(base64.b64encode(b"x" * n + SECRET.encode() + b"y" * n).decode() for n in range(4)),
        *(base64.urlsafe_b64encode(b"x" * n + SECRET.encode()).decode() for n in range(4)),
    ],
)
def test_a_secret_is_hidden_in_every_spelling(spelled: str) -> None:
    text = redact_literals(f"refused: {spelled}.", [SECRET])
    assert "***" in text
    # At most what Base64 mixes with the text beside it is left.
    assert len(text) <= len("refused: ***.") + 12
    assert spelled[6:-6] not in text


def test_a_secret_that_was_given_encoded_is_hidden_decoded_too() -> None:
    assert redact_literals("sig is a+b/c==", ["a%2Bb%2Fc%3D%3D"]) == "sig is ***"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"key": "AKIAEXAMPLE", "secret": "hunter2"}, {"AKIAEXAMPLE", "hunter2"}),
        ({"client_kwargs": {"aws_session_token": "hunter2"}}, {"hunter2"}),
        ({"client_kwargs": {"headers": {"Authorization": "Bearer hunter2"}}}, {"Bearer hunter2", "hunter2"}),
        ({"session_kwargs": {"proxy": "http://joe:hunter2@proxy:3128"}}, {"hunter2"}),
        ({"endpoint_url": "https://host/?sig=hunter2"}, {"hunter2"}),
        ({"password": b"hunter2"}, {"hunter2"}),
        ({"token": {"client_email": "a@b", "private_key": "hunter2"}}, {"hunter2"}),
        ({"passwords": [1], "credential": ("joe-joe", "hunter2")}, {"joe-joe", "hunter2"}),
        ({"connection_string": "AccountName=training;AccountKey=hunter2=="}, {"hunter2=="}),
        ({"commit_lock": "ftp://joe:hunter2@host/locks"}, {"hunter2"}),
        ({"account_name": "training", "username": "trainer", "key_filename": "/home/joe/.ssh/id"}, set()),
        ({"token": "google_default", "secret": "short"}, set()),
        ({"token": "/secrets/service-account.json"}, set()),
    ],
)
def test_options_are_searched_for_secrets(options: dict[str, Any], found: set[str]) -> None:
    assert set(secrets_in(options)) - {options.get("connection_string")} == found


def test_objects_are_searched_for_secrets() -> None:
    class Login:
        def __init__(self) -> None:
            self.user = "trainer"
            self._password = "hunter2"
            self.itself = self

    assert set(secrets_in({"credential": Login()})) == {"hunter2"}


def test_credentials_of_azure_and_google_are_found() -> None:
    azure = pytest.importorskip("azure.core.credentials")
    google = pytest.importorskip("google.oauth2.credentials")
    options = {
        "credential": azure.AzureNamedKeyCredential("training", "hunter2PW1"),
        "sas": azure.AzureSasCredential("sv=1&sig=hunter2PW2"),
        "token": google.Credentials("hunter2PW3", refresh_token="hunter2PW4", client_secret="hunter2PW5"),
    }
    assert {f"hunter2PW{n}" for n in range(1, 6)} <= set(secrets_in(options))


def test_what_a_library_makes_of_a_malformed_uri_is_hidden_too() -> None:
    assert {"12/hunter2PW", "hunter2PW"} <= set(secrets_in_uri("s3://AKIA:12/hunter2PW@bucket/x"))


@pytest.mark.parametrize(
    "uri", ["sftp://trainer@host/run", "s3://bucket/a@b", "abfs://container@account/x", "/a"]
)
def test_a_uri_without_a_password_has_no_secret(uri: str) -> None:
    assert list(secrets_in_uri(uri)) == []


def test_a_remembered_secret_is_hidden_in_every_message() -> None:
    remember_secrets("ftp://joe:rememberedPW1@host", {"password": "remembered PW2"})
    assert redact("PASS rememberedpw1 or remembered%20PW2") == "PASS *** or ***"


def test_the_credentials_in_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "environmentPW1")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=training;AccountKey=environmentPW2")
    monkeypatch.setenv("https_proxy", "http://joe:environmentPW3@proxy:3128")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/secrets/google")
    text = "environmentPW1, environmentPW2, environmentPW3, training, /secrets/google"
    assert redact(text) == "***, ***, ***, training, /secrets/google"


def test_a_secret_at_the_cut_of_an_excerpt_is_hidden() -> None:
    remember_secrets("", {"password": "cutInTheMiddle"})
    assert "cut" not in excerpt("x" * 95 + "cutInTheMiddle", 100)
