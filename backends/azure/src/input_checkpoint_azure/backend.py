"""Azure Blob Storage through adlfs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional, TypeVar

from adlfs import AzureBlobFileSystem
from azure.core.exceptions import DecodeError, ResourceNotFoundError

from input_checkpoint.backends.answers import PageChain, UnexpectedAnswerError
from input_checkpoint.backends.base import Backend, ObjectInfo
from input_checkpoint.backends.engines import FSSPEC, OBSTORE, choose_engine
from input_checkpoint.backends.object_store import ObjectStoreBackend, Operation
from input_checkpoint.backends.time_limits import Deadline, finish_in_time, run_in_loop
from input_checkpoint.errors import BackendError
from input_checkpoint_azure.answers import GET, LIST, ListedBlobs, check_answer
from input_checkpoint_azure.errors import BLOB_NOT_FOUND, error_code, translate
from input_checkpoint_azure.filesystem import open_filesystem, read_options
from input_checkpoint_azure.obstore_engine import open_with_obstore
from input_checkpoint_azure.uri import parse_azure_uri

_PARALLEL_DELETES = 32
# Azure's client reads this much before it says how large a blob is: `max_single_get_size`.
_FIRST_DOWNLOAD = 32 << 20

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
            ``credential``, ``connection_string``, ``anon``, …; and the time limits, see
            `input_checkpoint.backends.time_limits`.

    Example:
        ```python
        backend = AzureBackend("abfs://container/run-7/input", {"account_name": "myaccount", "anon": False})
        ```
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any]) -> None:
        parsed = parse_azure_uri(uri)
        super().__init__(uri, parsed.prefix, shown_uri=parsed.shown, storage_options=storage_options)
        self._parsed_uri = parsed
        self._storage_options = storage_options
        self._limits, options = read_options(parsed.shown, storage_options)
        self._request_options = {
            # Following a redirect turns a write into a read, whose answer would look like success.
            "permit_redirects": False,
            "raw_response_hook": check_answer,
            # Retries are the task of `input_checkpoint.RetryPolicy`; Azure's own take 83 s.
            "retry_total": 0,
            "connection_timeout": options.get("connection_timeout") or self._limits.connect,
            "read_timeout": options.get("read_timeout") or self._limits.timeout,
        }
        self.connect()

    def open_client(self) -> _Client:
        """See `ObjectStoreBackend.open_client`."""
        filesystem = open_filesystem(self._parsed_uri, read_options(self.uri, self._storage_options)[1])
        return _Client(filesystem, filesystem.service_client.get_container_client(self._parsed_uri.container))

    def close_client(self, client: _Client) -> None:
        """See `ObjectStoreBackend.close_client`."""
        run_in_loop(client.filesystem.loop, client.filesystem.service_client.close, self._limits.start())

    def upload(self, name: str, data: bytes, *, if_absent: bool) -> None:
        """See `ObjectStoreBackend.upload`."""
        container = self.client.container
        self._wait(
            lambda _: container.upload_blob(name, data, overwrite=not if_absent, **self._request_options),
            len(data),
        )

    def download(self, name: str, start: int, end: Optional[int]) -> bytes:
        """See `ObjectStoreBackend.download`."""
        length = None if end is None else end - start
        size = _FIRST_DOWNLOAD if length is None else length
        return self._wait(lambda deadline: self._download(name, start, length, deadline), size)

    def check_exists(self, name: str) -> None:
        """See `ObjectStoreBackend.check_exists`."""
        blob = self.client.container.get_blob_client(name)
        self._wait(lambda _: blob.get_blob_properties(**self._request_options))

    def list_objects(self, prefix: str) -> Iterable[ObjectInfo]:
        """See `ObjectStoreBackend.list_objects`."""
        # Accounts with a hierarchical namespace sort folder by folder.
        return sorted(self._wait(lambda deadline: self._list(prefix, deadline)), key=lambda info: info.key)

    def delete_objects(self, names: Sequence[str]) -> None:
        """See `ObjectStoreBackend.delete_objects`."""
        self._wait(lambda deadline: self._delete(names, deadline))

    def translate_error(self, error: Exception, operation: Operation) -> BackendError:
        """See `ObjectStoreBackend.translate_error`."""
        return translate(error, operation)

    async def _download(self, name: str, start: int, length: Optional[int], deadline: Deadline) -> bytes:
        blob = self.client.container.get_blob_client(name)
        stream = await blob.download_blob(offset=start, length=length, **self._request_options)
        if length is None:
            deadline.extend(max(0, stream.size - _FIRST_DOWNLOAD))
        data: bytes = await stream.readall()
        if len(data) != stream.size:
            raise UnexpectedAnswerError(GET, f"{len(data)} bytes", f"{stream.size}")
        return data

    async def _list(self, prefix: str, deadline: Deadline) -> Sequence[ObjectInfo]:
        pages = self.client.container.list_blobs(
            name_starts_with=prefix, include=["metadata"], **self._request_options
        ).by_page()
        chain, found = PageChain(LIST), ListedBlobs(self._parsed_uri.container)
        try:
            async for page in pages:
                blobs = [blob async for blob in page]
                found.add(pages.container, blobs)
                if pages.continuation_token:
                    chain.follow(pages.continuation_token, len(blobs))
                deadline.restart()
        except (AttributeError, DecodeError) as error:
            # What the client library raises for a body without the elements of a listing.
            raise UnexpectedAnswerError(LIST, "another body", "a listing") from error
        return found.infos

    async def _delete(self, names: Sequence[str], deadline: Deadline) -> None:
        # One by one: a batch request costs the same, and not all accounts and emulators support it.
        slots = asyncio.Semaphore(_PARALLEL_DELETES)

        async def delete(name: str) -> None:
            async with slots:
                await finish_in_time(lambda: self._delete_one(name), self._limits.start())
                deadline.restart()

        outcomes = await asyncio.gather(*map(delete, names), return_exceptions=True)
        for error in outcomes:
            if error is not None:
                raise error

    async def _delete_one(self, name: str) -> None:
        try:
            await self.client.container.delete_blob(name, **self._request_options)
        except ResourceNotFoundError as error:
            if error_code(error) != BLOB_NOT_FOUND:
                raise

    def _wait(self, work: Callable[[Deadline], Awaitable[_Result]], size: int = 0) -> _Result:
        """Run a coroutine that sends requests, within its time.

        Args:
            work: the coroutine function. It gets its deadline.
            size: bytes that it moves, as far as they are known.
        """
        deadline = self._limits.start(size)
        return run_in_loop(self.client.filesystem.loop, lambda: work(deadline), deadline)


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
