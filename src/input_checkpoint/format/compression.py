"""zstd where it pays: TensorFlow's buffers are often compressed already, and then it does not."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence

import zstandard

from input_checkpoint.backends.base import Data
from input_checkpoint.errors import CorruptCheckpointError

_LEVEL = 1
_TRIAL_BYTES = 1 << 20
_PAUSE_BYTES = 64 << 20
_WORTHWHILE = 0.9
_STEP_BYTES = 1 << 18
_MANY_AT_ONCE = {"multi_compress_to_buffer", "multi_decompress_to_buffer"} <= zstandard.backend_features
_BATCH_BYTES = 1 << 20

# The shortest block of a zstd frame takes 4 bytes and gives 128 KiB: RFC 8878, "RLE_Block".
_MOST_FROM_A_BYTE = 1 << 15
_MOST_IN_A_BLOCK = 1 << 17


class Compressor:
    """Compresses chunks, and leaves off for a while when the last megabyte shrank by less than a tenth.

    Give it chunks of one kind: it takes what the last ones were like for what the next ones will be. Not for
    use by several threads at once.
    """

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)
        self._tried = self._shrunk = self._pause = 0

    def compress(self, contents: Sequence[bytes]) -> Sequence[bytes]:
        """Return each one compressed, or as it is if that is not smaller. The length tells which."""
        size = sum(map(len, contents))
        if self._pause > 0:
            self._pause -= size
            return contents
        stored = [min(pair, key=len) for pair in zip(contents, self._packed(contents))]
        self._tried += size
        self._shrunk += sum(map(len, stored))
        if self._tried >= _TRIAL_BYTES:
            if self._shrunk > _WORTHWHILE * self._tried:
                self._pause = _PAUSE_BYTES
            self._tried = self._shrunk = 0
        return stored

    def _packed(self, contents: Sequence[bytes]) -> Iterable[bytes]:
        if len(contents) == 1 or not _MANY_AT_ONCE:
            return map(self._zstd.compress, contents)
        # Beside a thread that is busy in Python each call into zstd costs 5 ms, until Python gives the
        # interpreter back.
        packed = self._zstd.multi_compress_to_buffer(list(contents))
        return (packed[number].tobytes() for number in range(len(contents)))


def compress(data: bytes) -> bytes:
    """Compress what is known to shrink well.

    >>> decompress(compress(b"a" * 1000), 1000) == b"a" * 1000
    True
    """
    return compress_parts([data], len(data))


def compress_parts(parts: Iterable[Data], size: int) -> bytes:
    """Compress what parts of ``size`` bytes in all give together. Holds one part and the result in memory."""
    stream = zstandard.ZstdCompressor(level=_LEVEL).compressobj(size=size)
    packed = [stream.compress(part) for part in parts]
    return b"".join([*packed, stream.flush()])


class _Decompressors(threading.local):
    """One a thread: to make one takes longer than to use it."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_decompressors = _Decompressors()


def decompress(data: bytes, size: int) -> bytes:
    """Return the ``size`` bytes that were compressed. Takes no more memory than that.

    Raises:
        CorruptCheckpointError: ``data`` is not zstd, or holds another number of bytes.
    """
    try:
        claimed = zstandard.frame_content_size(data)
        if claimed == size <= _most_from(data):
            raw = _decompressors.zstd.decompress(data, max_output_size=size)
        elif claimed == _UNKNOWN_SIZE:
            raw = _read(zstandard.ZstdDecompressor().stream_reader(data), size)
        else:
            raise CorruptCheckpointError(f"compressed data does not hold the {size} bytes it should")
    except zstandard.ZstdError as error:
        raise CorruptCheckpointError(f"compressed data cannot be read: {error}") from error
    if len(raw) != size:
        raise CorruptCheckpointError(f"compressed data does not hold the {size} bytes it should")
    return raw


def decompress_each(packed: Iterable[tuple[bytes, int]]) -> Iterator[bytes]:
    """Yield what `decompress` returns for each pair of data and size, in much less time if they are small.

    Holds a megabyte of them in memory, unless a single one is larger.

    >>> list(decompress_each([(compress(b"a" * 1000), 1000), (compress(b"b"), 1)])) == [b"a" * 1000, b"b"]
    True

    Raises:
        CorruptCheckpointError: the next one cannot be decompressed.
    """
    batch: list[tuple[bytes, int]] = []
    total = 0
    for data, size in packed:
        if batch and total + size > _BATCH_BYTES:
            yield from _unpacked(batch)
            batch, total = [], 0
        batch.append((data, size))
        total += size
    yield from _unpacked(batch)


def _unpacked(batch: Sequence[tuple[bytes, int]]) -> Iterable[bytes]:
    one_by_one = itertools.starmap(decompress, batch)
    if len(batch) < 2 or not _MANY_AT_ONCE or not all(itertools.starmap(_claims, batch)):
        return one_by_one
    contents, sizes = zip(*batch)
    try:
        # For the same reason as in `Compressor`.
        unpacked = _decompressors.zstd.multi_decompress_to_buffer(
            list(contents), decompressed_sizes=struct.pack(f"={len(sizes)}Q", *sizes)
        )
    except zstandard.ZstdError:
        return one_by_one  # which finds out which one it is
    return (unpacked[number].tobytes() for number in range(len(sizes)))


def _claims(data: bytes, size: int) -> bool:
    """Whether ``data`` says that it holds ``size`` bytes, and can; never if that is none.

    Several empty ones at once end the process: seen with zstandard 0.25.
    """
    try:
        return bool(0 < size == zstandard.frame_content_size(data) <= _most_from(data))
    except zstandard.ZstdError:
        return False


def _most_from(data: bytes) -> int:
    return len(data) * _MOST_FROM_A_BYTE + _MOST_IN_A_BLOCK


_UNKNOWN_SIZE = -1


def _read(reader: zstandard.ZstdDecompressionReader, size: int) -> bytes:
    # A claimed size is not believed: memory grows with what really comes out.
    pieces = []
    missing = size + 1
    while missing > 0:
        piece = reader.read(min(missing, _STEP_BYTES))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)
