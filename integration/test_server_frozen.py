"""The server freezes or is slow during a save: the save ends in time, and no committed checkpoint is lost."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import pytest

from input_checkpoint import BackendUnavailableError, CheckpointStore, IteratorState, RetryPolicy
from input_checkpoint.state import Element
from integration.servers.server import Place, Server

ELEMENT_BYTES = 100_000
ELEMENTS = 400
LIMITS = {"timeout": 2, "min_bytes_per_second": 8 << 20}
RETRY = RetryPolicy(timeout=5, max_delay=1)
ENDED_BEFORE = 60


def fresh_state() -> list[Element]:
    return [(b"slot %d" % slot, os.urandom(ELEMENT_BYTES)) for slot in range(ELEMENTS)]


def halfway(state: list[Element], freezing: contextlib.ExitStack, server: Server) -> Iterator[Element]:
    """Yield the elements, and freeze the server when packs are already being uploaded."""
    for number, element in enumerate(state):
        if number == ELEMENTS // 2:
            freezing.enter_context(server.frozen())
        yield element


def check_save_on_frozen_server(server: Server, place: Place, **options: object) -> None:
    store = CheckpointStore.open(
        place.uri, {**place.storage_options, **LIMITS, **options}, create=True, retry=RETRY
    )
    run = store.begin_run("main")
    before, after = fresh_state(), fresh_state()
    safe = run.save(10, [IteratorState("Iterator", before)])
    with contextlib.ExitStack() as freezing:
        started = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="gave up"):
            run.save(20, [IteratorState("Iterator", halfway(fresh_state(), freezing, server))])
        assert time.monotonic() - started < ENDED_BEFORE
    assert store.checkpoints() == [safe]
    info = run.save(30, [IteratorState("Iterator", after)])
    assert [found.in_order() for found in store.load(info)] == [after]
    assert store.verify().problems == {}


@pytest.mark.timeout(300)
def test_a_save_to_a_frozen_server_ends_and_the_next_one_succeeds(server: Server, place: Place) -> None:
    check_save_on_frozen_server(server, place)


@pytest.mark.timeout(300)
@pytest.mark.two_engines
def test_a_save_to_a_frozen_server_ends_through_obstore_too(server: Server, place: Place) -> None:
    check_save_on_frozen_server(server, place, engine="obstore")


@pytest.mark.timeout(300)
def test_a_save_to_a_server_that_freezes_again_and_again_succeeds(server: Server, place: Place) -> None:
    store = CheckpointStore.open(place.uri, place.storage_options, create=True)
    run = store.begin_run("main")
    state = fresh_state()
    saved = threading.Event()

    def freeze_again_and_again() -> None:
        while not saved.wait(0.2):
            with server.frozen():
                time.sleep(0.4)

    freezing = threading.Thread(target=freeze_again_and_again)
    freezing.start()
    try:
        info = run.save(10, [IteratorState("Iterator", state)])
    finally:
        saved.set()
        freezing.join()
    assert [found.in_order() for found in store.load(info)] == [state]
    assert store.verify().problems == {}
