"""Objects in an Azure Blob Storage container."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Optional, TypeVar

from azure.core.exceptions import ResourceNotFoundError
from fsspec.asyn import sync

from input_checkpoint.backends.base import Backend, Data, ObjectInfo, check_key
from input_checkpoint.backends.engines import FSSPEC, OBSTORE, chosen_engine
from input_checkpoint.errors import BackendError
from input_checkpoint_azure.account import container_and_prefix, open_filesystem, uri_to_show
from input_checkpoint_azure.errors import error_code, translate
from input_checkpoint_azure.obstore_engine import open_with_obstore

_DELETES_AT_ONCE = 32
_PAST_THE_END = "InvalidRange"
_FOLDER_MARK = "hdi_isfolder"

_Result = TypeVar("_Result")


class AzureBackend(Backend):
    """A prefix of an Azure Blob Storage container.

    `create` sends ``If-None-Match: *``, which Azure makes atomic
    (https://learn.microsoft.com/azure/storage/blobs/concurrency-manage): with the Put Blob of an object of up
    to 64 MiB, and with the Put Block List that ends a larger one.

    Args:
        uri: ``abfs://container/prefix`` or ``abfss://container@account.dfs.core.windows.net/prefix``.
        storage_options: for `adlfs.AzureBlobFileSystem`: ``account_name``, ``account_key``, ``sas_token``,
            ``credential``, ``connection_string``, ``anon``, …

    Example:
        ```python
        backend = AzureBackend("abfs://container/run-7/input", {"account_name": "myaccount", "anon": False})
        ```
    """

    patience: ClassVar[dict[str, float]] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 60}
    """Of each request. Trying again is for `input_checkpoint.RetryPolicy`; Azure's own takes 83 s a call."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        super().__init__(uri)
        self._uri = uri_to_show(uri)
        with self._errors("open", ""):
            self._fs = open_filesystem(uri, storage_options)
        container, self._prefix = container_and_prefix(self._fs, uri)
        self._container = self._fs.service_client.get_container_client(container)

    def create(self, key: str, data: Data) -> None:
        """See `Backend.create`."""
        name = self._name(key)
        with self._errors("create", key):
            self._wait(self._container.upload_blob(name, bytes(data), overwrite=False, **self.patience))

    def put(self, key: str, data: Data) -> None:
        """See `Backend.put`."""
        name = self._name(key)
        with self._errors("write", key):
            self._wait(self._container.upload_blob(name, bytes(data), overwrite=True, **self.patience))

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        """See `Backend.get`."""
        blob = self._container.get_blob_client(self._name(key))
        with self._errors("read", key):
            if end is not None and end <= start:
                self._wait(blob.get_blob_properties(**self.patience))
                return b""
            try:
                return self._wait(_download(blob, start, end, self.patience))
            except Exception as error:
                if error_code(error) == _PAST_THE_END:
                    return b""
                raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Backend.list`."""
        with self._errors("list", prefix):
            found = self._wait(self._list(self._prefix + prefix))
        # Accounts with a hierarchical namespace sort folder by folder.
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, keys: Iterable[str]) -> None:
        """See `Backend.delete`."""
        names = [self._name(key) for key in keys]
        with self._errors("delete", ""):
            self._wait(self._delete(names))

    def close(self) -> None:
        """See `Backend.close`."""
        self._wait(self._fs.service_client.close())

    async def _list(self, prefix: str) -> Sequence[ObjectInfo]:
        start = len(self._prefix)
        blobs = self._container.list_blobs(name_starts_with=prefix, include=["metadata"], **self.patience)
        return [
            ObjectInfo(blob.name[start:], blob.size, blob.last_modified.timestamp())
            async for blob in blobs
            if _FOLDER_MARK not in (blob.metadata or {})
        ]

    async def _delete(self, names: Sequence[str]) -> None:
        # One by one: a batch request costs the same, and is not known to every kind of account and emulator.
        free = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def delete(name: str) -> None:
            async with free:
                try:
                    await self._container.delete_blob(name, **self.patience)
                except ResourceNotFoundError as error:
                    if error_code(error) != "BlobNotFound":
                        raise

        outcomes = await asyncio.gather(*map(delete, names), return_exceptions=True)
        for error in outcomes:
            if error is not None:
                raise error

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        async def run() -> _Result:
            return await work

        result: _Result = sync(self._fs.loop, run)
        return result

    @contextlib.contextmanager
    def _errors(self, operation: str, key: str) -> Iterator[None]:
        try:
            yield
        except BackendError:
            raise
        except Exception as error:
            # Azure's client lets exceptions of aiohttp and asyncio through, which share no base class.
            raise translate(error, operation, self.uri, key) from error


async def _download(blob: Any, start: int, end: Optional[int], patience: Mapping[str, float]) -> bytes:
    length = None if end is None else end - start
    stream = await blob.download_blob(offset=start, length=length, **patience)
    data: bytes = await stream.readall()
    return data


def open_azure(uri: str, storage_options: Mapping[str, Any]) -> Backend:
    """Open ``abfs://container/prefix``, ``abfss://container@account.dfs.core.windows.net/prefix``, ``az://…``.

    Args:
        uri: of a place in a container.
        storage_options: ``engine`` is ``"fsspec"``, which stands for `AzureBackend` over adlfs, or
            ``"obstore"``. The others are adlfs's, whichever engine it is.
    """
    engine, options = chosen_engine(uri, storage_options, (FSSPEC, OBSTORE))
    return open_with_obstore(uri, options) if engine == OBSTORE else AzureBackend(uri, options)
