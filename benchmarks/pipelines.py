"""The input pipelines that the benchmarks use.

They are built from what every installation has: scikit-learn's sample photographs, and the English text of
Python's own documentation. All of them are infinite.
"""

from __future__ import annotations

import functools
import pydoc_data.topics
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1

ROW_TOKENS = 1024
VECTOR_NUMBERS = 32
_CROPS = 64
CROP = (352, 480)
_QUALITY = 97
_START_OF_IMAGE = b"\xff\xd8"
_COMMENT_MARKER = b"\xff\xfe"
_SERIAL_DIGITS = 12


@dataclass(frozen=True)
class Pipeline:
    """An input pipeline and the expected size of its state."""

    name: str
    elements: int
    """How many elements its state has once the buffer is full."""
    element_bytes: int
    """Approximate bytes per element."""
    batch: int
    """Elements per step."""
    make: Callable[[Pipeline], Any] = field(repr=False, compare=False)
    batches_to_fill: int = 1
    """Batches until the buffer is full. A shuffle buffer is full before the first batch."""

    @property
    def state_bytes(self) -> int:
        """The approximate size of its state."""
        return self.elements * self.element_bytes

    def dataset(self) -> Any:
        """Return the dataset of batches."""
        options = tf.data.Options()
        # TensorFlow would prefetch a few batches, a different number at each save.
        options.experimental_optimization.inject_prefetch = False
        batches = self.make(self).batch(self.batch, drop_remainder=True)
        return batches.with_options(options)

    def with_elements(self, elements: int) -> Pipeline:
        """Return the same pipeline with a buffer of this size."""
        return replace(self, elements=elements)


def pictures(count: int, batch: int = 32) -> Pipeline:
    """JPEG pictures of about 100 KB, shuffled before they are decoded."""
    return Pipeline(f"pictures {_thousands(count)}", count, 100_000, batch, _shuffled_pictures)


def cached_pictures(count: int, batch: int = 32) -> Pipeline:
    """JPEG pictures behind ``cache()``, which holds all of them."""
    whole = -(-count // batch) + 1
    return Pipeline(f"cache {_thousands(count)}", count, 100_000, batch, _cached_pictures, whole)


def tokens(count: int, batch: int = 32) -> Pipeline:
    """Rows of 1,024 tokens, shuffled."""
    return Pipeline(f"tokens {_thousands(count)}", count, 8 * ROW_TOKENS, batch, _shuffled_tokens)


def vectors(count: int, batch: int = 256) -> Pipeline:
    """Elements of 256 bytes, shuffled."""
    return Pipeline(f"256 B x {_thousands(count)}", count, 256, batch, _shuffled_vectors)


def numbers(count: int, batch: int = 256) -> Pipeline:
    """Elements of 8 bytes, shuffled."""
    return Pipeline(f"8 B x {_thousands(count)}", count, 8, batch, _shuffled_numbers)


def jpeg(number: Any) -> Any:
    """Return the picture with this number. Each is unique, because a comment in it has the number."""
    head, tails = _picture_bytes()
    choice = number % len(tails)
    serial = tf.strings.as_string(number, width=_SERIAL_DIGITS, fill="0")
    return tf.strings.join([head, serial, tf.constant(tails)[choice]])


def token_row(number: Any) -> Any:
    """Return the row of tokens with this number. Each is unique, because it begins with the number."""
    text = _token_ids()
    # A large prime, so that neighboring rows come from different parts of the text.
    start = number * 7919 % (len(text) - ROW_TOKENS)
    row = tf.concat([[number], tf.constant(text)[start : start + ROW_TOKENS - 1]], axis=0)
    row.set_shape([ROW_TOKENS])
    return row


def vector(number: Any) -> Any:
    """Return the vector with this number."""
    return tf.random.stateless_uniform([VECTOR_NUMBERS], [number, 1], None, None, tf.int64)


def consumed(batch: Any) -> Any:
    """Return an operation that needs every byte of a batch.

    TensorFlow optimizes away what nobody uses. With ``tf.size(batch)``, whose shape is known, it would make a
    pipeline of empty elements, whose state is next to nothing.
    """
    return tf.reduce_sum(tf.strings.length(batch) if batch.dtype == tf.string else batch)


def _shuffled_pictures(pipeline: Pipeline) -> Any:
    return _counted().map(jpeg).shuffle(pipeline.elements, seed=1)


def _cached_pictures(pipeline: Pipeline) -> Any:
    return tf.data.Dataset.range(pipeline.elements).map(jpeg).cache().repeat()


def _shuffled_tokens(pipeline: Pipeline) -> Any:
    return _counted().map(token_row).shuffle(pipeline.elements, seed=1)


def _shuffled_vectors(pipeline: Pipeline) -> Any:
    return _counted().map(vector).shuffle(pipeline.elements, seed=1)


def _shuffled_numbers(pipeline: Pipeline) -> Any:
    return _counted().shuffle(pipeline.elements, seed=1)


def _counted() -> Any:
    return tf.data.Dataset.range(1 << 40)


@functools.cache
def _picture_bytes() -> tuple[bytes, list[bytes]]:
    """Return the bytes of all pictures before the serial number, and those of each picture after it."""
    # Imported only here, because it takes longer than many of the measurements.
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    pictures = _encoded([_crop(photographs, number) for number in range(_CROPS)])
    head = _START_OF_IMAGE + _COMMENT_MARKER + (2 + _SERIAL_DIGITS).to_bytes(2, "big")
    return head, [picture[len(_START_OF_IMAGE) :] for picture in pictures]


def _crop(photographs: Sequence[Any], number: int) -> Any:
    photograph = photographs[number % len(photographs)]
    chance = np.random.default_rng(number)
    top, left = (int(chance.integers(whole - part)) for whole, part in zip(photograph.shape, CROP))
    return photograph[top : top + CROP[0], left : left + CROP[1]]


def _encoded(pictures: Sequence[Any]) -> list[bytes]:
    # In a separate graph, because the caller may be building one.
    with v1.Graph().as_default(), v1.Session() as session:
        picture = v1.placeholder(tf.uint8)
        encoded = tf.io.encode_jpeg(picture, quality=_QUALITY)
        return [session.run(encoded, {picture: pixels}) for pixels in pictures]


@functools.cache
def _token_ids() -> Any:
    """Return English text as numbers, one per word or punctuation mark."""
    text = " ".join(pydoc_data.topics.topics.values())
    words = re.findall(r"\w+|[^\w\s]", text)
    return np.array([zlib.crc32(word.encode()) % 50_000 for word in words], np.int64)


def _thousands(count: int) -> str:
    return f"{count:,}".replace(",", " ")
