"""Writes packs: objects that hold many chunks. Several are uploaded at once, in bounded memory."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Callable, Optional

from input_checkpoint.backends.base import Backend
from input_checkpoint.format.chunk_table import Location
from input_checkpoint.parallel import DaemonExecutor, is_interrupt
from input_checkpoint.store.upload_speed import UploadSpeed

PACK_BYTES = 8 << 20
CONCURRENCY = 4


class PackWriter:
    """Joins chunks into packs and uploads several packs at once.

    At most ``concurrency`` full packs are being uploaded while another one is being filled. One upload may be
    in memory twice, as chunks and as a joined pack. So memory stays under ``(concurrency + 2) * pack_bytes``
    plus one chunk. `add` blocks while the storage is slower than its caller.

    Args:
        backend: where to store the packs.
        pack_key: returns the key of the n-th pack.
        pack_bytes: a pack is uploaded once it holds at least this many bytes.
        concurrency: number of uploads at once.
        speed: measures how fast the uploads are. Default: one of its own.
    """

    def __init__(
        self,
        backend: Backend,
        pack_key: Callable[[int], str],
        pack_bytes: int = PACK_BYTES,
        concurrency: int = CONCURRENCY,
        speed: Optional[UploadSpeed] = None,
    ) -> None:
        self._speed = speed or UploadSpeed()
        self._backend = backend
        self._pack_key = pack_key
        self._pack_bytes = pack_bytes
        self._executor = DaemonExecutor(concurrency, "input-checkpoint-upload")
        self._upload_slots = threading.BoundedSemaphore(concurrency)
        self._joining = threading.Lock()
        self._uploads: list[Future[None]] = []
        self._sizes: dict[str, int] = {}
        self._key = pack_key(0)
        self._chunks: list[bytes] = []
        self._size = 0

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for upload in self._uploads:
            upload.cancel()
        self._executor.shutdown(wait=not is_interrupt(error))

    def add(self, stored: bytes, raw_bytes: int) -> Location:
        """Append a chunk and return its location.

        Args:
            stored: the bytes to store.
            raw_bytes: size of the content before compression.

        Raises:
            BackendError: an earlier upload failed.
        """
        location = Location(self._key, self._size, len(stored), raw_bytes)
        self._chunks.append(stored)
        self._size += len(stored)
        if self._size >= self._pack_bytes:
            self._upload()
        return location

    def flush(self) -> None:
        """Begin to upload what has been added. Returns at once if an upload slot is free.

        Raises:
            BackendError: an earlier upload failed.
        """
        if self._chunks:
            self._upload()

    def finish(self) -> dict[str, int]:
        """Upload the last pack, wait until every pack is stored, and return the size of each pack by key.

        Raises:
            BackendError: an upload failed.
        """
        self.flush()
        for upload in self._uploads:
            upload.result()
        return self._sizes

    def _upload(self) -> None:
        key = self._key
        self._sizes[key] = self._size
        self._key = self._pack_key(len(self._sizes))
        chunks, self._chunks, self._size = self._chunks, [], 0
        self._upload_slots.acquire()
        self._raise_failure()
        self._uploads.append(self._executor.submit(self._put, key, chunks))

    def _put(self, key: str, chunks: list[bytes]) -> None:
        try:
            with self._joining:
                data = b"".join(chunks)
                chunks.clear()
            with self._speed.measuring(len(data)):
                self._backend.put(key, data)
        finally:
            self._upload_slots.release()

    def _raise_failure(self) -> None:
        done = [upload for upload in self._uploads if upload.done()]
        self._uploads = [upload for upload in self._uploads if upload not in done]
        for upload in done:
            upload.result()
