"""Nothing is read before its size is known to be allowed, and nothing larger is written."""

from __future__ import annotations

import pytest

from input_checkpoint import (
    CheckpointRef,
    CheckpointStore,
    CheckpointTooLargeError,
    CorruptCheckpointError,
    IteratorState,
    KeepAll,
    SaveContext,
    SaveOptions,
    UnsupportedFormatError,
)
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.format.keys import lineage_key, manifest_key, pin_key
from input_checkpoint.format.limits import (
    FREE_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNK_RATIO,
    MAX_FORMAT_BYTES,
    MAX_LINEAGE_BYTES,
    MAX_MARK_BYTES,
    MAX_PIN_BYTES,
)
from input_checkpoint.format.lineage import Ancestor, Lineage, decode_lineage, encode_lineage
from tests.fuzz.mutations import MARKS, intact
from tests.fuzz.storage import Content, FuzzedBackend
from tests.support.memory import peak_memory
from tests.support.stores import MIB, loaded, save, some_state, steps

GIB = 1 << 30
REF = CheckpointRef("main", 1, 20)


class Recording(FuzzedBackend):
    """Remembers the most bytes that a reader has requested of an object, and has received."""

    def __init__(self, objects) -> None:
        super().__init__(objects)
        self.most: dict[str, int] = {}

    def get(self, key, start=0, end=None):
        assert end is not None, f"{key} was requested without a limit"
        data = super().get(key, start, end)
        self.most[key] = max(self.most.get(key, 0), len(data))
        return data


def grown(*keys: str) -> Recording:
    """The fixture's store, with 8 GB of zeros at the end of some objects."""
    objects = intact()
    for key in keys:
        objects[key] = Content(objects[key].data, 8 * GIB)
    return Recording(objects)


def test_no_object_is_ever_requested_without_a_limit():
    backend = Recording(intact())
    store = CheckpointStore.open(backend, retry=None)
    store.verify()
    store.pins()
    store.copy_to(CheckpointStore.open(Recording({}), create=True, retry=None))
    run = store.begin_run("main", store.history("main")[-1])
    save(run, 100)
    run.prune(KeepAll())
    assert len(backend.most) > 10


def test_a_format_file_of_gigabytes_is_refused_after_a_few_kilobytes():
    backend = grown("format.json")
    with pytest.raises(UnsupportedFormatError, match=r"format\.json"):
        CheckpointStore.open(backend, retry=None)
    assert backend.most["format.json"] <= MAX_FORMAT_BYTES + 1


@pytest.mark.parametrize("version", ["true", "1.0", '"1"', "null", "[1]"])
def test_a_version_of_another_type_is_refused(version):
    backend = FuzzedBackend(intact())
    backend.put("format.json", b'{"format": "input-checkpoint", "version": %b}' % version.encode())
    with pytest.raises(UnsupportedFormatError):
        CheckpointStore.open(backend, retry=None)


def test_a_newer_version_is_named():
    backend = FuzzedBackend(intact())
    backend.put("format.json", b'{"format": "input-checkpoint", "version": 7}')
    with pytest.raises(UnsupportedFormatError, match="format version 7"):
        CheckpointStore.open(backend, retry=None)


def test_a_lineage_record_of_gigabytes_counts_as_damaged(caplog):
    key = lineage_key("main", 2)
    backend = grown(key)
    store = CheckpointStore.open(backend, retry=None)
    assert steps(store.history("main")) == [(1, 10), (2, 15), (2, 25)]
    assert key in caplog.text
    assert backend.most[key] <= MAX_LINEAGE_BYTES + 1


def test_a_manifest_of_gigabytes_is_refused_after_what_it_says_that_it_has():
    key = manifest_key(REF)
    backend = grown(key)
    store = CheckpointStore.open(backend, retry=None)
    with pytest.raises(CorruptCheckpointError, match="step 20"):
        loaded(store, REF)
    assert backend.most[key] <= MIB


def test_a_pin_of_gigabytes_is_a_pin_without_a_note():
    backend = grown(pin_key(CheckpointRef("main", 1, 10)))
    assert CheckpointStore.open(backend, retry=None).pins() == {CheckpointRef("main", 1, 10): ""}
    assert max(backend.most.values()) <= MAX_PIN_BYTES + 1


def test_a_mark_of_gigabytes_is_refused_after_the_largest_size_of_a_mark():
    key = MARKS[0][0]
    backend = grown(key)
    store = CheckpointStore.open(backend, retry=None)
    with pytest.raises(CorruptCheckpointError, match="more than the format allows"):
        store.read_mark(store.marks()[0])
    assert backend.most[key] <= MAX_MARK_BYTES + 1


@pytest.mark.parametrize("note", [b"[" * 60_000, b'{"note": 5}', b'{"note": "\\ud800"}', b"\xff"])
def test_a_damaged_pin_is_a_pin_without_a_note(store, run, backend, note):
    (ref,) = save(run, 10)
    backend.put(pin_key(ref), note)
    assert store.pins() == {ref: ""}


