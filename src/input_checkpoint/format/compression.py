"""zstd compression that pauses where it does not pay: TensorFlow's buffers are often compressed already."""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, Optional

import zstandard

from input_checkpoint.backends.base import Data
from input_checkpoint.errors import CorruptCheckpointError
from input_checkpoint.format.limits import FREE_BYTES, MAX_CHUNK_RATIO

_LEVEL = 1
_TRIAL_BYTES = 1 << 20
_PAUSE_BYTES = 64 << 20
_WORTHWHILE_RATIO = 0.9
_ALWAYS_RATIO = 0.8
"""Data that shrinks to this is compressed for any storage: uncompressed, it would be a quarter larger."""
_TRANSFERS = 2
"""A byte is uploaded by a save and read by a restore, usually at about the same speed."""
_READ_BYTES = 1 << 18
_HAS_BATCH_API = {"multi_compress_to_buffer", "multi_decompress_to_buffer"} <= zstandard.backend_features
_BATCH_BYTES = 1 << 20

# RFC 8878, "Skippable Frames": decoders ignore them.
_SKIPPABLE_FRAME = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A50

_UNKNOWN_SIZE = -1


def pays(size: int, stored: int, seconds: float, upload_seconds_per_byte: Optional[float]) -> bool:
    """Return whether to compress more data of a kind, judging by what was compressed last.

    Data that shrinks by less than a tenth is not compressed. Data that shrinks by a fifth or more is, because
    disk space counts too. In between, compression pays if it takes less time than the saved bytes would take
    to be uploaded and to be read back.

    Args:
        size: bytes before compression.
        stored: bytes after compression.
        seconds: how long compressing took.
        upload_seconds_per_byte: how long the upload of a byte takes. None: unknown, treated as slow.

    Example:
        >>> pays(1000, 850, seconds=20, upload_seconds_per_byte=0.1)
        True
        >>> pays(1000, 850, seconds=20, upload_seconds_per_byte=0.01)
        False
    """
    if stored > _WORTHWHILE_RATIO * size:
        return False
    if stored <= _ALWAYS_RATIO * size or upload_seconds_per_byte is None:
        return True
    return seconds < _TRANSFERS * (size - stored) * upload_seconds_per_byte


class Compressor:
    """Compresses chunks, and pauses for 64 MiB when the last megabyte shows that it does not pay.

    Use one compressor per kind of chunk, because it predicts how well the next chunks compress from the last
    ones. Not thread-safe.

    Args:
        upload_seconds_per_byte: called after each megabyte. See `pays`, which decides.
        clock: returns the processor time of this thread in seconds. On a busy machine, wall time includes
            time during which other threads and programs run.
    """

    def __init__(
        self,
        upload_seconds_per_byte: Callable[[], Optional[float]] = lambda: None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)
        self._upload_seconds_per_byte = upload_seconds_per_byte
        self._clock = clock
        self._tried_bytes = self._stored_bytes = self._pause_bytes = 0
        self._seconds = 0.0

    def compress(self, contents: Sequence[bytes]) -> Sequence[bytes]:
        """Return each content compressed, or unchanged if compression does not make it smaller."""
        size = sum(map(len, contents))
        if self._pause_bytes > 0:
            self._pause_bytes -= size
            return contents
        started = self._clock()
        stored = [
            min(content, padded(compressed, len(content), MAX_CHUNK_RATIO), key=len)
            for content, compressed in zip(contents, self._compress_all(contents))
        ]
        self._seconds += self._clock() - started
        self._tried_bytes += size
        self._stored_bytes += sum(map(len, stored))
        if self._tried_bytes >= _TRIAL_BYTES:
            self._judge()
        return stored

    def _judge(self) -> None:
        upload = self._upload_seconds_per_byte()
        if not pays(self._tried_bytes, self._stored_bytes, self._seconds, upload):
            self._pause_bytes = _PAUSE_BYTES
        self._tried_bytes = self._stored_bytes = 0
        self._seconds = 0.0

    def _compress_all(self, contents: Sequence[bytes]) -> Iterable[bytes]:
        if len(contents) == 1 or not _HAS_BATCH_API:
            return map(self._zstd.compress, contents)
        # While another thread runs Python code, each call into zstd waits 5 ms to get the GIL back.
        compressed = self._zstd.multi_compress_to_buffer(list(contents))
        return (compressed[number].tobytes() for number in range(len(contents)))


def compress(data: bytes) -> bytes:
    """Return ``data`` compressed, even if that is not smaller.

    Example:
        >>> decompress(compress(b"a" * 1000), 1000) == b"a" * 1000
        True
    """
    return compress_parts([data], len(data))


def compress_parts(parts: Iterable[Data], size: int) -> bytes:
    """Return the concatenation of ``parts`` compressed. Holds one part and the result in memory.

    Args:
        parts: what to compress.
        size: total number of bytes in all parts.
    """
    stream = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=size)
    compressed = [stream.compress(part) for part in parts]
    return b"".join([*compressed, stream.flush()])


