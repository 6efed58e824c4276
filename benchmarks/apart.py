"""Measurements in a process of their own, so that none inherits another's memory or TensorFlow state."""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Optional, TypeVar

_Result = TypeVar("_Result")


def run(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Return what a function of a module returns, called in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _be_quiet) as executor:
        return executor.submit(work, *arguments).result()


def run_unless_it_dies(work: Callable[..., _Result], *arguments: Any) -> Optional[_Result]:
    """Like `run`; None if the process was killed, as TensorFlow is by states over 2 GB."""
    try:
        return run(work, *arguments)
    except BrokenProcessPool:
        return None


def _be_quiet() -> None:
    # TensorFlow warns of everything that went with its second version.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
