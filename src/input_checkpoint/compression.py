"""zstd where it pays: TensorFlow's buffers are often compressed already, and then it does not."""

from __future__ import annotations

import zstandard

from input_checkpoint.errors import CorruptCheckpoint

_LEVEL = 1
_TRIAL_BYTES = 1 << 20
_PAUSE_BYTES = 64 << 20
_WORTHWHILE = 0.9
_STEP_BYTES = 1 << 18


class Compressor:
    """Compresses chunks, and leaves off for a while when the last megabyte shrank by less than a tenth.

    Not for use by several threads at once.
    """

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)
        self._tried = self._shrunk = self._pause = 0

    def compress(self, data: bytes) -> bytes:
        """Return ``data`` compressed, or as it is if that is not smaller. The length tells which."""
        if self._pause > 0:
            self._pause -= len(data)
            return data
        packed = self._zstd.compress(data)
        self._tried += len(data)
        self._shrunk += min(len(packed), len(data))
        if self._tried >= _TRIAL_BYTES:
            if self._shrunk > _WORTHWHILE * self._tried:
                self._pause = _PAUSE_BYTES
            self._tried = self._shrunk = 0
        return packed if len(packed) < len(data) else data


def compress(data: bytes) -> bytes:
    """Compress what is known to shrink well.

    >>> decompress(compress(b"a" * 1000), 1000) == b"a" * 1000
    True
    """
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def decompress(data: bytes, size: int) -> bytes:
    """Return the ``size`` bytes that were compressed. Takes no more memory than that.

    Raises:
        CorruptCheckpoint: ``data`` is not zstd, or holds another number of bytes.
    """
    try:
        raw = _read(zstandard.ZstdDecompressor().stream_reader(data), size)
    except zstandard.ZstdError as error:
        raise CorruptCheckpoint(f"compressed data cannot be read: {error}") from error
    if len(raw) != size:
        raise CorruptCheckpoint(f"compressed data does not hold the {size} bytes it should")
    return raw


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
