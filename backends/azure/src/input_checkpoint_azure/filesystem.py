"""adlfs, which finds the account and the credentials for both engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adlfs import AzureBlobFileSystem
from fsspec.config import apply_config

from input_checkpoint.backends.time_limits import DEFAULT_TIME_LIMITS, TimeLimits, split_time_limits
from input_checkpoint_azure.uri import AzureUri


def open_filesystem(uri: AzureUri, options: Mapping[str, Any]) -> AzureBlobFileSystem:
    """Return adlfs's filesystem for a URI. It sends no request before its first use."""
    account = {} if uri.account is None else {"account_name": uri.account}
    # A cached instance would have the old credentials, and a cached listing the old objects.
    caches = {"use_listings_cache": False, "skip_instance_cache": True}
    return AzureBlobFileSystem(**{**account, **options, **caches})


def read_options(uri: str, storage_options: Mapping[str, Any]) -> tuple[TimeLimits, dict[str, Any]]:
    """Return the time limits, and the other options with those of fsspec's configuration.

    A ``read_timeout`` is the timeout unless there is a ``timeout``.

    Args:
        uri: of the backend, for messages.
        storage_options: as the user gave them.
    """
    options = apply_config(AzureBlobFileSystem, storage_options)
    read_timeout = options.get("read_timeout")
    default = (
        DEFAULT_TIME_LIMITS if read_timeout is None else replace(DEFAULT_TIME_LIMITS, timeout=read_timeout)
    )
    return split_time_limits(uri, options, default)
