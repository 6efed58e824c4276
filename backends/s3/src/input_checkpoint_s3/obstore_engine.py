"""S3 through obstore, with the options of s3fs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

import botocore.session
from botocore.credentials import Credentials
from botocore.exceptions import NoCredentialsError, PartialCredentialsError
from fsspec.config import apply_config
from s3fs import S3FileSystem

from input_checkpoint.backends.engines import FSSPEC_CACHE_OPTIONS, OBSTORE, refuse_options
from input_checkpoint.backends.object_store import Operation, translated_errors
from input_checkpoint.backends.obstore import (
    ObjectStore,
    ObjectStoreService,
    ObstoreBackend,
    RequestTimeouts,
    load_obstore,
)
from input_checkpoint.backends.redaction import redact
from input_checkpoint_s3.errors import explain, translate
from input_checkpoint_s3.uri import parse_s3_uri

_MAX_KEYS_PER_DELETE = 1000  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html

_OPTION_GROUPS = (
    "client_kwargs",
    "config_kwargs",
    "config_kwargs.retries",
    "config_kwargs.s3",
    "s3_additional_kwargs",
)
"""Options that are dictionaries of options."""

# Name of the option, and the name that obstore has for it:
# https://developmentseed.org/obstore/latest/api/store/aws
_ENCRYPTION = {
    "s3_additional_kwargs.ServerSideEncryption": "server_side_encryption",
    "s3_additional_kwargs.SSEKMSKeyId": "sse_kms_key_id",
    "s3_additional_kwargs.BucketKeyEnabled": "sse_bucket_key_enabled",
}
_STORAGE_CLASS = "s3_additional_kwargs.StorageClass"
_ATTEMPTS = "config_kwargs.retries.total_max_attempts"
_RETRIES = "config_kwargs.retries.max_attempts"

_SUPPORTED_OPTIONS = {
    "key",
    "secret",
    "token",
    "profile",
    "anon",
    "endpoint_url",
    "requester_pays",
    "client_kwargs.endpoint_url",
    "client_kwargs.region_name",
    "client_kwargs.verify",
    "config_kwargs.connect_timeout",
    "config_kwargs.read_timeout",
    _ATTEMPTS,
    _RETRIES,
    "config_kwargs.retries.mode",
    "config_kwargs.s3.addressing_style",
    _STORAGE_CLASS,
    *_ENCRYPTION,
}
_SUPPORTED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "config_kwargs.retries.mode": ("legacy", "standard"),
    "config_kwargs.s3.addressing_style": ("auto", "path", "virtual"),
}
"""Of these options, obstore supports only some values."""

# botocore renews credentials at the latest ten minutes before they expire (`_mandatory_refresh_timeout` in
# credentials.py), so what it returns is valid for longer than this.
_CREDENTIALS_LIFETIME = timedelta(minutes=5)


def open_with_obstore(uri: str, storage_options: Mapping[str, Any]) -> ObstoreBackend:
    """Open a prefix of an S3 bucket.

    botocore finds the credentials, the region and the endpoint, as it does for s3fs.

    Args:
        uri: ``s3://bucket/prefix``.
        storage_options: for `s3fs.S3FileSystem`. One that obstore has no equivalent for is an error.

    Raises:
        BackendError: obstore is not installed, or an option has no equivalent.
    """
    bucket, prefix = parse_s3_uri(uri)
    shown_uri = redact(uri)
    s3_store = load_obstore(uri, "input-checkpoint-s3[obstore]").S3Store
    options = _flatten(apply_config(S3FileSystem, storage_options))
    refuse_options(shown_uri, OBSTORE, _unsupported(options))
    with translated_errors(Operation("open", shown_uri), translate):
        access = _find_access(options)

    def open_store(client_options: dict[str, Any], retry_config: dict[str, Any]) -> ObjectStore:
        store: ObjectStore = s3_store(
            bucket,
            prefix=prefix.rstrip("/") or None,
            config=_config(bucket, access, options),
            client_options={**client_options, **_tls_options(access)},
            retry_config=retry_config,
            credential_provider=access.credentials,
        )
        return store

    service = ObjectStoreService(
        open_store, explain, _MAX_KEYS_PER_DELETE, _put_options(options), _timeouts(options)
    )
    return ObstoreBackend(shown_uri, service)


@dataclass(frozen=True)
class _Access:
    """The server, and how to log in."""

    endpoint: str
    region: str
    verify: Any
    """As in botocore: whether to verify the server's certificate, or a file of trusted authorities."""
    credentials: Optional[_CredentialProvider]
    """None if requests are not signed."""


