"""Packs: stored objects that carry many chunks, written and read with bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Callable, Optional

from input_checkpoint.backend import Backend
from input_checkpoint.chunks import digest
from input_checkpoint.errors import CorruptCheckpoint, ObjectNotFound
from input_checkpoint.manifest import Chunk, PackEntry

PACK_BYTES = 16 << 20
CONCURRENCY = 4


class PackWriter:
    """Joins chunks into packs and uploads several packs at once.

    At most ``concurrency`` full packs are in flight and one is being filled, so memory stays under
    ``(concurrency + 1) * pack_bytes`` plus one chunk; `add` waits when the storage is slower than its caller.

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
        self._uploads: list[Future[None]] = []
        self._packs: list[PackEntry] = []
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

    def add(self, data: bytes, elements: int) -> Chunk:
        """Append a chunk and return where it went. Raises what an earlier upload raised."""
        chunk = Chunk(digest(data), len(self._packs), self._size, len(data), elements)
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= self._pack_bytes:
            self._upload()
        return chunk

    def finish(self) -> tuple[PackEntry, ...]:
        """Upload what is left, wait until everything is stored, and return the packs."""
        if self._pieces:
            self._upload()
        for upload in self._uploads:
            upload.result()
        return tuple(self._packs)

    def _upload(self) -> None:
        pack = PackEntry(self._pack_key(len(self._packs)), self._size)
        data = b"".join(self._pieces)
        self._packs.append(pack)
        self._pieces, self._size = [], 0
        self._free.acquire()
        self._raise_failure()
        self._uploads.append(self._executor.submit(self._put, pack.key, data))

    def _put(self, key: str, data: bytes) -> None:
        try:
            self._backend.put(key, data)
        finally:
            self._free.release()

    def _raise_failure(self) -> None:
        done = [upload for upload in self._uploads if upload.done()]
        self._uploads = [upload for upload in self._uploads if upload not in done]
        for upload in done:
            upload.result()


def read_chunks(
    backend: Backend,
    packs: Sequence[PackEntry],
    chunks: Iterable[Chunk],
    concurrency: int = CONCURRENCY,
) -> Iterator[tuple[Chunk, bytes]]:
    """Yield chunks in the order asked for, each checked against its checksum.

    Neighbouring chunks of one pack are fetched by one ranged read; a few reads run ahead of the caller.

    Raises:
        CorruptCheckpoint: a pack is missing or cut short, or a chunk fails its checksum.
    """
    with ThreadPoolExecutor(concurrency, thread_name_prefix="input-checkpoint-get") as executor:
        pending: list[Future[list[tuple[Chunk, bytes]]]] = []
        try:
            for extent in _extents(chunks):
                pending.append(executor.submit(_read, backend, packs, extent))
                if len(pending) > concurrency:
                    yield from pending.pop(0).result()
            while pending:
                yield from pending.pop(0).result()
        finally:
            for read in pending:
                read.cancel()


def _extents(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    extent: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if extent and not (_adjoin(extent[-1], chunk) and size < PACK_BYTES):
            yield extent
            extent, size = [], 0
        extent.append(chunk)
        size += chunk.length
    if extent:
        yield extent


def _adjoin(left: Chunk, right: Chunk) -> bool:
    return left.pack == right.pack and left.offset + left.length == right.offset


def _read(backend: Backend, packs: Sequence[PackEntry], extent: Sequence[Chunk]) -> list[tuple[Chunk, bytes]]:
    key = packs[extent[0].pack].key
    start, end = extent[0].offset, extent[-1].offset + extent[-1].length
    try:
        data = backend.get(key, start, end)
    except ObjectNotFound as error:
        raise CorruptCheckpoint(f"its pack {key} is missing") from error
    if len(data) != end - start:
        raise CorruptCheckpoint(f"its pack {key} is cut short")
    found = []
    for chunk in extent:
        piece = data[chunk.offset - start : chunk.offset - start + chunk.length]
        if digest(piece) != chunk.digest:
            raise CorruptCheckpoint(f"a chunk in its pack {key} fails its checksum")
        found.append((chunk, piece))
    return found
