"""On every server, exactly one of 16 concurrent writers in several processes creates a key."""

from __future__ import annotations

from collections import Counter

import pytest

from input_checkpoint import open_backend
from integration.racing import Win, race
from integration.servers.server import Place


def assert_one_winner_each(place: Place, keys: list[str], wins: list[Win], size: int) -> None:
    assert Counter(win.key for win in wins) == Counter(keys)
    backend = open_backend(place.uri, place.storage_options)
    for win in wins:
        stored = backend.get(win.key)
        assert len(stored) == size
        assert stored.startswith(win.data_begins_with)
    backend.close()


@pytest.mark.timeout(300)
def test_each_of_fifty_small_objects_has_exactly_one_creator(place: Place) -> None:
    keys = [f"race/{number:02d}" for number in range(50)]
    wins = race(place, keys, size=100)
    assert_one_winner_each(place, keys, wins, size=100)


@pytest.mark.timeout(300)
def test_each_object_large_enough_for_a_multipart_upload_has_exactly_one_creator(
    place: Place,
) -> None:
    keys = [f"race/{number}" for number in range(3)]
    wins = race(place, keys, size=12 << 20)
    assert_one_winner_each(place, keys, wins, size=12 << 20)
