"""URIs of places in Azure Blob Storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

from input_checkpoint.backends.object_store import parse_bucket_uri
from input_checkpoint.backends.redaction import redact_uri

_LOGIN = "storage_options or the configuration of the Azure tools"
_ACCOUNT_HOST = re.compile(r"(.+)\.(?:dfs|blob)\.core\.windows\.net")
_DFS_HOST = ".dfs.core.windows.net"


@dataclass(frozen=True)
class AzureUri:
    """What the URI of a backend says."""

    shown: str
    """The URI for messages, without secrets."""
    container: str
    prefix: str
    """Of the names of all blobs: empty, or with a slash at its end."""
    account: Optional[str] = None
    """None if the URI does not name it."""


def parse_azure_uri(uri: str) -> AzureUri:
    """Return what a URI says, in any of the forms that adlfs knows.

    Args:
        uri: ``abfs://container/prefix``, ``abfs://container@account.dfs.core.windows.net/prefix`` or
            ``abfs://account.dfs.core.windows.net/container/prefix``; ``abfss`` and ``az`` mean the same.

    Raises:
        BackendNotFoundError: the URI names no container, or holds credentials.

    Example:
        >>> parse_azure_uri("abfss://container@account.dfs.core.windows.net/run").account
        'account'
    """
    rest = uri.partition("://")[2]
    authority, _, path = rest.partition("/")
    user, at, host = authority.partition("@")
    if at:
        return AzureUri(redact_uri(uri), *_container_and_prefix(uri, f"{user}/{path}"), _account(host))
    if authority.endswith(_DFS_HOST):
        return AzureUri(redact_uri(uri), *_container_and_prefix(uri, path), _account(authority))
    return AzureUri(redact_uri(uri), *_container_and_prefix(uri, rest))


def _container_and_prefix(uri: str, address: str) -> tuple[str, str]:
    return parse_bucket_uri(uri, address=address, noun="container", login=_LOGIN, forbidden="?")


def _account(host: str) -> Optional[str]:
    match = _ACCOUNT_HOST.match(host)
    return match.group(1) if match else None
