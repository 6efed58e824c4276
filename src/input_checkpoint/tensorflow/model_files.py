"""Reads files of the model directory: a bounded number of bytes, and never from a pipe or a device."""

from __future__ import annotations

import os
import stat

import tensorflow as tf
from blake3 import blake3

from input_checkpoint.format.chunking import DIGEST_BYTES

_PIECE_BYTES = 1 << 20


def read_file(path: str, max_bytes: int) -> bytes:
    """Return the content of a file, or ``max_bytes`` + 1 bytes of a larger one.

    Raises:
        tf.errors.NotFoundError: it does not exist.
        tf.errors.OpError: it cannot be read, or is not a regular file.
    """
    check_regular(path)
    with tf.io.gfile.GFile(path, "rb") as file:
        return bytes(file.read(max_bytes + 1))


def digest_file(path: str) -> str:
    """Return the digest of a file in hexadecimal. Needs little memory, however large the file is.

    Raises:
        tf.errors.NotFoundError: it does not exist.
        tf.errors.OpError: it cannot be read, or is not a regular file.
    """
    check_regular(path)
    hasher = blake3()
    with tf.io.gfile.GFile(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            hasher.update(piece)
    return str(hasher.digest(length=DIGEST_BYTES).hex())


def check_regular(path: str) -> None:
    """Check that a path is not a pipe or a device, from which a read may never return.

    Raises:
        tf.errors.FailedPreconditionError: it is.
    """
    if "://" in path:
        return
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # reading it says what is wrong
    if not stat.S_ISREG(mode):
        raise tf.errors.FailedPreconditionError(None, None, f"{path} is not a regular file")
