"""Time limits: how they are computed, and that they hold whatever a request does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from types import MappingProxyType

import pytest
from fsspec.asyn import get_loop

from input_checkpoint import BackendUnavailableError, open_backend
from input_checkpoint.backends import time_limits
from input_checkpoint.backends.time_limits import (
    TimeLimitExceededError,
    TimeLimits,
    run_in_loop,
    run_in_thread,
)
from tests.support.misbehaving_server import UPLOAD, EndsInTime

SHORT = TimeLimits(timeout=0.3, min_bytes_per_second=1000)
ENOUGH = TimeLimits(timeout=60, min_bytes_per_second=1000)


@pytest.fixture
def hang():
    event = threading.Event()
    yield event
    event.set()


class TestThread:
    def test_the_result_and_the_error_of_the_work_are_passed_on(self):
        assert run_in_thread(lambda: 7, ENOUGH.start()) == 7
        with pytest.raises(ZeroDivisionError):
            run_in_thread(lambda: 1 / 0, ENOUGH.start())

    def test_work_that_hangs_is_left_alone_when_the_time_is_up(self, hang):
        with pytest.raises(TimeLimitExceededError, match=r"timeout=0\.3, min_bytes_per_second=1000"):
            run_in_thread(lambda: hang.wait(60), SHORT.start())

    def test_data_that_arrives_extends_the_time(self):
        deadline = SHORT.start()

        def receive():
            deadline.extend(60_000)
            time.sleep(0.5)
            return "done"

        assert run_in_thread(receive, deadline) == "done"

    def test_no_thread_is_started_while_too_many_hang(self, hang, monkeypatch):
        # Requests of earlier tests may still hang, and may end at any moment.
        monkeypatch.setattr(time_limits, "_abandoned", [])
        monkeypatch.setattr(time_limits, "MAX_ABANDONED", 1)
        with pytest.raises(TimeLimitExceededError, match="did not finish"):
            run_in_thread(lambda: hang.wait(60), SHORT.start())
        with pytest.raises(TimeLimitExceededError, match="still hang"):
            run_in_thread(lambda: 7, SHORT.start())
        hang.set()
        for thread in time_limits._abandoned:
            thread.join(60)
        assert run_in_thread(lambda: 7, ENOUGH.start()) == 7


class TestLoop:
    def test_the_result_and_the_error_of_the_work_are_passed_on(self):
        async def fail():
            raise TimeoutError("of the work itself")

        assert run_in_loop(get_loop(), lambda: asyncio.sleep(0, 7), ENOUGH.start()) == 7
        with pytest.raises(TimeoutError, match="of the work itself"):
            run_in_loop(get_loop(), fail, ENOUGH.start())

    def test_work_that_hangs_is_cancelled_when_the_time_is_up(self):
        cancelled = threading.Event()

        async def work():
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        with pytest.raises(TimeLimitExceededError):
            run_in_loop(get_loop(), work, SHORT.start())
        assert cancelled.wait(10)

    def test_work_that_refuses_to_be_cancelled_is_left_alone(self):
        may_end, ended = threading.Event(), threading.Event()

        async def work():
            while not may_end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)
            ended.set()

        try:
            with pytest.raises(TimeLimitExceededError):
                run_in_loop(get_loop(), work, SHORT.start())
            assert not ended.is_set()
        finally:
            may_end.set()
        assert ended.wait(60)

    def test_a_blocked_loop_does_not_block_the_caller(self, hang, monkeypatch):
        monkeypatch.setattr(time_limits, "_LOOP_GRACE_SECONDS", 0.1)

        async def work():
            hang.wait(60)

        with pytest.raises(TimeLimitExceededError):
            run_in_loop(get_loop(), work, SHORT.start())


class TestWeb(EndsInTime):
    """fsspec's filesystem for the web, through the generic backend."""

    # It has no atomic create, and a delete sends nothing that could be answered.
    writes = MappingProxyType({"put": lambda backend: backend.put("stored", UPLOAD)})

    @pytest.fixture
    def place_at(self):
        return lambda port: (f"http://127.0.0.1:{port}/run", {})


def test_a_frozen_filesystem_without_time_limits_of_its_own_is_unavailable(monkeypatch, hang):
    monkeypatch.setattr(
        "fsspec.implementations.memory.MemoryFileSystem.cat_file", lambda *_, **__: hang.wait(60)
    )
    backend = open_backend("dir::memory://frozen", {"timeout": 0.3})
    backend.put("key", b"data")
    with pytest.raises(BackendUnavailableError, match="did not finish"):
        backend.get("key", 0, 1)