class _CredentialProvider:
    """Passes the credentials that botocore finds and renews to obstore."""

    refresh_threshold = timedelta(0)

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(timezone.utc) + _CREDENTIALS_LIFETIME,
        }


def _flatten(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under names like ``client_kwargs.region_name``, without those that are None."""
    flat = dict(options)
    for group in _OPTION_GROUPS:
        for name, value in (flat.pop(group, None) or {}).items():
            flat[f"{group}.{name}"] = value
    return {name: value for name, value in flat.items() if value is not None}


def _unsupported(options: Mapping[str, Any]) -> list[str]:
    names = sorted(set(options) - _SUPPORTED_OPTIONS - FSSPEC_CACHE_OPTIONS)
    values = [
        f"{name}={options[name]!r}"
        for name, supported in _SUPPORTED_VALUES.items()
        if name in options and options[name] not in supported
    ]
    return names + values


def _find_access(options: Mapping[str, Any]) -> _Access:
    session = botocore.session.Session(profile=options.get("profile"))
    endpoint = options.get("endpoint_url") or options.get("client_kwargs.endpoint_url")
    region = options.get("client_kwargs.region_name")
    if not endpoint or not region:
        # This client sends nothing. It reads the environment and the configuration files.
        client = session.create_client(
            "s3", region, endpoint_url=endpoint, aws_access_key_id="-", aws_secret_access_key="-"
        )
        endpoint, region = client.meta.endpoint_url, client.meta.region_name
    verify = options.get("client_kwargs.verify", session.get_config_variable("ca_bundle"))
    credentials = None if options.get("anon") else _CredentialProvider(_find_credentials(session, options))
    return _Access(endpoint, region or "us-east-1", verify, credentials)


def _find_credentials(session: Any, options: Mapping[str, Any]) -> Any:
    key, secret = options.get("key"), options.get("secret")
    if key and secret:
        return Credentials(key, secret, options.get("token"))
    if key or secret:
        raise PartialCredentialsError(provider="storage_options", cred_var="secret" if key else "key")
    found = session.get_credentials()
    if found is None:
        raise NoCredentialsError
    return found


def _config(bucket: str, access: _Access, options: Mapping[str, Any]) -> dict[str, Any]:
    virtual = options.get("config_kwargs.s3.addressing_style") == "virtual"
    endpoint = _virtual_host(access.endpoint, bucket) if virtual else access.endpoint
    return {
        # Complete, and the endpoint twice: obstore reads settings that are missing here from the environment.
        "endpoint": endpoint,
        "aws_endpoint_url_s3": endpoint,
        "region": access.region,
        "virtual_hosted_style_request": virtual,
        "skip_signature": access.credentials is None,
        "conditional_put": "etag",
        "request_payer": bool(options.get("requester_pays")),
        **{name: options[option] for option, name in _ENCRYPTION.items() if option in options},
    }


def _virtual_host(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _tls_options(access: _Access) -> dict[str, Any]:
    if access.endpoint.startswith("http://"):
        return {"allow_http": True}
    if access.verify is False:
        return {"allow_invalid_certificates": True}
    if isinstance(access.verify, (str, Path)):
        return {"root_certificate": Path(access.verify).read_bytes()}
    return {}


def _put_options(options: Mapping[str, Any]) -> dict[str, Any]:
    storage_class = options.get(_STORAGE_CLASS)
    return {"attributes": {"Storage-Class": storage_class}} if storage_class else {}


def _timeouts(options: Mapping[str, Any]) -> RequestTimeouts:
    default = RequestTimeouts()
    attempts = options.get(_ATTEMPTS, options.get(_RETRIES, default.retries) + 1)
    return RequestTimeouts(
        options.get("config_kwargs.connect_timeout", default.connect),
        options.get("config_kwargs.read_timeout", default.read),
        attempts - 1,
    )
