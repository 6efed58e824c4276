"""Whatever is damaged in a store: wrong data never comes back, and `verify` knows what cannot be loaded.

Here at a few places; integration/test_corruption_sweep.py damages each object at many.
"""

from __future__ import annotations

from functools import partial

import pytest

from input_checkpoint.format.keys import manifest_key
from tests.support import corruption, cycles
from tests.support.corruption import check_that_no_damage_goes_unnoticed


def test_a_flipped_bit_is_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.flips, most=4)) > 100


def test_an_object_cut_short_is_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.truncations, most=3)) > 60


def test_a_missing_object_is_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(corruption.deletions) > 15


def test_objects_that_changed_places_are_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(corruption.swaps) > 60


def test_a_lineage_record_in_the_place_of_another_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    backend = corruption.damaged_store()
    backend.put("lineages/main/00000002.json", backend.get("lineages/main/00000001.json"))
    cycles.open_store(backend).history("main")
    assert "lineages/main/00000002.json is damaged: it holds the record of another lineage" in caplog.text


def test_after_damage_to_the_newest_checkpoint_the_next_run_goes_on_from_an_older_one() -> None:
    backend = corruption.damaged_store()
    store = cycles.open_store(backend)
    newest = store.newest("main").ref
    backend.put(manifest_key(newest), backend.get(manifest_key(newest))[:-1])
    older = store.history("main")[-2]
    assert cycles.restored(store, older) == cycles.expected(30)
    run = store.begin_run("main", older)
    info = run.save(40, cycles.state(40))
    assert cycles.restored(cycles.open_store(backend), info.ref) == cycles.expected(40)
    assert store.history("main")[-1] == info.ref
