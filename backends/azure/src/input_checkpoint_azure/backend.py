"""Azure Blob Storage through adlfs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Optional, TypeVar

from adlfs import AzureBlobFileSystem
from azure.core.exceptions import ResourceNotFoundError
from fsspec.asyn import sync

from input_checkpoint.backends.base import Backend, ObjectInfo
from input_checkpoint.backends.engines import FSSPEC, OBSTORE, choose_engine
from input_checkpoint.backends.object_store import ObjectStoreBackend, Operation
from input_checkpoint.errors import BackendError
from input_checkpoint_azure.errors import BLOB_NOT_FOUND, error_code, translate
from input_checkpoint_azure.filesystem import open_filesystem
from input_checkpoint_azure.obstore_engine import open_with_obstore
from input_checkpoint_azure.uri import parse_azure_uri

_PARALLEL_DELETES = 32
_FOLDER_MARK = "hdi_isfolder"

_Result = TypeVar("_Result")


class _Client(NamedTuple):
    filesystem: AzureBlobFileSystem
    container: Any
    """A `azure.storage.blob.aio.ContainerClient`."""


class AzureBackend(ObjectStoreBackend):
    """A prefix of an Azure Blob Storage container.

    `create` sends ``If-None-Match: *``, which Azure makes atomic
    (https://learn.microsoft.com/azure/storage/blobs/concurrency-manage): with the Put Blob of an object of up
    to 64 MiB, and with the Put Block List that completes a larger one.

    Args:
        uri: ``abfs://container/prefix`` or ``abfss://container@account.dfs.core.windows.net/prefix``.
        storage_options: for `adlfs.AzureBlobFileSystem`: ``account_name``, ``account_key``, ``sas_token``,
            ``credential``, ``connection_string``, ``anon``, …

    Example:
        ```python
        backend = AzureBackend("abfs://container/run-7/input", {"account_name": "myaccount", "anon": False})
        ```
    """

    request_options: ClassVar[dict[str, float]] = {
        "retry_total": 0,
        "connection_timeout": 5,
        "read_timeout": 60,
    }
    """Of every request. Retries are the task of `input_checkpoint.RetryPolicy`; Azure's own take 83 s."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        parsed = parse_azure_uri(uri)
        super().__init__(uri, parsed.prefix, shown_uri=parsed.shown, storage_options=storage_options)
        self._parsed_uri = parsed
        self._storage_options = storage_options
        self.connect()

    def open_client(self) -> _Client:
        """See `ObjectStoreBackend.open_client`."""
        filesystem = open_filesystem(self._parsed_uri, self._storage_options)
        return _Client(filesystem, filesystem.service_client.get_container_client(self._parsed_uri.container))

    def close_client(self, client: _Client) -> None:
        """See `ObjectStoreBackend.close_client`."""
        sync(client.filesystem.loop, client.filesystem.service_client.close)

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """See `ObjectStoreBackend.upload`."""
        self._wait(
            self.client.container.upload_blob(name, data, overwrite=not if_absent, **self.request_options)
        )

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """See `ObjectStoreBackend.download`."""
        return self._wait(self._download(name, start, None if end is None else end - start))

    def check_exists(self, name: str) -> None:
        """See `ObjectStoreBackend.check_exists`."""
        self._wait(self.client.container.get_blob_client(name).get_blob_properties(**self.request_options))

    def list_objects(self, prefix: str) -> Iterable[ObjectInfo]:
        """See `ObjectStoreBackend.list_objects`."""
        # Accounts with a hierarchical namespace sort folder by folder.
        return sorted(self._wait(self._list(prefix)), key=lambda info: info.key)

    def delete_objects(self, names: Sequence[str]) -> None:
        """See `ObjectStoreBackend.delete_objects`."""
        self._wait(self._delete(names))

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """See `ObjectStoreBackend.translate_error`."""
        return translate(error, operation)

    async def _download(self, name: str, start: int, length: Optional[int]) -> bytes:
        blob = self.client.container.get_blob_client(name)
        stream = await blob.download_blob(offset=start, length=length, **self.request_options)
        data: bytes = await stream.readall()
        return data

    async def _list(self, prefix: str) -> Sequence[ObjectInfo]:
        blobs = self.client.container.list_blobs(
            name_starts_with=prefix, include=["metadata"], **self.request_options
        )
        return [
            ObjectInfo(blob.name, blob.size, blob.last_modified.timestamp())
            async for blob in blobs
            if _FOLDER_MARK not in (blob.metadata or {})
        ]

    async def _delete(self, names: Sequence[str]) -> None:
        # One by one: a batch request costs the same, and not all accounts and emulators support it.
        slots = asyncio.Semaphore(_PARALLEL_DELETES)

        async def delete(name: str) -> None:
            async with slots:
                await self._delete_one(name)

        outcomes = await asyncio.gather(*map(delete, names), return_exceptions=True)
        for error in outcomes:
            if error is not None:
                raise error

    async def _delete_one(self, name: str) -> None:
        try:
            await self.client.container.delete_blob(name, **self.request_options)
        except ResourceNotFoundError as error:
            if error_code(error) != BLOB_NOT_FOUND:
                raise

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        async def run() -> _Result:
            return await work

        result: _Result = sync(self.client.filesystem.loop, run)
        return result


def open_azure(uri: str, storage_options: Mapping[str, Any]) -> Backend:
    """Open ``abfs://container/prefix``, ``abfss://container@account.dfs.core.windows.net/prefix``, ``az://…``.

    Args:
        uri: of a prefix of a container.
        storage_options: ``engine`` is ``"fsspec"`` (the default: `AzureBackend`, through adlfs) or
            ``"obstore"``. All other options are those of adlfs, for both engines.
    """
    engine, options = choose_engine(uri, storage_options, (FSSPEC, OBSTORE))
    if engine == OBSTORE:
        return open_with_obstore(uri, options, lambda: AzureBackend(uri, options))
    return AzureBackend(uri, options)
