"""adlfs, which finds the account and the credentials for both engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adlfs import AzureBlobFileSystem

from input_checkpoint_azure.uri import AzureUri


def open_filesystem(uri: AzureUri, storage_options: Mapping[str, Any]) -> AzureBlobFileSystem:
    """Return adlfs's filesystem for a URI. It sends no request before its first use."""
    account = {} if uri.account is None else {"account_name": uri.account}
    # A cached instance would have the old credentials, and a cached listing the old objects.
    caches = {"use_listings_cache": False, "skip_instance_cache": True}
    return AzureBlobFileSystem(**{**account, **storage_options, **caches})
