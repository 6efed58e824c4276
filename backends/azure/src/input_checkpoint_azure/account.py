"""Where in Azure a backend is and how to log in: what its URI and adlfs make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adlfs import AzureBlobFileSystem

from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import BackendNotFoundError


def uri_to_show(uri: str) -> str:
    """Return the URI as it may be shown. What stands before an ``@`` is the container, and no secret.

    >>> uri_to_show("abfss://container@account.dfs.core.windows.net/run")
    'abfss://container@account.dfs.core.windows.net/run'

    Raises:
        BackendNotFoundError: the URI holds credentials.
    """
    user, at, rest = uri.partition("://")[2].partition("@")
    if not at:
        return redact(uri)
    if "/" in user or ":" in user or "?" in rest:
        raise BackendNotFoundError(
            f"{redact(uri)}: credentials do not belong into the URI. Write abfs://container/prefix, and "
            "pass storage_options or use the Azure tools' configuration."
        )
    return uri


def open_filesystem(uri: str, storage_options: Mapping[str, Any]) -> AzureBlobFileSystem:
    """Return adlfs's filesystem; it sends no request before it is used."""
    return AzureBlobFileSystem(
        **{
            "use_listings_cache": False,
            "skip_instance_cache": True,
            **AzureBlobFileSystem._get_kwargs_from_urls(uri),
            **storage_options,
        }
    )


def container_and_prefix(filesystem: AzureBlobFileSystem, uri: str) -> tuple[str, str]:
    """Return the container, and the prefix of all names with a slash at its end, or nothing.

    Raises:
        BackendNotFoundError: the URI names no container.
    """
    container, prefix, _ = filesystem.split_path(uri)
    if not container:
        raise BackendNotFoundError(f"{redact(uri)} names no container. Write abfs://container/prefix.")
    return container, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
