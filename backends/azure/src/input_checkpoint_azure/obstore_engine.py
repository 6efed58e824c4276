"""Azure Blob Storage through obstore, with the options of adlfs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

from adlfs import AzureBlobFileSystem
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

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
from input_checkpoint.backends.time_limits import TimeLimits, run_in_loop
from input_checkpoint_azure.errors import CREDENTIAL_REFUSALS, explain, translate
from input_checkpoint_azure.filesystem import open_filesystem, read_options
from input_checkpoint_azure.uri import parse_azure_uri

_ETAG = re.compile(r'"?0x[0-9A-F]+"?')  # https://learn.microsoft.com/rest/api/storageservices/put-blob
_TOKEN_SCOPE = "https://storage.azure.com/.default"

_LOGIN_OPTIONS = {
    "account_name",
    "account_key",
    "account_host",
    "anon",
    "client_id",
    "client_secret",
    "connection_string",
    "credential",
    "sas_token",
    "tenant_id",
}
_TIMEOUT_OPTIONS = {"connection_timeout", "read_timeout"}

Credential = Callable[[], dict[str, Any]]


def open_with_obstore(
    uri: str, storage_options: Mapping[str, Any], open_without_obstore: Callable[[], Backend]
) -> ObstoreBackend:
    """Open a prefix of a container.

    adlfs finds the account and the credentials; later it only renews tokens.

    Args:
        uri: ``abfs://container/prefix`` and so on.
        storage_options: for `adlfs.AzureBlobFileSystem`. One that obstore has no equivalent for is an error.
        open_without_obstore: see `ObjectStoreService`.

    Raises:
        BackendError: obstore is not installed, or an option has no equivalent.
    """
    parsed = parse_azure_uri(uri)
    azure_store = load_obstore(parsed.shown, "input-checkpoint-azure[obstore]").AzureStore
    limits, options = _read_options(parsed.shown, storage_options)

    def log_in() -> OpenStore:
        # Options are read again, because fsspec's configuration may hold renewed credentials.
        current = _read_options(parsed.shown, storage_options)[1]
        with translated_errors(Operation("open", parsed.shown), translate):
            filesystem = open_filesystem(parsed, current)
        url = urlsplit(filesystem.service_client.url)
        credential = _credential(filesystem, url.query, limits)
        config = {
            # Complete: obstore reads settings that are missing here from the environment.
            "account_name": filesystem.service_client.account_name,
            "endpoint": f"{url.scheme}://{url.netloc}{url.path}".rstrip("/"),
            "skip_signature": credential is None,
            "use_emulator": False,
            "use_fabric_endpoint": False,
        }

        def open_store(client_options: dict[str, Any], retry_config: dict[str, Any]) -> ObjectStore:
            store: ObjectStore = azure_store(
                parsed.container,
                prefix=parsed.prefix.rstrip("/") or None,
                config=config,
                client_options={**client_options, "allow_http": url.scheme == "http"},
                retry_config=retry_config,
                credential_provider=credential,
            )
            return store

        return open_store

    service = ObjectStoreService(
        log_in,
        open_without_obstore,
        explain,
        _ETAG,
        limits=RequestLimits(limits, options.get("connection_timeout"), options.get("read_timeout")),
        credential_refusals=CREDENTIAL_REFUSALS,
    )
    return ObstoreBackend(parsed.shown, service)


def _read_options(uri: str, storage_options: Mapping[str, Any]) -> tuple[TimeLimits, dict[str, Any]]:
    limits, options = read_options(uri, storage_options)
    refuse_options(uri, OBSTORE, _unsupported(options))
    return limits, options


def _unsupported(options: Mapping[str, Any]) -> list[str]:
    given = {name for name, value in options.items() if value is not None}
    return sorted(given - _LOGIN_OPTIONS - _TIMEOUT_OPTIONS - FSSPEC_CACHE_OPTIONS)


def _credential(filesystem: AzureBlobFileSystem, sas_token: str, limits: TimeLimits) -> Optional[Credential]:
    """Return the credentials of Azure's client as a provider for obstore; None if it has none."""
    found = filesystem.service_client.credential
    if sas_token:
        return lambda: {"sas_token": sas_token, "expires_at": None}
    if found is None:
        return None
    if isinstance(found, AzureSasCredential):
        return lambda: {"sas_token": found.signature, "expires_at": None}
    if isinstance(found, AzureNamedKeyCredential):
        return lambda: {"access_key": found.named_key.key, "expires_at": None}
    if hasattr(found, "account_key"):
        return lambda: {"access_key": found.account_key, "expires_at": None}

    def renewed_token() -> dict[str, Any]:
        token = run_in_loop(filesystem.loop, lambda: found.get_token(_TOKEN_SCOPE), limits.start())
        return {"token": token.token, "expires_at": datetime.fromtimestamp(token.expires_on, timezone.utc)}

    return renewed_token
