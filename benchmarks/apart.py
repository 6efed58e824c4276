"""Measurements in a process of their own, so that none inherits another's memory or TensorFlow state."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable, TypeVar

from input_checkpoint.parallel import map_ordered

_Result = TypeVar("_Result")

# Forked from a process that has imported everything and run nothing: TensorFlow's import alone takes longer
# than many a measurement.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.competitors"])


def run(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Return what a function of a module returns, called in a fresh process."""
    with ProcessPoolExecutor(1, _CONTEXT, _be_quiet) as executor:
        return executor.submit(work, *arguments).result()


def run_each(
    work: Callable[..., _Result], several: Iterable[tuple[Any, ...]], at_once: int = 2
) -> Iterator[_Result]:
    """Like `run`, for several arguments and some at once: where nothing is timed."""
    return map_ordered(lambda arguments: run(work, *arguments), several, at_once)


def _be_quiet() -> None:
    # TensorFlow warns of everything that went with its second version.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # And of data sets in graphs, which is what they are here.
    warnings.filterwarnings("ignore", "To make it possible to preserve tf.data options")