def padded(compressed: bytes, size: int, max_ratio: int) -> bytes:
    """Return compressed data that is long enough for readers to accept that it unpacks to ``size`` bytes.

    They refuse a few bytes that unpack to gigabytes, see `max_size`. Data that compresses so well is padded
    with a frame that decoders skip.

    Example:
        >>> zeros = bytes(32 << 20)
        >>> 32 << 20 <= max_size(len(padded(compress(zeros), 32 << 20, 64)), 64)
        True
    """
    missing = -(-(size - FREE_BYTES) // max_ratio) - len(compressed)
    if missing <= 0:
        return compressed
    filling = bytes(max(0, missing - _SKIPPABLE_FRAME.size))
    return b"".join((compressed, _SKIPPABLE_FRAME.pack(_SKIPPABLE_MAGIC, len(filling)), filling))


def max_size(stored: int, max_ratio: int) -> int:
    """Return to how many bytes ``stored`` bytes may unpack.

    Example:
        >>> max_size(1000, max_ratio=4) == (16 << 20) + 4000
        True
    """
    return FREE_BYTES + max_ratio * stored


class _Decompressors(threading.local):
    """One decompressor per thread, because creating one takes longer than using it."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_decompressors = _Decompressors()


def decompress(data: Data, size: int, max_ratio: int = MAX_CHUNK_RATIO) -> bytes:
    """Return the ``size`` bytes that were compressed. Needs no more memory than that.

    Args:
        data: what `compress` and `padded` returned.
        size: how many bytes it must unpack to.
        max_ratio: see `max_size`.

    Raises:
        CorruptCheckpointError: ``data`` is not zstd, or does not hold exactly ``size`` bytes.
    """
    if size > max_size(len(data), max_ratio):
        raise CorruptCheckpointError(
            f"{len(data)} bytes of compressed data claim to unpack to {size} bytes, more than is allowed"
        )
    try:
        claimed_size = zstandard.frame_content_size(data)
        if claimed_size == size:
            raw = _decompressors.zstd.decompress(data, max_output_size=size)
        elif claimed_size == _UNKNOWN_SIZE:
            raw = _read(zstandard.ZstdDecompressor().stream_reader(data), size)
        else:
            raise CorruptCheckpointError(f"compressed data does not hold the {size} bytes it should")
    except zstandard.ZstdError as error:
        raise CorruptCheckpointError(f"compressed data cannot be read: {error}") from error
    if len(raw) != size:
        raise CorruptCheckpointError(f"compressed data does not hold the {size} bytes it should")
    return raw


def decompress_each(compressed: Iterable[tuple[bytes, int]]) -> Iterator[bytes]:
    """Yield what `decompress` returns for each pair of data and size. Much faster for small pairs.

    Holds one megabyte of contents in memory, or a single larger one.

    Example:
        >>> list(decompress_each([(compress(b"a" * 1000), 1000), (compress(b"b"), 1)])) == [b"a" * 1000, b"b"]
        True

    Raises:
        CorruptCheckpointError: the next one cannot be decompressed.
    """
    batch: list[tuple[bytes, int]] = []
    total = 0
    for data, size in compressed:
        if batch and total + size > _BATCH_BYTES:
            yield from _decompress_batch(batch)
            batch, total = [], 0
        batch.append((data, size))
        total += size
    yield from _decompress_batch(batch)


def _decompress_batch(batch: Sequence[tuple[bytes, int]]) -> Iterable[bytes]:
    one_by_one = itertools.starmap(decompress, batch)
    if len(batch) < 2 or not _HAS_BATCH_API or not all(itertools.starmap(_is_safe_in_batch, batch)):
        return one_by_one
    contents, sizes = zip(*batch)
    try:
        # One call instead of many, for the same reason as in `Compressor`.
        decompressed = _decompressors.zstd.multi_decompress_to_buffer(
            list(contents), decompressed_sizes=struct.pack(f"={len(sizes)}Q", *sizes)
        )
    except zstandard.ZstdError:
        return one_by_one  # finds out which one is damaged
    return (decompressed[number].tobytes() for number in range(len(sizes)))


def _is_safe_in_batch(data: bytes, size: int) -> bool:
    """Whether ``data`` claims to hold ``size`` bytes, and can. False for empty contents.

    Several empty contents in one batch crash the process, as seen with zstandard 0.25.
    """
    try:
        return 0 < size == zstandard.frame_content_size(data) and size <= max_size(len(data), MAX_CHUNK_RATIO)
    except zstandard.ZstdError:
        return False


def _read(reader: zstandard.ZstdDecompressionReader, size: int) -> bytes:
    # The expected size is not trusted: memory grows only with what is really decompressed.
    pieces = []
    missing = size + 1
    while missing > 0:
        piece = reader.read(min(missing, _READ_BYTES))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
