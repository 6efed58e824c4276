"""How many requests follow one another. Those that are sent at the same time count once.

With a tiny state, each of them costs as much as anything else that the library does.
"""

from __future__ import annotations

import pytest

import input_checkpoint as ic
from tests.support.stores import loaded, some_state
from tests.support.wrappers import Rounds


@pytest.fixture
def rounds(memory) -> Rounds:
    return Rounds(memory)


@pytest.fixture
def saved(memory) -> ic.CheckpointRef:
    """A checkpoint that an earlier process has left."""
    return ic.CheckpointStore.open(memory, create=True).begin_run("main").save(10, some_state()).ref


def probe_rounds() -> list[list[str]]:
    return [
        ["create probe", "put probe"],
        ["create probe", "list probe", "put probe"],
        ["get probe", "get probe", "get probe"],
        ["delete probe"],
    ]


def test_opening_a_store_with_a_probe(rounds, saved):
    ic.CheckpointStore.open(rounds, probe=True)
    assert rounds.take() == [["get format.json"], *probe_rounds()]


def test_making_a_store_with_a_probe(rounds):
    ic.CheckpointStore.open(rounds, create=True, probe=True)
    assert rounds.take() == [["get format.json"], *probe_rounds(), ["create format.json"]]


SAVE = [
    ["put lineages"],
    ["get checkpoints", "get packs", "put packs"],
    ["list lineages"],
    ["create checkpoints"],
    ["list lineages"],
    ["delete lineages"],
]


def test_the_first_save_of_a_resumed_run_takes_no_more_round_trips_than_any_other(memory, rounds, saved):
    run = ic.CheckpointStore(rounds).begin_run("main", parent=saved)
    rounds.take()
    run.save(20, some_state(b"20"))
    assert rounds.take() == [["get checkpoints", "list lineages", "put lineages"], *SAVE[1:]]


def test_a_save_takes_four_round_trips_to_its_commit(memory, rounds, saved):
    run = ic.CheckpointStore(rounds).begin_run("main")
    run.save(20, some_state(b"20"))
    rounds.take()
    run.save(30, some_state(b"30"))
    assert rounds.take() == SAVE


def test_a_save_with_one_request_at_a_time(memory, rounds, saved):
    options = ic.SaveOptions(concurrency=1)
    run = ic.CheckpointStore(rounds, options).begin_run("main", parent=saved)
    rounds.take()
    run.save(20, some_state(b"20"))
    assert all(len(requests) == 1 for requests in rounds.take())


def test_a_resume_takes_four_round_trips(rounds, saved):
    store = ic.CheckpointStore(rounds)
    listing = store.list_worker("main", read_ahead=True)
    assert loaded(store, listing.history[-1]) == [("Iterator", some_state()[0].elements)]
    store.begin_run("main", parent=listing.history[-1], listing=listing)
    assert rounds.take() == [
        ["list checkpoints", "list lineages"],
        ["get checkpoints", "get lineages"],
        ["get packs"],
        ["create lineages"],
    ]
