"""Writers that are really stopped (SIGSTOP) while a day passes, and processes whose clocks are wrong."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import input_checkpoint as ic
from input_checkpoint.state import Element
from integration.servers.server import Place
from tests.support import suspension
from tests.support.cycles import elements
from tests.support.stores import loaded, save
from tests.support.wrappers import Overtaken

KINDS = ("memory", "local", "generic")
CLOCKS = (26 * 3600, -26 * 3600)
_TIMEOUT = 60


@pytest.mark.parametrize("disturb", [suspension.prune_a_day_later, suspension.take_over])
@pytest.mark.parametrize("kind", KINDS)
def test_no_checkpoint_is_without_its_data_whenever_its_writer_is_suspended(
    kind: str, disturb: Callable[[ic.Backend], object], tmp_path: Path
) -> None:
    suspension.disturb_every_call(kind, tmp_path, disturb)


@pytest.mark.parametrize("stops_in", ["the upload", "the commit"])
@pytest.mark.parametrize("disturb", [suspension.prune_a_day_later, suspension.take_over])
def test_a_stopped_writer_commits_nothing_without_its_data(
    place: Place, stops_in: str, disturb: Callable[[ic.Backend], object]
) -> None:
    writer, outcome = start(_save_and_stop, place, stops_in)
    wait_until_stopped(writer.pid)
    backend = ic.open_backend(place.uri, place.storage_options)
    disturb(backend)
    os.kill(writer.pid, signal.SIGCONT)
    assert outcome.get(timeout=_TIMEOUT) in ("SaveExpiredError", "WriterSupersededError")
    store = ic.CheckpointStore.open(backend)
    assert store.verify().problems == {}
    assert 20 not in [info.step for info in store.checkpoints()]
    run = store.begin_run("main", store.history("main")[-1])
    info = run.save(200, [ic.IteratorState("Iterator", elements(20))])
    assert loaded(store, info) == [("Iterator", elements(20))]


@pytest.mark.parametrize("offset", CLOCKS)
def test_a_save_is_respected_by_a_prune_on_a_machine_whose_clock_is_wrong(place: Place, offset: int) -> None:
    store = ic.CheckpointStore.open(place.uri, place.storage_options, create=True)
    run = store.begin_run("main")
    save(run, 10)

    def drawn() -> Iterator[Element]:
        yield from elements(20)
        _, outcome = start(_prune, place, offset)
        assert outcome.get(timeout=_TIMEOUT) == "held back"

    info = run.save(20, [ic.IteratorState("Iterator", drawn())])
    assert loaded(store, info) == [("Iterator", elements(20))]
    assert store.verify().ok


@pytest.mark.parametrize("offset", CLOCKS)
def test_a_save_on_a_machine_whose_clock_is_wrong_is_respected_by_a_prune(place: Place, offset: int) -> None:
    writer, outcome = start(_save_and_stop, place, "the upload", offset)
    wait_until_stopped(writer.pid)
    store = ic.CheckpointStore.open(place.uri, place.storage_options)
    assert store.prune(ic.KeepAll()).held_back_by
    os.kill(writer.pid, signal.SIGCONT)
    assert outcome.get(timeout=_TIMEOUT) == "saved"
    assert [info.step for info in store.checkpoints()] == [10, 20]
    assert store.verify().ok


def start(role: Callable[..., str], place: Place, *arguments: Any) -> tuple[Any, Any]:
    """Run a role in a process of its own. Return the process, and the queue that its outcome comes from."""
    context = multiprocessing.get_context("spawn")
    outcome = context.Queue()
    process = context.Process(target=_report, args=(outcome, role, place, *arguments), daemon=True)
    process.start()
    return process, outcome


def wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, "the writer has not stopped"
        time.sleep(0.02)


def _report(outcome: Any, role: Callable[..., str], place: Place, *arguments: Any) -> None:
    try:
        outcome.put(role(place, *arguments))
    except ic.InputCheckpointError as error:
        outcome.put(type(error).__name__)


def _save_and_stop(place: Place, stops_in: str, offset: float = 0) -> str:
    _shift_clock(offset)
    backend: ic.Backend = ic.open_backend(place.uri, place.storage_options)
    ic.CheckpointStore.open(backend, create=True)
    if stops_in == "the commit":
        backend = Overtaken(backend, "create", "checkpoints/main/00000001/000000000020", _stop)
    run = ic.CheckpointStore.open(backend).begin_run("main")
    save(run, 10)

    def drawn() -> Iterator[Element]:
        yield from elements(20)
        if stops_in == "the upload":
            _stop()

    run.save(20, [ic.IteratorState("Iterator", drawn())])
    return "saved"


def _prune(place: Place, offset: float) -> str:
    _shift_clock(offset)
    report = ic.CheckpointStore.open(place.uri, place.storage_options).prune(ic.KeepAll())
    return "held back" if report.held_back_by else "removed"


def _shift_clock(offset: float) -> None:
    clock = time.time
    time.time = lambda: clock() + offset


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
