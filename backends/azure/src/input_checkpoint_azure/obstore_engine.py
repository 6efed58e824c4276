"""Azure Blob Storage over obstore, by the options of adlfs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

from adlfs import AzureBlobFileSystem
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from fsspec.asyn import sync
from fsspec.config import apply_config

from input_checkpoint.backends.obstore import ObjectStore, ObstoreBackend, Patience, Service, load_obstore
from input_checkpoint.errors import BackendError
from input_checkpoint_azure.account import container_and_prefix, open_filesystem, uri_to_show
from input_checkpoint_azure.errors import translate

_MAX_KEYS_PER_DELETE = 256  # https://learn.microsoft.com/rest/api/storageservices/blob-batch
_SCOPE = "https://storage.azure.com/.default"
_SECONDS_FOR_A_TOKEN = 60

_LOGIN = {
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
_PATIENCE = {"connection_timeout", "read_timeout"}
_WITHOUT_EFFECT = {"use_listings_cache", "skip_instance_cache"}
"""Of fsspec's caches, which there are none of here."""

Credential = Callable[[], dict[str, Any]]


def open_with_obstore(uri: str, storage_options: Mapping[str, Any]) -> ObstoreBackend:
    """Open a place in Azure Blob Storage.

    adlfs works out the account and how to log in; after that it only renews tokens.

    Args:
        uri: ``abfs://container/prefix`` and so on.
        storage_options: for `adlfs.AzureBlobFileSystem`. One that obstore has no equivalent for is an error.

    Raises:
        BackendError: obstore is not installed, or an option has no equivalent.
    """
    shown = uri_to_show(uri)
    azure_store = load_obstore(shown, "input-checkpoint-azure[obstore]").AzureStore
    options = apply_config(AzureBlobFileSystem, storage_options)
    _check(shown, options)
    try:
        filesystem = open_filesystem(uri, options)
    except Exception as error:
        # Of azure-core and azure-identity, among others.
        raise translate(error, "open", shown, "") from error
    container, prefix = container_and_prefix(filesystem, uri)
    url = urlsplit(filesystem.service_client.url)
    credential = _credential(filesystem, url.query)
    config = {
        # All that matters: obstore takes what is not given here from environment variables.
        "account_name": filesystem.service_client.account_name,
        "endpoint": f"{url.scheme}://{url.netloc}{url.path}".rstrip("/"),
        "skip_signature": credential is None,
        "use_emulator": False,
        "use_fabric_endpoint": False,
    }

    def open_store(client_options: dict[str, Any], retry_config: dict[str, Any]) -> ObjectStore:
        store: ObjectStore = azure_store(
            container,
            prefix=prefix.rstrip("/") or None,
            config=config,
            client_options={**client_options, "allow_http": url.scheme == "http"},
            retry_config=retry_config,
            credential_provider=credential,
        )
        return store

    service = Service(open_store, translate, _MAX_KEYS_PER_DELETE, patience=_patience(options))
    return ObstoreBackend(shown, service)


def _check(shown: str, options: Mapping[str, Any]) -> None:
    given = {name for name, value in options.items() if value is not None}
    unknown = sorted(given - _LOGIN - _PATIENCE - _WITHOUT_EFFECT)
    if unknown:
        raise BackendError(
            f"cannot open {shown}: engine='obstore' has no equivalent for {', '.join(unknown)} in "
            "storage_options. Leave it out, or leave the engine out."
        )


def _credential(filesystem: AzureBlobFileSystem, sas_token: str) -> Optional[Credential]:
    """Return what gives obstore the credentials that Azure's client has; None if it has none."""
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

    def renewed() -> dict[str, Any]:
        token = sync(filesystem.loop, found.get_token, _SCOPE, timeout=_SECONDS_FOR_A_TOKEN)
        return {"token": token.token, "expires_at": datetime.fromtimestamp(token.expires_on, timezone.utc)}

    return renewed


def _patience(options: Mapping[str, Any]) -> Patience:
    default = Patience()
    connect = options.get("connection_timeout") or default.connect
    return Patience(connect, options.get("read_timeout") or default.answer)