def test_a_pack_of_gigabytes_is_not_copied():
    packs = [key for key in intact() if key.endswith(".pack")]
    backend = grown(*packs)
    store = CheckpointStore.open(backend, retry=None)
    report = store.copy_to(CheckpointStore.open(FuzzedBackend({}), create=True, retry=None))
    assert len(report.problems) == 4
    # The first pack that is wrong ends the copy of its checkpoint, whose other packs need not be read.
    read = [backend.most[key] for key in packs if key in backend.most]
    assert 0 < max(read) < MIB


def test_a_range_beyond_the_end_of_a_local_file_needs_no_memory(tmp_path):
    backend = LocalBackend(str(tmp_path))
    backend.put("small", b"data")
    assert peak_memory(lambda: backend.get("small", 0, 8 * GIB)) < MIB
    assert backend.get("small", 1, 8 * GIB) == b"ata"


def test_an_element_beyond_the_limit_is_not_saved(store, run):
    huge = bytes(MAX_CHUNK_BYTES + 1)  # costs no memory until it is read
    with pytest.raises(CheckpointTooLargeError, match=f"step 10.*{MAX_CHUNK_BYTES}") as raised:
        run.save(10, [IteratorState("Iterator", [(b"key", huge)])])
    assert (raised.value.uri, raised.value.step) == (store.uri, 10)
    assert store.checkpoints() == []
    save(run, 20)
    assert steps(store.history("main")) == [(1, 20)]


def test_keys_that_are_together_beyond_the_limit_are_not_saved(run, monkeypatch):
    monkeypatch.setattr("input_checkpoint.format.chunking.MAX_CHUNK_BYTES", 10_000)
    with pytest.raises(CheckpointTooLargeError, match="group of"):
        run.save(10, [IteratorState("Iterator", [(b"k" * 1000, bytes(1000))] * 20)])


def test_a_context_beyond_the_limit_is_not_saved(store, run):
    with pytest.raises(CheckpointTooLargeError, match="SaveContext"):
        run.save(10, some_state(), SaveContext(pipeline={"Iterator": "x" * MIB}))
    assert store.checkpoints() == []


def test_more_chunks_than_a_manifest_can_list_are_not_saved(store, run, monkeypatch):
    monkeypatch.setattr("input_checkpoint.format.manifest.MAX_ROWS", 3)
    with pytest.raises(CheckpointTooLargeError, match="at most 3"):
        run.save(10, [IteratorState("Iterator", [(b"key", b"%d" % number * 1000) for number in range(4)])])
    assert store.checkpoints() == []


def test_more_iterators_than_a_manifest_can_list_are_not_saved(store, run):
    with pytest.raises(CheckpointTooLargeError, match="5000 iterators"):
        run.save(10, [IteratorState(f"Iterator_{number}", []) for number in range(5000)])
    assert store.checkpoints() == []


@pytest.mark.parametrize("size", [0, -1, 1 << 33])
def test_packs_beyond_the_limit_are_refused(size):
    with pytest.raises(ValueError, match="pack_bytes"):
        SaveOptions(pack_bytes=size)


def test_a_note_beyond_the_limit_is_refused(store, run):
    (ref,) = save(run, 10)
    with pytest.raises(ValueError, match="Shorten it"):
        store.pin(ref, "x" * MAX_PIN_BYTES)
    assert store.pins() == {}


def test_a_record_with_too_many_ancestors_is_not_written():
    ancestors = tuple(Ancestor(number, number) for number in range(30_000, 0, -1))
    with pytest.raises(CheckpointTooLargeError, match=r"30000 earlier runs.*Prune"):
        encode_lineage(Lineage("main", 30_001, ancestors))
    fitting = Lineage("main", 30_001, ancestors[:10_000])
    assert decode_lineage(encode_lineage(fitting)) == fitting


def test_the_history_of_a_record_with_many_ancestors_is_found_quickly():
    """Comparing each checkpoint with each ancestor would take minutes."""
    line = Lineage("main", 30_001, tuple(Ancestor(number, 10) for number in range(30_000, 0, -1)))
    refs = [CheckpointRef("main", number, step) for number in range(1, 30_001) for step in (10, 20)]
    assert len(line.history(refs)) == 30_000


def test_a_payload_that_compresses_to_almost_nothing_is_stored_so_that_readers_accept_it(store, run):
    zeros = bytes(4 * FREE_BYTES)
    info = run.save(10, [IteratorState("Iterator", [(b"key", zeros)])])
    assert info.stored_bytes >= 3 * FREE_BYTES / MAX_CHUNK_RATIO
    assert loaded(store, info) == [("Iterator", [(b"key", zeros)])]
    assert store.verify().ok
