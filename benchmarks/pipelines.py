"""The input pipelines that everything is measured on.

All are built from what every machine has after installation: scikit-learn's sample photographs, and the
English text of Python's own documentation. None of them ends.
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
from sklearn.datasets import load_sample_images

v1 = tf.compat.v1

ROW_TOKENS = 1024
_CROPS = 64
CROP = (352, 480)
_QUALITY = 97
_START_OF_IMAGE = b"\xff\xd8"
_COMMENT_MARKER = b"\xff\xfe"
_SERIAL_DIGITS = 12


@dataclass(frozen=True)
class Pipeline:
    """An input pipeline and what its state is expected to weigh."""

    name: str
    elements: int
    """How many it holds once its buffer is full."""
    element_bytes: int
    """About."""
    batch: int
    """Elements that one step takes."""
    make: Callable[[Pipeline], Any] = field(repr=False, compare=False)
    batches_to_fill: int = 1
    """Batches after which it holds everything that it will: a shuffle buffer is full before the first."""

    @property
    def state_bytes(self) -> int:
        """About how much its state weighs."""
        return self.elements * self.element_bytes

    def dataset(self) -> Any:
        """Return the data set; its elements are batches."""
        options = tf.data.Options()
        # TensorFlow would keep a few batches ready, more or fewer at each save.
        options.experimental_optimization.inject_prefetch = False
        batches = self.make(self).batch(self.batch, drop_remainder=True)
        return batches.with_options(options)

    def with_elements(self, elements: int) -> Pipeline:
        """Return the same pipeline with another buffer."""
        return replace(self, elements=elements)


def pictures(count: int, batch: int = 32) -> Pipeline:
    """JPEG pictures of about 100 KB, shuffled before they are decoded."""
    return Pipeline(f"pictures {_thousands(count)}", count, 100_000, batch, _shuffled_pictures)


def cached_pictures(count: int, batch: int = 32) -> Pipeline:
    """JPEG pictures behind ``cache()``, all of them in it."""
    whole = -(-count // batch) + 1
    return Pipeline(f"cache {_thousands(count)}", count, 100_000, batch, _cached_pictures, whole)


def tokens(count: int, batch: int = 32) -> Pipeline:
    """Rows of 1 024 tokens, shuffled."""
    return Pipeline(f"tokens {_thousands(count)}", count, 8 * ROW_TOKENS, batch, _shuffled_tokens)


def vectors(count: int, batch: int = 256) -> Pipeline:
    """Elements of 256 bytes, shuffled."""
    return Pipeline(f"256 B x {_thousands(count)}", count, 256, batch, _shuffled_vectors)


def numbers(count: int, batch: int = 256) -> Pipeline:
    """Elements of 8 bytes, shuffled."""
    return Pipeline(f"8 B x {_thousands(count)}", count, 8, batch, _shuffled_numbers)


def jpeg(number: Any) -> Any:
    """Return the picture of that number, unlike any other: it carries its number in a comment."""
    head, tails = _picture_bytes()
    choice = number % len(tails)
    serial = tf.strings.as_string(number, width=_SERIAL_DIGITS, fill="0")
    return tf.strings.join([head, serial, tf.constant(tails)[choice]])


def _shuffled_pictures(pipeline: Pipeline) -> Any:
    return _counted().map(jpeg).shuffle(pipeline.elements, seed=1)


def _cached_pictures(pipeline: Pipeline) -> Any:
    return tf.data.Dataset.range(pipeline.elements).map(jpeg).cache().repeat()


def _shuffled_tokens(pipeline: Pipeline) -> Any:
    text = _token_ids()
    last = len(text) - ROW_TOKENS

    def row(number: Any) -> Any:
        # A large prime, so that neighbours come from different places.
        start = number * 7919 % last
        return tf.concat([[number], tf.constant(text)[start : start + ROW_TOKENS - 1]], axis=0)

    return _counted().map(row).shuffle(pipeline.elements, seed=1)


def _shuffled_vectors(pipeline: Pipeline) -> Any:
    def vector(number: Any) -> Any:
        return tf.random.stateless_uniform([32], [number, 1], None, None, tf.int64)

    return _counted().map(vector).shuffle(pipeline.elements, seed=1)


def _shuffled_numbers(pipeline: Pipeline) -> Any:
    return _counted().shuffle(pipeline.elements, seed=1)


def _counted() -> Any:
    return tf.data.Dataset.range(1 << 40)


@functools.cache
def _picture_bytes() -> tuple[bytes, list[bytes]]:
    """Return how pictures begin, up to a comment of some digits, and how each goes on after it."""
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
    # In a graph of its own, since it is asked for in the middle of building one.
    with v1.Graph().as_default(), v1.Session() as session:
        picture = v1.placeholder(tf.uint8)
        encoded = tf.io.encode_jpeg(picture, quality=_QUALITY)
        return [session.run(encoded, {picture: one}) for one in pictures]


@functools.cache
def _token_ids() -> Any:
    """Return English text as numbers, one a word or mark."""
    text = " ".join(pydoc_data.topics.topics.values())
    words = re.findall(r"\w+|[^\w\s]", text)
    return np.array([zlib.crc32(word.encode()) % 50_000 for word in words], np.int64)


def _thousands(count: int) -> str:
    return f"{count:,}".replace(",", " ")
