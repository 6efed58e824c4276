"""Errors carry the URI of their store, and the key and checkpoint that they are about."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

import pytest

from input_checkpoint import (
    CheckpointNotFoundError,
    CheckpointRef,
    CheckpointStore,
    CorruptCheckpointError,
    InputCheckpointError,
    KeepLast,
    Run,
    WriterSupersededError,
)
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.format.keys import lineage_key, manifest_key
from tests.support.stores import loaded, pack_keys, run_in, save, tamper
from tests.support.wrappers import Overtaken

MISSING = CheckpointRef("main", 1, 70)


class Failure(NamedTuple):
    """An operation that fails, and the object and checkpoint that its error is about."""

    operation: Callable[[], object]
    key: Optional[str] = None
    ref: Optional[CheckpointRef] = None


class Scene(NamedTuple):
    """A store with one run that has saved step 10."""

    backend: MemoryBackend
    store: CheckpointStore
    run: Run
    saved: CheckpointRef


Scenario = Callable[[Scene], Failure]


@pytest.fixture
def scene(memory: MemoryBackend) -> Scene:
    store = CheckpointStore.open(memory, create=True)
    run = store.begin_run("main")
    return Scene(memory, store, run, save(run, 10)[0])


def attributes(error: InputCheckpointError) -> tuple[object, ...]:
    return error.uri, error.key, error.ref, error.step


def expected_attributes(scene: Scene, failure: Failure) -> tuple[object, ...]:
    step = None if failure.ref is None else failure.ref.step
    return scene.store.uri, failure.key, failure.ref, step


def save_after_a_newer_run_has_begun(scene: Scene) -> Failure:
    scene.store.begin_run("main")
    return Failure(lambda: save(scene.run, 20))


def prune_after_a_newer_run_has_begun(scene: Scene) -> Failure:
    scene.store.begin_run("main")
    return Failure(lambda: scene.run.prune(KeepLast(1)))


def prune_while_a_newer_run_begins(scene: Scene) -> Failure:
    save(scene.run, 20)
    overtaken = Overtaken(scene.backend, "list", "pins/", lambda: scene.store.begin_run("main"))
    return Failure(lambda: CheckpointStore(overtaken).prune(KeepLast(1), "main"))


def save_a_step_that_another_process_has_saved(scene: Scene) -> Failure:
    same_run = run_in(CheckpointStore(scene.backend), scene.run)
    return Failure(lambda: save(same_run, 10), manifest_key(scene.saved), scene.saved)


@pytest.mark.parametrize(
    "scenario",
    [
        save_after_a_newer_run_has_begun,
        prune_after_a_newer_run_has_begun,
        prune_while_a_newer_run_begins,
        save_a_step_that_another_process_has_saved,
    ],
)
def test_an_error_of_a_superseded_run_carries_what_it_is_about(scene: Scene, scenario: Scenario) -> None:
    failure = scenario(scene)
    with pytest.raises(WriterSupersededError) as raised:
        failure.operation()
    assert attributes(raised.value) == expected_attributes(scene, failure)


def load_a_checkpoint_that_does_not_exist(scene: Scene) -> Failure:
    return Failure(lambda: loaded(scene.store, MISSING), manifest_key(MISSING), MISSING)


def ask_about_a_checkpoint_that_does_not_exist(scene: Scene) -> Failure:
    return Failure(lambda: scene.store.info(MISSING), manifest_key(MISSING), MISSING)


def pin_a_checkpoint_that_does_not_exist(scene: Scene) -> Failure:
    return Failure(lambda: scene.store.pin(MISSING), manifest_key(MISSING), MISSING)


def ask_for_the_newest_checkpoint_of_a_worker_without_any(scene: Scene) -> Failure:
    return Failure(lambda: scene.store.newest("worker-1"))


def begin_a_run_from_a_lineage_that_does_not_exist(scene: Scene) -> Failure:
    parent = CheckpointRef("main", 5, 10)
    return Failure(lambda: scene.store.begin_run("main", parent), lineage_key("main", 5))


@pytest.mark.parametrize(
    "scenario",
    [
        load_a_checkpoint_that_does_not_exist,
        ask_about_a_checkpoint_that_does_not_exist,
        pin_a_checkpoint_that_does_not_exist,
        ask_for_the_newest_checkpoint_of_a_worker_without_any,
        begin_a_run_from_a_lineage_that_does_not_exist,
    ],
)
def test_an_error_about_a_missing_checkpoint_carries_what_it_is_about(
    scene: Scene, scenario: Scenario
) -> None:
    failure = scenario(scene)
    with pytest.raises(CheckpointNotFoundError) as raised:
        failure.operation()
    assert attributes(raised.value) == expected_attributes(scene, failure)


def load_a_damaged_manifest(scene: Scene) -> Failure:
    key = manifest_key(scene.saved)
    scene.backend.put(key, scene.backend.get(key)[:-1])
    return Failure(lambda: loaded(scene.store, scene.saved), key, scene.saved)


def ask_about_a_damaged_manifest(scene: Scene) -> Failure:
    key = manifest_key(scene.saved)
    scene.backend.put(key, b"damaged")
    return Failure(lambda: CheckpointStore(scene.backend).info(scene.saved), key, scene.saved)


def load_the_manifest_of_another_checkpoint(scene: Scene) -> Failure:
    (other,) = save(scene.run, 20)
    key = manifest_key(scene.saved)
    scene.backend.put(key, scene.backend.get(manifest_key(other)))
    return Failure(lambda: loaded(scene.store, scene.saved), key, scene.saved)


def load_a_manifest_whose_counts_are_wrong(scene: Scene) -> Failure:
    tamper(scene.backend, scene.saved, elements=77)
    return Failure(lambda: loaded(scene.store, scene.saved), manifest_key(scene.saved), scene.saved)


def load_from_a_missing_pack(scene: Scene) -> Failure:
    (pack,) = pack_keys(scene.backend)
    scene.backend.delete([pack])
    return Failure(lambda: loaded(scene.store, scene.saved), pack, scene.saved)


def load_from_a_truncated_pack(scene: Scene) -> Failure:
    (pack,) = pack_keys(scene.backend)
    scene.backend.put(pack, scene.backend.get(pack)[:-1])
    return Failure(lambda: loaded(scene.store, scene.saved), pack, scene.saved)


def load_a_damaged_chunk(scene: Scene) -> Failure:
    (pack,) = pack_keys(scene.backend)
    scene.backend.put(pack, bytes(len(scene.backend.get(pack))))
    return Failure(lambda: loaded(scene.store, scene.saved), pack, scene.saved)


def save_a_step_whose_manifest_exists_and_is_damaged(scene: Scene) -> Failure:
    key = manifest_key(scene.saved)
    scene.backend.put(key, b"damaged")
    same_run = run_in(CheckpointStore(scene.backend), scene.run)
    return Failure(lambda: save(same_run, 10), key, scene.saved)


def begin_a_run_from_a_lineage_whose_record_is_damaged(scene: Scene) -> Failure:
    key = lineage_key("main", scene.run.lineage.number)
    scene.backend.put(key, b"damaged")
    scene.backend.delete([manifest_key(scene.saved)])
    scene.store.begin_run("main")
    return Failure(lambda: scene.store.begin_run("main", scene.saved), key)


@pytest.mark.parametrize(
    "scenario",
    [
        load_a_damaged_manifest,
        ask_about_a_damaged_manifest,
        load_the_manifest_of_another_checkpoint,
        load_a_manifest_whose_counts_are_wrong,
        load_from_a_missing_pack,
        load_from_a_truncated_pack,
        load_a_damaged_chunk,
        save_a_step_whose_manifest_exists_and_is_damaged,
        begin_a_run_from_a_lineage_whose_record_is_damaged,
    ],
)
def test_an_error_about_damage_carries_what_it_is_about(scene: Scene, scenario: Scenario) -> None:
    failure = scenario(scene)
    with pytest.raises(CorruptCheckpointError) as raised:
        failure.operation()
    assert attributes(raised.value) == expected_attributes(scene, failure)
