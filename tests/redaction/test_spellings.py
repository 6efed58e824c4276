"""No spelling of a secret survives redaction, and what is no secret stays readable."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest

from input_checkpoint.redaction.names import is_secret_name
from input_checkpoint.redaction.redactor import Redactor
from input_checkpoint.redaction.uris import redact_location, redact_uri

S = "hunter2PW"
AZURE_KEY = base64.b64encode(bytes(range(64))).decode()
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJqb2UifQ.c2lnbmF0dXJl"
PEM = f"-----BEGIN RSA PRIVATE KEY-----\nMIIE{S}\nAAAA\n-----END RSA PRIVATE KEY-----"

URIS = [
    f"sftp://joe:{S}@host/x",
    f"SFTP://joe:{S}@host/x",
    f"sftp://joe:it is {S}@127.0.0.1:1/x",
    f"sftp://joe:{S} it is@127.0.0.1:1/x",
    f"sftp://joe: {S}@host/x",
    f"sftp://joe:it's{S}@127.0.0.1:1/x",
    f'sftp://joe:"{S}"@host/x',
    f"sftp://joe:<{S}>@host/x",
    f"sftp://joe:p@ss{S}@host/x",
    f"sftp://joe:{S}@ss@host/x",
    f"sftp://joe:p@a/ss{S}@host/x",
    f"sftp://joe:pa/ss{S}@host/x",
    f"sftp://joe:/{S}@host/x",
    f"sftp://joe:{S}/@host/x",
    f"sftp://joe:{S}\\n@host/x",
    f"sftp://joe:12/{S}@host/x",
    f"sftp://joe:123456/{S}@host:22/x",
    f"sftp://joe:22@{S}@host/x",
    f"sftp://joe:p?{S}/@host/x",
    f"sftp://joe:p#{S}@host/x",
    f"sftp://joe:a://{S}@host/x",
    f"sftp://joe:{quote('p@ss/')}{S}@host/x",
    f"sftp://:{S}@host/x",
    f"sftp://joe:{S}@[::1]:22/x",
    f"sftp://joe:{S}@[fe80::1%25eth0]/x",
    f"sftp://joe:{S}@",
    f"sftp://joe%40home:{S}@host/x",
    f"sftp://joe:naïve{S}@host/x",
    f"ftp://joe:it is {S}@127.0.0.1:1/x",
    f"s3://AKIA:123/{S}@bucket/x",
    f"s3://AKIA:22/{S}@bucket/x",
    f"s3://AKIAEXAMPLE:{S}@bucket/x",
    f"s3a://AKIAEXAMPLE:a/b/{S}@bucket/x",
    f"s3n://AKIAEXAMPLE:{S}@bucket",
    f"gs://joe:{S}@bucket/x",
    f"gcs://joe:8080/{S}@bucket/x",
    f"nosuch://joe:it is {S}@127.0.0.1:1/x",
    f"no+such.scheme-1://joe:{S}@host/x",
    f"https://{S}@github.com/x",
    f"s3://{S}@bucket/x",
    f"redis://:{S}@host:6379/0",
    f"hdfs://joe:{S}@namenode:8020/x",
    f"abfs://account:{S}@container/x",
    f"abfs://{S}==@account.dfs.core.windows.net/x",
    f"abfs://{S}/with/slashes==@account.dfs.core.windows.net/x",
    f"abfss://{AZURE_KEY}@account.dfs.core.windows.net/x",
    f"az://{S}@account/x",
    f"wasbs://{AZURE_KEY}@account.blob.core.windows.net/x",
    f"zip://x::s3://joe:{S}@bucket/x.zip",
    f"zip://a.zip::simplecache::ftp://joe:{S}@host/x",
    f"outer::nosuch://joe:pa/ss{S}@host/x",
    f"filecache::sftp://joe:it is {S}@host/x",
    f"s3://bucket/x?token={S}",
    f"s3://bucket/x?{S}",
    f"https://host/x?X-Amz-Signature={S}",
    f"https://host/x?a=1;sig={S}",
    f"https://joe:{S}@host/x?token={S}",
]
"""Whole URIs, as a user may write them."""

LOCATIONS = [
    f"nosuch:/joe:{S}@127.0.0.1/x",
    f"s3:/joe:{S}@bucket/x",
    f"s3:joe:{S}@bucket/x",
    f"s3//joe:{S}@bucket/x",
    f"://joe:{S}@host/x",
    f"joe:{S}@host:/x",
    f" sftp://joe:it is {S}@host/x",
    f"'sftp://joe:{S}@host/x'",
    f"/models/s3://joe:{S}@bucket",
    f"/models/s3:/joe:{S}@bucket",
    f"sftp:/host/x?token={S}",
]
"""What users write in place of a URI."""

TEXTS = [
    # URIs in a sentence
    f"cannot open sftp://joe:{S}@host/x: refused",
    f"cannot open 'ftp://joe:a/{S}@host/run' and s3://bucket/a@b: refused for joe@example.com",
    f"cannot open sftp://joe:it is {S}@host/x: refused",
    f"cannot open sftp://joe:it's {S}@host/x: refused",
    f"(https://joe:{S}@proxy:3128)",
    f"s3://a:{S}@b/x,s3://c:{S}@d/x",
    f"from s3://a/x to nosuch:/joe:{S}@host/x",
    f"scp: joe:{S}@host:/data: no such file",
    f"<Endpoint>https://joe:{S}@host/x</Endpoint>",
    f'Could not connect to the endpoint URL: "https://b.s3.amazonaws.com/k?X-Amz-Signature={S}&x=1"',
    # queries
    f"400 GET /acc/container?restype=container&sv=2021-08-06&sp=rwdlac&se=2030-01-01&sig={S}",
    f"GET /acc/container?sig={S}",
    f"sv=2021-08-06&sig={S}&se=2030",
    f"sv=2021-08-06&amp;sig={S}&amp;se=2030",
    f"sv=2021-08-06&#38;sig={S}",
    f"sv=2021-08-06\\u0026sig={S}\\u0026se=2030",
    f"SIG={S}",
    f"X-Amz-Signature={S}",
    f"X-Amz-Credential={S}/20261126/us-east-1/s3/aws4_request",
    f"X-Amz-Security-Token={S}",
    f"x-amz-security-token%3D{S}%26x",
    f"redirect=https%3A%2F%2Fhost%2Fx%3Fsig%3D{S}%26se%3D1",
    f"https%253A%252F%252Fhost%253Fsig%253D{S}%2526se",
    f"X-Goog-Signature={S}",
    f"X-Goog-Credential={S}",
    f"AWSAccessKeyId={S}&Expires=1&Signature={S}",
    f"/storage/v1/b?access_token={S}",
    f"/storage/v1/b?alt=json&key={S}",
    f"/tokeninfo?token={S}",
    f"#access_token={S}&expires_in=3600",
    f"grant_type=refresh&refresh_token={S}&client_secret={S}",
    f"client_assertion={S}",
    f"password={S}",
    f"passwd = {S}",
    f"password='it is {S}'",
    f'secret="{S}"',
    f"aws_secret_access_key = {S}",
    f"AZURE_STORAGE_KEY={S}",
    f"S3FileSystem(key='AK', secret='{S}')",
    f"storage_options(account_key=b'{S}')",
    # connection strings
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={S}==;EndpointSuffix=core.windows.net",
    f"BlobEndpoint=http://127.0.0.1/a;SharedAccessSignature=sv=2021&ss=b&sig={S}",
    f"SharedAccessSignature={S}",
    f"Endpoint=sb://host/;SharedAccessKeyName=root;SharedAccessKey={S}",
    f"sas_token=?sv=1&sig={S}",
    # headers
    f"Authorization: Bearer {S}",
    f"authorization: bearer {S}",
    f"Authorization: Basic {base64.b64encode(S.encode()).decode()}{S}",
    f"Authorization: SharedKey account:{S}=",
    f"Authorization: SharedKeyLite account:{S}=",
    f"Authorization: AWS AKIA:{S}",
    f"Authorization: AWS4-HMAC-SHA256 Credential={S}/x, SignedHeaders=host, Signature={S}",
    f"AWS4-HMAC-SHA256 Credential=A/x, SignedHeaders=host;x-amz-date, Signature={S}",
    f"{{'Authorization': 'Bearer {S}', 'Host': 'h'}}",
    f"{{b'Authorization': b'Bearer {S}'}}",
    f"('Authorization', 'Token {S}')",
    f'{{\\"Authorization\\": \\"Bearer {S}\\"}}',
    f"Proxy-Authorization: Basic {S}",
    f"the token Bearer {S} has expired",
    f"Bearer%20{S}",
    f"x-amz-security-token:{S}\nhost:h",
    f"X-Amz-Security-Token: {S}",
    f"x-goog-iam-authorization-token: {S}",
    f"x-goog-api-key: {S}",
    f"x-goog-encryption-key: {S}",
    f"x-amz-server-side-encryption-customer-key: {S}",
    f"x-ms-encryption-key: {S}",
    f"x-ms-copy-source-authorization: Bearer {S}",
    f"X-Auth-Token: {S}",
    f"X-API-Key: {S}",
    f"api-key: {S}",
    f"Cookie: session={S}; path=/",
    f"Set-Cookie: id={S}",
    # answers of servers
    f"<AWSAccessKeyId>{S}</AWSAccessKeyId>",
    f"<Error><StringToSign>AWS4\n{S}\n</StringToSign><Code>SignatureDoesNotMatch</Code></Error>",
    f"<StringToSignBytes>41 {S}</StringToSignBytes>",
    f"<CanonicalRequest>GET\n/\nx-amz-security-token:{S}\n</CanonicalRequest>",
    f"<SignatureProvided>{S}</SignatureProvided>",
    f"&lt;AWSAccessKeyId&gt;{S}&lt;/AWSAccessKeyId&gt;",
    f"<CanonicalRequest>cut off {S}",
    f"<AuthenticationErrorDetail>Server used 'GET\n{S}'</AuthenticationErrorDetail>",
    f"<SessionToken>{S}</SessionToken><SecretAccessKey>{S}</SecretAccessKey>",
    f"The MAC signature found in the HTTP request '{S}' is not the same as any computed signature.",
    f"Server used following string to sign: 'GET\n\n{S}'.",
    f"Signature did not match. String to sign used was rwd\n{S}",
    f'{{"access_token": "{S}", "expires_in": 3599}}',
    f'{{"access_token":"{S}"}}',
    f'{{\\"access_token\\": \\"{S}\\"}}',
    f"{{'refresh_token': '{S}'}}",
    f'{{"id_token": "cut off {S}',
    f'{{"client_secret": "{S}"}}',
    f'{{"SecretAccessKey": "{S}"}}',
    f'{{"StringToSign": "GET\\n{S}"}}',
    f'{{"accountKey": "{S}"}}',
    f"password: {S}",
    f"aws_session_token: {S}",
    # keys and tokens by their form
    PEM,
    json.dumps({"private_key": PEM}),
    PEM.replace("\n", "\\n").replace("-----END RSA PRIVATE KEY-----", ""),
    f"-----BEGIN OPENSSH PRIVATE KEY-----\n{S}",
]


def hidden(text: str) -> bool:
    return S not in text and S.lower() not in text.lower() and AZURE_KEY[:20] not in text


def test_the_tables_are_long() -> None:
    assert len({*URIS, *LOCATIONS, *TEXTS}) >= 150


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_shows_no_secret(uri: str) -> None:
    assert hidden(redact_uri(uri))


@pytest.mark.parametrize("text", URIS + LOCATIONS)
def test_a_location_that_is_refused_shows_no_secret(text: str) -> None:
    assert hidden(redact_location(text))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_shows_no_secret(text: str) -> None:
    assert hidden(Redactor().redact(text))


@pytest.mark.parametrize("secret", [JWT, AZURE_KEY, f"AKIA{'A1' * 8}", f"ASIA{'A1' * 8}", f"AIza{'x1' * 18}"])
def test_a_secret_is_recognized_by_its_form(secret: str) -> None:
    assert Redactor().redact(f"refused: {secret}.") == "refused: ***."


@pytest.mark.parametrize("text", [*URIS, *TEXTS])
def test_redacting_twice_changes_nothing(text: str) -> None:
    once = Redactor().redact(text)
    assert Redactor().redact(once) == once
    assert redact_uri(redact_uri(text)) == redact_uri(text)


@pytest.mark.parametrize("uri", [uri for uri in URIS if "@bucket" in uri or "@host" in uri])
def test_the_place_of_a_uri_stays_readable(uri: str) -> None:
    assert "***@bucket" in redact_uri(uri) or "***@host" in redact_uri(uri)


@pytest.mark.parametrize(
    "text",
    [
        "/data/run@7",
        "/data/a:b@c",
        "data/joe@example.com/run",
        "file:///a@b",
        "file:///data/run@7",
        "file:///data/team:a@b/run",
        "s3://bucket/run@7/input",
        "s3://bucket/a:b@c",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/training/run",
        "gs://bucket/mail/joe@example.com",
        "sftp://host:22/run@7/input",
        "sftp://127.0.0.1:40022/run@7/input",
        "sftp://localhost:40022/run@7/input",
        "sftp://[::1]:40022/run@7/input",
        "http://127.0.0.1:9000/bucket/a@b",
        "memory://run-7",
        "abfs://container/run",
        "abfs://container@account",
        "az://my-container-1@account/run",
        "abfs://container@account.dfs.core.windows.net/path",
        "abfss://container@account.dfs.core.windows.net/run@7",
        "abfss://$web@account.dfs.core.windows.net/run",
        "wasbs://container@account.blob.core.windows.net/run",
        "zip://store.zip::file:///data/run@7",
        "simplecache::s3://bucket/run@7/input",
    ],
)
def test_a_uri_without_secrets_stays_as_it_is(text: str) -> None:
    assert redact_uri(text) == text
    assert Redactor().redact(f"cannot open {text}: refused") == f"cannot open {text}: refused"


@pytest.mark.parametrize(
    "text",
    [
        "access denied for joe@example.com",
        "a@b.iam.gserviceaccount.com does not have storage.objects.list access to the bucket.",
        "Did you mean s3://bucket/run?",
        "Did you mean gs://bucket/run? Available: file, s3",
        "Write sftp://user@host:22/path, without a password.",
        "Set them in storage_options (key, secret, token, profile) or in the configuration of the AWS tools.",
        "Set client_kwargs={'verify': '/path/to/ca.pem'} or AWS_CA_BUNDLE.",
        "storage_options={'commit_lock': 'file:///folder/that/all/writers/share'}",
        "basic authentication is not supported; bearer authentication is",
        "HTTP/1.1 401, WWW-Authenticate: Bearer realm",
        "GET /bucket?list-type=2&prefix=run%2F&max-keys=1000 failed",
        "continuation-token=abc&prefix=run",
        "key=packs/main/00000001.pack",
        "{'Key': 'run/packs/1.pack', 'Size': 3}",
        '{"key": "run/packs/1.pack", "size": 3}',
        "<Error><Code>NoSuchKey</Code><Key>run/packs/1.pack</Key></Error>",
        "InvalidAccessKeyId: The AWS Access Key Id you provided does not exist in our records.",
        "SignatureDoesNotMatch: check the secret and the signature",
        "cannot read s3://bucket/run/packs/main/1.pack: 12:30:01 timeout at 10.0.0.1:443",
        "AccountName=training;EndpointSuffix=core.windows.net",
        "the server's host key (ssh-ed25519 SHA256:abc) is unknown",
        "C:/Users/joe and D:\\data",
        "mailto:joe@example.com",
        "step 100, lineage 3, run 794397319bd540e5ad6a5dc147553d48",
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert Redactor().redact(text) == text


def test_the_text_around_a_secret_stays() -> None:
    text = f"'ftp://joe:a/{S}@host/run' and s3://bucket/a@b: refused for joe@example.com (sig={S})"
    assert Redactor().redact(text) == (
        "'ftp://***@host/run' and s3://bucket/a@b: refused for joe@example.com (sig=***)"
    )


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "secret",
        "token",
        "password",
        "passphrase",
        "account_key",
        "sas_token",
        "connection_string",
        "X-Amz-Signature",
        "sig",
        "X-Amz-Credential",
        "AWSAccessKeyId",
        "AccountKey",
        "client_secret",
        "AWS_SECRET_ACCESS_KEY",
        "access_key",
        "privateKey",
        "SSECustomerKey",
        "StringToSign",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "key_filename",
        "account_name",
        "username",
        "host_key_policy",
        "tenant_id",
        "client_id",
        "keys",
        "SSEKMSKeyId",
        "monkey",
        "7",
        "BucketKeyEnabled",
        "endpoint_url",
        "NextContinuationToken",
        "pageToken",
    ],
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "https://host:" + "a" * 200_000,
        "a" * 200_000,
        "a=" * 100_000,
        "a&" * 100_000,
        "a://" * 50_000,
        "a://b:" * 30_000,
        "a:/b:" * 30_000,
        "'secret': '" * 20_000,
        '\\"' * 100_000,
        "<secret>" * 20_000,
        "<" * 200_000,
        "&lt;" * 50_000,
        "-----BEGIN PRIVATE KEY-----" * 8000,
        "-----BEGIN " + "A " * 100_000,
        "authorization:" * 15_000,
        "x-" * 100_000,
        "bearer " * 30_000,
        "signature found " * 15_000,
        "a_" * 100_000,
        "%3D" * 70_000,
        "eyJ" + "a" * 200_000,
        "a:b@" * 50_000,
    ],
    ids=lambda text: text[:12],
)
def test_no_text_takes_long(text: str) -> None:
    started = time.monotonic()
    Redactor().redact(text)
    redact_uri(text)
    redact_location(text)
    assert time.monotonic() - started < 2
