"""What the options of gcsfs mean for requests to Cloud Storage."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from aiohttp import ClientTimeout

# Not `gcsfs.GCSFileSystem`: that subclass first asks a second, gRPC service for the type of the bucket. It
# waits 60 seconds for it in vain at every emulator and private endpoint, and only an environment variable
# for the whole process, GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT, turns it off.
from fsspec.config import apply_config
from gcsfs.core import GCSFileSystem
from google.auth.credentials import AnonymousCredentials
from google.auth.credentials import Credentials as AnyCredentials
from google.oauth2.credentials import Credentials
from requests.utils import get_environ_proxies

from input_checkpoint.backends.object_store import Operation
from input_checkpoint.backends.time_limits import DEFAULT_TIME_LIMITS, TimeLimits, split_time_limits
from input_checkpoint.errors import BackendError, BackendPermissionError
from input_checkpoint_gcs.errors import explain_open

_LOGIN_METHODS = {"google_default", "cache", "cloud", "token", "anon", "browser"}
_SESSION_OPTIONS = {"trust_env", "proxy"}
_API_PATH = "/storage/v1/"


@dataclass(frozen=True)
class GcsSettings:
    """Where requests go, and on whose behalf."""

    # A URL may hold a user and a password.
    endpoint: str = field(repr=False)
    """URL without a path."""
    credentials: AnyCredentials = field(repr=False)
    user_project: Optional[str] = None
    """Project that pays for the requests; None if the bucket's project pays."""
    limits: TimeLimits = DEFAULT_TIME_LIMITS
    """Of a request with its repetitions."""
    connect_timeout: float = DEFAULT_TIME_LIMITS.connect
    """Seconds until a connection is open."""
    stall_timeout: float = DEFAULT_TIME_LIMITS.timeout
    """Seconds that the server may neither accept nor send a byte."""
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    """URL of the proxy by scheme, as in requests."""


def read_settings(uri: str, storage_options: Mapping[str, Any]) -> GcsSettings:
    """Return what ``storage_options`` and fsspec's configuration say.

    gcsfs reads them and finds the credentials, so that all its options mean the same here. Nothing is sent to
    Cloud Storage.

    Args:
        uri: of the backend, without secrets.
        storage_options: options of `gcsfs.GCSFileSystem`, and the time limits.

    Raises:
        BackendError: an option is wrong, or has no equivalent here.
        BackendPermissionError: there are no usable credentials.
    """
    operation = Operation("open", uri)
    configured = apply_config(GCSFileSystem, storage_options)
    chosen = _client_timeout(configured)
    limits = _time_limits(uri, configured, chosen)
    filesystem = _open_filesystem(operation, split_time_limits(uri, storage_options)[1])
    endpoint = filesystem.base[: -len(_API_PATH)].rstrip("/")
    return GcsSettings(
        endpoint,
        filesystem.credentials.credentials or AnonymousCredentials(),
        _user_project(operation, filesystem),
        limits,
        chosen.sock_connect or chosen.connect or limits.connect,
        chosen.sock_read or limits.timeout,
        _proxies(operation, filesystem.session_kwargs, endpoint),
    )


def _open_filesystem(operation: Operation, storage_options: Mapping[str, Any]) -> GCSFileSystem:
    options = dict(storage_options)
    endpoint = options.get("endpoint_url")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise operation.error(BackendError, "endpoint_url must begin with http:// or https://")
    if "token" in options:  # otherwise fsspec's configuration may name one
        options["token"] = _token(operation, options["token"])
    try:
        return GCSFileSystem(**{**options, "use_listings_cache": False, "skip_instance_cache": True})
    except Exception as error:
        # Exceptions of requests, google-auth, json and cryptography share no base class.
        problem = explain_open(error, operation)
    # Raised outside of the handler, so that it has no context: see explain_open.
    raise problem


def _token(operation: Operation, token: Any) -> Any:
    """Return the ``token`` for gcsfs.

    A plain access token becomes a credentials object. Given the string, gcsfs would send it to Google, in a
    URL, to ask when it expires, even if requests go to a private endpoint.
    """
    if not isinstance(token, str) or token in _LOGIN_METHODS or os.path.exists(token):
        return token
    if token.endswith(".json") or token.startswith(("/", "~", ".")):
        raise operation.error(BackendPermissionError, "token names a file that does not exist")
    return Credentials(token)


def _user_project(operation: Operation, filesystem: GCSFileSystem) -> Optional[str]:
    payer = filesystem.requester_pays
    project = payer if isinstance(payer, str) else filesystem.project
    if payer and not project:
        raise operation.error(
            BackendError, "requester_pays=True needs a project. Pass project, or requester_pays='my-project'."
        )
    return project if payer else None


def _client_timeout(options: Mapping[str, Any]) -> ClientTimeout:
    """Return what gcsfs's option ``requests_timeout`` says."""
    chosen = options.get("requests_timeout")
    return chosen if isinstance(chosen, ClientTimeout) else ClientTimeout(total=chosen)


def _time_limits(uri: str, options: Mapping[str, Any], chosen: ClientTimeout) -> TimeLimits:
    """Return the time limits. A ``requests_timeout`` is the timeout unless there is a ``timeout``."""
    default = replace(DEFAULT_TIME_LIMITS, timeout=chosen.total) if chosen.total else DEFAULT_TIME_LIMITS
    return split_time_limits(uri, options, default)[0]


def _proxies(operation: Operation, session_options: Mapping[str, Any], endpoint: str) -> dict[str, str]:
    unknown = sorted(set(session_options) - _SESSION_OPTIONS)
    if unknown:
        raise operation.error(
            BackendError,
            f"session_kwargs has options that are not supported: {', '.join(unknown)}. Remove them from "
            f"storage_options; {' and '.join(sorted(_SESSION_OPTIONS))} are supported.",
        )
    proxy = session_options.get("proxy")
    if proxy:
        return {"all": str(proxy)}
    return get_environ_proxies(endpoint) if session_options.get("trust_env") else {}
