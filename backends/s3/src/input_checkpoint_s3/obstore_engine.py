"""S3 through obstore, with the options of s3fs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

import botocore.session
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

from input_checkpoint.backends.base import Backend
from input_checkpoint.backends.engines import FSSPEC_CACHE_OPTIONS, OBSTORE, refuse_options
from input_checkpoint.backends.object_store import Operation, translated_errors
from input_checkpoint.backends.obstore import (
    ObjectStore,
    ObjectStoreService,
    ObstoreBackend,
    OpenStore,
    RequestLimits,
    load_obstore,
)
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.backends.time_limits import TimeLimits
from input_checkpoint_s3.answers import ETAG
from input_checkpoint_s3.errors import (
    CREDENTIAL_REFUSALS,
    SourceCredentialsRefusedError,
    explain,
    refuses_credentials,
    translate,
)
from input_checkpoint_s3.time_limits import read_options
from input_checkpoint_s3.uri import is_arn, parse_s3_uri

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


def open_with_obstore(
    uri: str, storage_options: Mapping[str, Any], open_without_obstore: Callable[[], Backend]
) -> ObstoreBackend:
    """Open a prefix of an S3 bucket.

    botocore finds the credentials, the region and the endpoint, as it does for s3fs.

    Args:
        uri: ``s3://bucket/prefix``.
        storage_options: for `s3fs.S3FileSystem`. One that obstore has no equivalent for is an error.
        open_without_obstore: see `ObjectStoreService`.

    Raises:
        BackendError: obstore is not installed, or an option has no equivalent.
    """
    bucket, prefix = parse_s3_uri(uri)
    shown_uri = redact_uri(uri)
    s3_store = load_obstore(uri, "input-checkpoint-s3[obstore]").S3Store
    limits, options = _read_options(shown_uri, storage_options)

    def log_in() -> OpenStore:
        # Options are read again, because fsspec's configuration may hold renewed credentials.
        current = _read_options(shown_uri, storage_options)[1]
        with translated_errors(Operation("open", shown_uri), translate):
            access = _find_access(bucket, current)

        def open_store(client_options: dict[str, Any], retry_config: dict[str, Any]) -> ObjectStore:
            store: ObjectStore = s3_store(
                bucket,
                prefix=prefix.rstrip("/") or None,
                config=_config(access, current),
                client_options={**client_options, **_tls_options(access)},
                retry_config=retry_config,
                credential_provider=access.credentials,
            )
            return store

        return open_store

    service = ObjectStoreService(
        log_in,
        open_without_obstore,
        explain,
        ETAG,
        _put_options(options),
        _request_limits(limits, options),
        CREDENTIAL_REFUSALS,
    )
    return ObstoreBackend(shown_uri, service)


@dataclass(frozen=True)
class _Access:
    """The server, and how to log in."""

    endpoint: str = field(repr=False)
    """URL of the server. For a bucket in the host name, with that host name."""
    region: str
    bucket_in_host: bool
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
        try:
            frozen = self._credentials.get_frozen_credentials()
        except ClientError as error:
            if refuses_credentials(error):
                # obstore passes on nothing but the name of the class and the text.
                raise SourceCredentialsRefusedError(str(error)) from error
            raise
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(timezone.utc) + _CREDENTIALS_LIFETIME,
        }


def _read_options(uri: str, storage_options: Mapping[str, Any]) -> tuple[TimeLimits, dict[str, Any]]:
    limits, configured = read_options(uri, storage_options)
    options = _flatten(configured)
    refuse_options(uri, OBSTORE, _unsupported(options))
    return limits, options


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


def _find_access(bucket: str, options: Mapping[str, Any]) -> _Access:
    session = botocore.session.Session(profile=options.get("profile"))
    endpoint = options.get("endpoint_url") or options.get("client_kwargs.endpoint_url")
    region = options.get("client_kwargs.region_name")
    virtual = options.get("config_kwargs.s3.addressing_style") == "virtual"
    if is_arn(bucket) or not endpoint or not region:
        # This client sends nothing. It reads the environment and the configuration files.
        client = session.create_client(
            "s3", region, endpoint_url=endpoint, aws_access_key_id="-", aws_secret_access_key="-"
        )
        endpoint, region = client.meta.endpoint_url, client.meta.region_name
        if is_arn(bucket):
            endpoint, region, virtual = _access_point(client, bucket)
    if virtual and not is_arn(bucket):
        endpoint = _virtual_host(endpoint, bucket)
    verify = options.get("client_kwargs.verify", session.get_config_variable("ca_bundle"))
    credentials = None if options.get("anon") else _CredentialProvider(_find_credentials(session, options))
    return _Access(endpoint, region or "us-east-1", virtual, verify, credentials)


def _access_point(client: Any, arn: str) -> tuple[str, str, bool]:
    """Return the URL of an access point, its region, and that its name is in the URL."""
    service, region = arn.split(":")[2:4]
    if service != "s3" or not region:
        raise ValueError(
            f"engine='obstore' cannot sign requests for {arn}. Remove the engine from storage_options, or "
            "use an access point of S3 in one region"
        )
    # The rules for the host name are long: dual-stack and FIPS endpoints, partitions, your own endpoint_url.
    url = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": arn, "Key": "key"}))
    return f"{url.scheme}://{url.netloc}", region, True


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


def _config(access: _Access, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        # Complete, and the endpoint twice: obstore reads settings that are missing here from the environment.
        "endpoint": access.endpoint,
        "aws_endpoint_url_s3": access.endpoint,
        "region": access.region,
        "virtual_hosted_style_request": access.bucket_in_host,
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


def _request_limits(limits: TimeLimits, options: Mapping[str, Any]) -> RequestLimits:
    attempts = options.get(_ATTEMPTS, options.get(_RETRIES, RequestLimits.retries) + 1)
    return RequestLimits(
        limits,
        options.get("config_kwargs.connect_timeout"),
        options.get("config_kwargs.read_timeout"),
        attempts - 1,
    )
