"""Programs that use a backend and fork, to be run in a process of their own.

``python -m tests.support.forking HOW URI STORAGE_OPTIONS`` (JSON) exits with 0 if parent and child both work.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Callable

import pytest
from fsspec.core import url_to_fs

from input_checkpoint import Backend, open_backend
from input_checkpoint.backends.generic import GenericBackend

_SECONDS = 45
_CHILD_SECONDS = 20
_ROOT = Path(__file__).parents[2]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

Opener = Callable[[], Backend]


def parents_backend(backend: Backend, reopen: Opener) -> None:
    """A child goes on using the backend of its parent."""
    _fork(lambda: _use(backend, "child"))
    _use(backend, "parent")


def own_backend(backend: Backend, reopen: Opener) -> None:
    """A child opens the same place anew."""
    _fork(lambda: _use(reopen(), "child"))
    _use(backend, "parent")


def child_of_a_child(backend: Backend, reopen: Opener) -> None:
    """A child uses its parent's backend, forks itself, and so on."""

    def use_and_fork() -> None:
        _use(backend, "child")
        _fork(lambda: _use(backend, "grandchild"))
        _use(backend, "child-again")

    _fork(use_and_fork)
    _use(backend, "parent")


def child_that_drops_it(backend: Backend, reopen: Opener) -> None:
    """A child collects its garbage and ends as a program does, without having used the backend."""

    def end() -> None:
        gc.collect()
        sys.exit(0)

    _fork(end)
    for number in range(3):
        _use(backend, f"parent-{number}")


def fork_during_saves(backend: Backend, reopen: Opener) -> None:
    """The process forks several times while other threads use the backend."""
    done = threading.Event()
    failures: list[BaseException] = []

    def save(name: str) -> None:
        try:
            while not done.is_set():
                _use(backend, name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(f"thread-{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            _fork(lambda number=number: _use(backend, f"child-{number}"))  # type: ignore[misc]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def pool(backend: Backend, reopen: Opener) -> None:
    """Several workers of multiprocessing, with its start method ``fork``, use the parent's backend."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_use, args=(backend, f"worker-{number}")) for number in range(3)]
    for worker in workers:
        worker.start()
    _use(backend, "parent")
    for worker in workers:
        worker.join(_CHILD_SECONDS)
        assert worker.exitcode == 0, f"exit code of a worker: {worker.exitcode}"
    _use(backend, "parent")


WAYS = {
    way.__name__: way
    for way in (
        parents_backend,
        own_backend,
        child_of_a_child,
        child_that_drops_it,
        fork_during_saves,
        pool,
    )
}
"""By name."""


def run_forking(how: str, uri: str, options: dict[str, Any]) -> str:
    """Run one of `WAYS`. Return what went wrong; empty if nothing did."""
    command = [sys.executable, "-m", "tests.support.forking", how, uri, json.dumps(options)]
    try:
        done = subprocess.run(
            command, cwd=_ROOT, timeout=_SECONDS, check=False, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return f"hangs after {_SECONDS} s"
    return f"exit code {done.returncode}: {done.stderr}" if done.returncode else ""


def _use(backend: Backend, name: str) -> None:
    backend.put(f"{name}/object", name.encode())
    found = backend.get(f"{name}/object"), [info.key for info in backend.list(f"{name}/")]
    assert found == (name.encode(), [f"{name}/object"]), found
    backend.delete([f"{name}/object"])


def _fork(work: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(_CHILD_SECONDS)
        try:
            work()
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"exit code of the child: {code}"


def _open(uri: str, options: dict[str, Any]) -> Backend:
    engine = options.pop("engine", None)
    if engine != "generic":
        return open_backend(uri, {**options, "engine": engine} if engine else options)
    filesystem, root = url_to_fs(uri, **options)
    return GenericBackend(uri, filesystem, root)


def _main(how: str, uri: str, options: str) -> None:
    backend = _open(uri, json.loads(options))
    _use(backend, "before")
    WAYS[how](backend, lambda: _open(uri, json.loads(options)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
