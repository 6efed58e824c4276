"""The hook reads the input that it expects while TensorFlow restores the model, and resumes as exactly."""

from __future__ import annotations

import logging
import threading
from collections import Counter as Count
from pathlib import Path
from typing import Any, Optional

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.tensorflow.element_check import ElementChecker
from input_checkpoint.training.schedule import SaveSchedule
from tests.support.hooked_training import (
    Steps,
    preempted,
    session_hook,
    train_in_session,
    wait_until,
)
from tests.support.stores import pack_keys
from tests.support.training import trained_on
from tests.support.wrappers import Wrapped

v1 = tf.compat.v1


class PackReads(Wrapped):
    """Counts the reads of packs, by pack and range."""

    def __init__(self, inner: ic.Backend) -> None:
        super().__init__(inner)
        self.reads: Count[tuple[str, int, Optional[int]]] = Count()

    def get(self, key: str, start: int = 0, end: Optional[int] = None) -> bytes:
        # A look-up of a pack reads its last byte.
        if key.startswith("packs/") and (end is None or end - start > 1):
            self.reads[key, start, end] += 1
        return super().get(key, start, end)


class WaitsForReads(tf.estimator.SessionRunHook):
    """Lets the session be created only after the input is being read."""

    def __init__(self, backend: PackReads) -> None:
        self._backend = backend

    def begin(self) -> None:
        wait_until(lambda: sum(self._backend.reads.values()) > 0)


class NotesReads(tf.estimator.SessionRunHook):
    """Counts the reads up to the moment when the session exists."""

    def __init__(self, backend: PackReads) -> None:
        self._backend = backend
        self.before_session: Optional[int] = None

    def after_create_session(self, session: Any, coord: Any) -> None:
        self.before_session = sum(self._backend.reads.values())


def no_thread_reads() -> bool:
    return not any(thread.name == "input-checkpoint-read-ahead" for thread in threading.enumerate())


def train_first(tmp_path: Path, memory: MemoryBackend) -> None:
    train_in_session(tmp_path, [session_hook(tmp_path, memory)], steps=10)


def test_the_input_is_read_once_and_before_the_session_exists(
    tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    train_first(tmp_path, memory)
    backend = PackReads(memory)
    train_in_session(tmp_path, [session_hook(tmp_path, backend), WaitsForReads(backend)], steps=20)
    assert set(backend.reads.values()) == {1}
    assert trained_on(tmp_path) == reference[:30]
    wait_until(no_thread_reads)


def test_a_recovered_session_reads_nothing_ahead(
    tmp_path: Path, reference: Steps, memory: MemoryBackend
) -> None:
    train_first(tmp_path, memory)
    hook = session_hook(tmp_path, memory)
    expected: list[Any] = []
    begin = hook._read_ahead.expect
    hook._read_ahead.expect = lambda ref, prepare: (expected.append(ref), begin(ref, prepare))
    train_in_session(tmp_path, [hook, preempted(17)], steps=20)
    assert [ref.step for ref in expected] == [10]
    assert trained_on(tmp_path) == reference[:30]
    wait_until(no_thread_reads)


def test_the_elements_are_checked_before_they_are_restored(
    tmp_path: Path, reference: Steps, memory: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_first(tmp_path, memory)
    checked_in: list[str] = []
    check = ElementChecker.check

    def noted(self: ElementChecker, elements: Any) -> None:
        checked_in.append(threading.current_thread().name)
        check(self, elements)

    monkeypatch.setattr(ElementChecker, "check", noted)
    backend = PackReads(memory)
    train_in_session(tmp_path, [session_hook(tmp_path, backend), WaitsForReads(backend)], steps=20)
    assert set(checked_in) == {"input-checkpoint-read-ahead"}
    assert trained_on(tmp_path) == reference[:30]


def test_the_base_of_a_mark_is_read_ahead(tmp_path: Path, reference: Steps, memory: MemoryBackend) -> None:
    def rare(backend: ic.Backend) -> ic.SessionHook:
        schedule = SaveSchedule(every_steps=10)
        return ic.SessionHook(
            model_dir=str(tmp_path), backend=backend, save_steps=1000, model_schedule=schedule
        )

    with pytest.raises(RuntimeError, match="killed"):
        train_in_session(tmp_path, [rare(memory), Dies(25)], steps=30)
    backend = PackReads(memory)
    train_in_session(tmp_path, [rare(backend), WaitsForReads(backend)], steps=40)
    assert set(backend.reads.values()) == {1}
    assert trained_on(tmp_path) == reference[:60]


class Dies(tf.estimator.SessionRunHook):
    """Ends training with an error that TensorFlow does not recover from."""

    def __init__(self, step: int) -> None:
        self._step = step

    def begin(self) -> None:
        self._global_step = tf.identity(v1.train.get_global_step())

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if run_context.session.run(self._global_step) >= self._step:
            raise RuntimeError("killed")


def test_fresh_reads_nothing_ahead(tmp_path: Path, memory: MemoryBackend) -> None:
    train_first(tmp_path, memory)
    backend = PackReads(memory)
    hook = session_hook(tmp_path, backend, resume="fresh")
    notes = NotesReads(backend)
    train_in_session(tmp_path, [hook, notes], steps=20)
    assert notes.before_session == 0
    assert no_thread_reads()


def test_a_session_that_is_never_created_leaves_no_thread_and_no_memory(
    tmp_path: Path, memory: MemoryBackend
) -> None:
    train_first(tmp_path, memory)

    class Fails(tf.estimator.SessionRunHook):
        def begin(self) -> None:
            raise RuntimeError("no session")

    hooks = [session_hook(tmp_path, memory), Fails()]
    with pytest.raises(RuntimeError, match="no session"):
        train_in_session(tmp_path, hooks, steps=20)
    del hooks
    wait_until(no_thread_reads)


def test_damaged_input_is_reported_as_without_reading_ahead(
    tmp_path: Path, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    train_first(tmp_path, memory)
    newest = [key for key in pack_keys(memory) if "/000000000010-" in key]
    for key in newest:
        memory.put(key, bytes(len(memory.get(key))))
    with caplog.at_level(logging.WARNING, "input_checkpoint"):
        train_in_session(tmp_path, [session_hook(tmp_path, memory)], steps=20)
    assert caplog.text.count("Trying an older input checkpoint, because") == 1
    assert len(trained_on(tmp_path)) == 30
