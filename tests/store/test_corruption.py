"""No damage goes unnoticed: wrong data is never restored, and `verify` finds what cannot be loaded.

Each object is damaged at a few places here, and at many in integration/test_corruption_sweep.py.
"""

from __future__ import annotations

from functools import partial

import pytest

from input_checkpoint.format.keys import manifest_key
from tests.support import corruption, cycles
from tests.support.corruption import check_that_no_damage_goes_unnoticed


def test_a_flipped_bit_is_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.flips, most=3)) > 80


def test_a_truncated_or_extended_object_is_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.truncations, most=3)) > 60


def test_a_missing_object_is_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(corruption.deletions) > 15


def test_swapped_objects_are_noticed() -> None:
    assert check_that_no_damage_goes_unnoticed(partial(corruption.swaps, every=4)) > 15


def test_a_lineage_record_under_the_key_of_another_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    backend = corruption.intact_store()
    backend.put("lineages/main/00000002.json", backend.get("lineages/main/00000001.json"))
    cycles.open_store(backend).history("main")
    assert "lineages/main/00000002.json is damaged: it holds the record of another lineage" in caplog.text


def test_after_damage_to_the_newest_checkpoint_the_next_run_can_continue_from_an_older_one() -> None:
    backend = corruption.intact_store()
    store = cycles.open_store(backend)
    newest = store.newest("main").ref
    backend.put(manifest_key(newest), backend.get(manifest_key(newest))[:-1])
    older = store.history("main")[-2]
    assert cycles.restored(store, older) == cycles.expected(30)
    run = store.begin_run("main", older)
    info = run.save(40, cycles.state(40))
    assert cycles.restored(cycles.open_store(backend), info.ref) == cycles.expected(40)
    assert store.history("main")[-1] == info.ref
