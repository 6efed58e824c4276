"""All operations of a backend, for tests that hold for each of them."""

from __future__ import annotations

import threading
from typing import Callable, Optional

import pytest

from input_checkpoint import Backend

OPERATIONS: dict[str, Callable[[Backend], object]] = {
    "get": lambda backend: backend.get("key"),
    "get of nothing": lambda backend: backend.get("key", 3, 3),
    "put": lambda backend: backend.put("key", b"data"),
    "create": lambda backend: backend.create("key", b"data"),
    "list": lambda backend: list(backend.list()),
    "delete": lambda backend: backend.delete(["key"]),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


def outcome(work: Callable[[], object], within: float) -> Optional[BaseException]:
    """Return the exception that ``work`` raises, or None. Fail if it takes more than ``within`` seconds."""
    raised: list[Optional[BaseException]] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(within)
    assert raised, f"no result after {within} s"
    return raised[0]
