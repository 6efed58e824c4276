"""Runs each measurement in a fresh process, so that it inherits no memory and no TensorFlow state."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Callable, TypeVar

from input_checkpoint.parallel import map_ordered

_Result = TypeVar("_Result")

# Each process is forked from one that has imported everything and run nothing, because importing TensorFlow
# takes longer than many of the measurements.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["benchmarks.candidates"])


def run(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a module-level function in a fresh process and return its result."""
    with ProcessPoolExecutor(1, _CONTEXT, _silence_warnings) as executor:
        return executor.submit(work, *arguments).result()


def run_each(
    work: Callable[..., _Result], calls: Iterable[tuple[Any, ...]], concurrency: int = 2
) -> Iterator[_Result]:
    """Call the function once per tuple of arguments, several at a time. Only for what is not timed."""
    return map_ordered(lambda arguments: run(work, *arguments), calls, concurrency)


def run_until_killed(work: Callable[..., None], *arguments: Any) -> Any:
    """Call a module-level function in a fresh process, which is killed where the function says.

    Args:
        work: gets one argument more, a function. Calling it kills the process with SIGKILL.
        *arguments: for ``work``.

    Returns:
        What ``work`` has passed to that function.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_until_killed, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} ended before it was killed") from None
    finally:
        process.join()


def _until_killed(sender: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _silence_warnings()

    def kill(result: Any) -> None:
        sender.send(result)
        os.kill(os.getpid(), signal.SIGKILL)

    work(*arguments, kill)


def _silence_warnings() -> None:
    # TensorFlow warns about every API that TensorFlow 2 deprecated.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # And about datasets in graphs, which the benchmarks use throughout.
    warnings.filterwarnings("ignore", "To make it possible to preserve tf.data options")
