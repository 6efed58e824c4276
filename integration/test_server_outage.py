"""The server is killed during a save: no committed checkpoint is lost or damaged."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Callable

import pytest

from input_checkpoint import BackendUnavailableError, CheckpointStore, IteratorState, RetryPolicy
from input_checkpoint.state import Element
from integration.servers.server import Place, Server

pytestmark = pytest.mark.durable
ELEMENT_BYTES = 100_000
ELEMENTS = 600


def fresh_state() -> list[Element]:
    return [(b"slot %d" % slot, os.urandom(ELEMENT_BYTES)) for slot in range(ELEMENTS)]


def interrupted(state: list[Element], event: Callable[[], None]) -> Iterator[Element]:
    """Yield the elements, and call ``event`` halfway, when packs are already being uploaded."""
    for number, element in enumerate(state):
        if number == ELEMENTS // 2:
            event()
        yield element


def kill(server: Server) -> None:
    server.wait_until_durable()
    server.kill()


def opened(place: Place, timeout: float) -> CheckpointStore:
    retry = RetryPolicy(timeout=timeout, max_delay=2)
    return CheckpointStore.open(place.uri, place.storage_options, create=True, retry=retry)


@pytest.mark.timeout(300)
def test_a_save_survives_a_restart_of_the_server(server: Server, place: Place) -> None:
    store = opened(place, timeout=120)
    run = store.begin_run("main")
    state = fresh_state()
    restart = threading.Timer(3, server.start)

    def outage() -> None:
        kill(server)
        restart.start()

    info = run.save(10, [IteratorState("Iterator", interrupted(state, outage))])
    restart.join()
    assert [found.in_order() for found in store.load(info)] == [state]
    assert store.verify().problems == {}


@pytest.mark.timeout(300)
def test_a_save_to_a_server_that_stays_down_fails_clearly_and_earlier_checkpoints_are_safe(
    server: Server, place: Place
) -> None:
    store = opened(place, timeout=5)
    run = store.begin_run("main")
    before, lost, after = fresh_state(), fresh_state(), fresh_state()
    safe = run.save(10, [IteratorState("Iterator", before)])
    with pytest.raises(BackendUnavailableError, match="gave up") as raised:
        run.save(20, [IteratorState("Iterator", interrupted(lost, lambda: kill(server)))])
    assert store.uri in str(raised.value)
    server.start()
    assert store.checkpoints() == [safe]
    assert [found.in_order() for found in store.load(safe)] == [before]
    info = run.save(30, [IteratorState("Iterator", after)])
    elsewhere = CheckpointStore.open(place.uri, place.storage_options)
    assert [found.in_order() for found in elsewhere.load(info)] == [after]
    assert store.verify().problems == {}
