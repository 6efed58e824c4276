"""S3 over obstore, by the options of s3fs."""

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

from input_checkpoint.backends.obstore import ObjectStore, ObstoreBackend, Patience, Service, load_obstore
from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import BackendError
from input_checkpoint_s3.errors import translate
from input_checkpoint_s3.place import bucket_and_prefix

_MAX_KEYS_PER_DELETE = 1000  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html

_GROUPS = (
    "client_kwargs",
    "config_kwargs",
    "config_kwargs.retries",
    "config_kwargs.s3",
    "s3_additional_kwargs",
)
"""Options that are dictionaries of options."""

_WITHOUT_EFFECT = {"use_listings_cache", "skip_instance_cache"}
"""Of fsspec's caches, which there are none of here."""

# Name of the option, and of obstore's: https://developmentseed.org/obstore/latest/api/store/aws
_ENCRYPTION = {
    "s3_additional_kwargs.ServerSideEncryption": "server_side_encryption",
    "s3_additional_kwargs.SSEKMSKeyId": "sse_kms_key_id",
    "s3_additional_kwargs.BucketKeyEnabled": "sse_bucket_key_enabled",
}
_STORAGE_CLASS = "s3_additional_kwargs.StorageClass"
_ATTEMPTS = "config_kwargs.retries.total_max_attempts"
_RETRIES = "config_kwargs.retries.max_attempts"

_KNOWN = {
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
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "config_kwargs.retries.mode": ("legacy", "standard"),
    "config_kwargs.s3.addressing_style": ("auto", "path", "virtual"),
}
"""Values that there is an equivalent for."""

# botocore renews credentials ten minutes before they expire at the latest (`_mandatory_refresh_timeout` in
# credentials.py), so what it gives away is good for longer than this.
_LIFE_OF_CREDENTIALS = timedelta(minutes=5)


def open_with_obstore(uri: str, storage_options: Mapping[str, Any]) -> ObstoreBackend:
    """Open a place in S3.

    botocore finds the credentials, the region and the endpoint, as it does for s3fs.

    Args:
        uri: ``s3://bucket/prefix``.
        storage_options: for `s3fs.S3FileSystem`. One that obstore has no equivalent for is an error.

    Raises:
        BackendError: obstore is not installed, or an option has no equivalent.
    """
    bucket, prefix = bucket_and_prefix(uri)
    s3_store = load_obstore(uri, "input-checkpoint-s3[obstore]").S3Store
    options = _checked(uri, _flat(apply_config(S3FileSystem, storage_options)))
    try:
        access = _find_access(options)
    except Exception as error:
        # Of botocore, which share no base class with those of reading a file.
        raise translate(error, "open", redact(uri), "") from error

    def open_store(client_options: dict[str, Any], retry_config: dict[str, Any]) -> ObjectStore:
        store: ObjectStore = s3_store(
            bucket,
            prefix=prefix.rstrip("/") or None,
            config=_config(bucket, access, options),
            client_options={**client_options, **_trust(access)},
            retry_config=retry_config,
            credential_provider=access.credentials,
        )
        return store

    service = Service(open_store, translate, _MAX_KEYS_PER_DELETE, _put_options(options), _patience(options))
    return ObstoreBackend(redact(uri), service)


@dataclass(frozen=True)
class _Access:
    """Where S3 is and how to log in."""

    endpoint: str
    region: str
    verify: Any
    """As in botocore: whether to check the server's certificate, or the file of the authorities trusted."""
    credentials: Optional[_CredentialProvider]
    """None is for no signature at all."""


class _CredentialProvider:
    """Gives obstore what botocore has found, renewed if need be."""

    refresh_threshold = timedelta(0)

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(timezone.utc) + _LIFE_OF_CREDENTIALS,
        }


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under names like ``client_kwargs.region_name``; those that are None left out."""
    flat = dict(options)
    for group in _GROUPS:
        for name, value in (flat.pop(group, None) or {}).items():
            flat[f"{group}.{name}"] = value
    return {name: value for name, value in flat.items() if value is not None}


def _checked(uri: str, options: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(options) - _KNOWN - _WITHOUT_EFFECT)
    unknown += [
        f"{name}={options[name]!r}" for name in _ONLY if name in options and options[name] not in _ONLY[name]
    ]
    if unknown:
        raise BackendError(
            f"cannot open {redact(uri)}: engine='obstore' has no equivalent for {', '.join(unknown)} in "
            "storage_options. Leave it out, or leave the engine out."
        )
    return dict(options)


def _find_access(options: Mapping[str, Any]) -> _Access:
    session = botocore.session.Session(profile=options.get("profile"))
    endpoint = options.get("endpoint_url") or options.get("client_kwargs.endpoint_url")
    region = options.get("client_kwargs.region_name")
    if not endpoint or not region:
        # The client is never used: it works out what the environment and the configuration files say.
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
        # Twice, and all that matters: obstore takes what is not given here from environment variables.
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


def _trust(access: _Access) -> dict[str, Any]:
    """Return the client options that say whom to trust."""
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


def _patience(options: Mapping[str, Any]) -> Patience:
    default = Patience()
    retries = options.get(_ATTEMPTS, options.get(_RETRIES, default.retries) + 1) - 1
    return Patience(
        options.get("config_kwargs.connect_timeout", default.connect),
        options.get("config_kwargs.read_timeout", default.answer),
        retries,
    )
