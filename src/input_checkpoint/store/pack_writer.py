"""Packs: stored objects that carry many chunks, written several at once in bounded memory."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Callable, Optional

from input_checkpoint.backends.base import Backend
from input_checkpoint.format.chunk_table import Location

PACK_BYTES = 8 << 20
CONCURRENCY = 4


class PackWriter:
    """Joins chunks into packs and uploads several packs at once.

    At most ``concurrency`` full packs are in flight and one is being filled. One of those in flight may be
    there twice, in pieces and joined: memory stays under ``(concurrency + 2) * pack_bytes`` plus one chunk.
    `add` waits when the storage is slower than its caller.

    Args:
        backend: where to put the packs.
        pack_key: gives the key of the n-th pack.
        pack_bytes: a pack is closed once it holds this many bytes.
        concurrency: how many uploads run at once.
    """

    def __init__(
        self,
        backend: Backend,
        pack_key: Callable[[int], str],
        pack_bytes: int = PACK_BYTES,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self._backend = backend
        self._pack_key = pack_key
        self._pack_bytes = pack_bytes
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="input-checkpoint-put")
        self._free = threading.BoundedSemaphore(concurrency)
        self._joining = threading.Lock()
        self._uploads: list[Future[None]] = []
        self._sizes: dict[str, int] = {}
        self._key = pack_key(0)
        self._pieces: list[bytes] = []
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
        self._executor.shutdown(wait=True)

    def add(self, stored: bytes, raw_bytes: int) -> Location:
        """Append a chunk and return where it goes. Raises what an earlier upload raised.

        Args:
            stored: what to write.
            raw_bytes: size of the content, before compression.
        """
        location = Location(self._key, self._size, len(stored), raw_bytes)
        self._pieces.append(stored)
        self._size += len(stored)
        if self._size >= self._pack_bytes:
            self._upload()
        return location

    def finish(self) -> dict[str, int]:
        """Upload what is left, wait until everything is stored, and return the size of each pack by key."""
        if self._pieces:
            self._upload()
        for upload in self._uploads:
            upload.result()
        return self._sizes

    def _upload(self) -> None:
        key = self._key
        self._sizes[key] = self._size
        self._key = self._pack_key(len(self._sizes))
        pieces, self._pieces, self._size = self._pieces, [], 0
        self._free.acquire()
        self._raise_failure()
        self._uploads.append(self._executor.submit(self._put, key, pieces))

    def _put(self, key: str, pieces: list[bytes]) -> None:
        try:
            with self._joining:
                data = b"".join(pieces)
                pieces.clear()
            self._backend.put(key, data)
        finally:
            self._free.release()

    def _raise_failure(self) -> None:
        done = [upload for upload in self._uploads if upload.done()]
        self._uploads = [upload for upload in self._uploads if upload not in done]
        for upload in done:
            upload.result()
