"""A store is opened or created, and an unknown format is refused."""

from __future__ import annotations

import json

import pytest

from input_checkpoint import BackendNotFoundError, CheckpointStore, UnsupportedFormatError
from tests.support.stores import save
from tests.support.wrappers import LosingResponses, Recording, contents


class TestOpening:
    def test_a_uri_without_a_store_is_not_found_and_nothing_is_written(self, backend):
        with pytest.raises(BackendNotFoundError, match="no checkpoint store"):
            CheckpointStore.open(backend)
        assert contents(backend) == {}

    def test_opening_does_not_create_a_missing_folder(self, tmp_path):
        with pytest.raises(BackendNotFoundError):
            CheckpointStore.open(str(tmp_path / "nowhere"))
        assert list(tmp_path.iterdir()) == []

    def test_a_created_store_can_be_opened(self, store, backend):
        assert CheckpointStore.open(backend).checkpoints() == []

    def test_creating_a_store_again_keeps_its_checkpoints(self, store, backend, run):
        save(run, 10)
        assert [info.step for info in CheckpointStore.open(backend, create=True).checkpoints()] == [10]

    def test_a_lost_response_to_the_creation_is_not_an_error(self, backend):
        CheckpointStore.open(LosingResponses(backend), create=True)
        assert json.loads(contents(backend)["format.json"]) == {"format": "input-checkpoint", "version": 1}

    @pytest.mark.parametrize("create", [False, True])
    @pytest.mark.parametrize(
        "found",
        [
            b'{"format": "input-checkpoint", "version": 2}',
            b'{"format": "input-checkpoint", "version": "1"}',
            b'{"format": "something-else", "version": 1}',
            b'{"format": "input-checkpoint"}',
            b"[]",
            b"",
            b"\xff\x00",
        ],
    )
    def test_an_unknown_format_is_refused_before_any_other_request(self, memory, found, create):
        memory.put("format.json", found)
        memory.put("checkpoints/main/00000001/000000000010.manifest", b"of a later release")
        recording = Recording(memory)
        with pytest.raises(UnsupportedFormatError):
            CheckpointStore.open(recording, create=create)
        assert set(recording.calls) == {("get", "format.json")}

    def test_the_refusal_names_the_uri_and_both_versions(self, memory):
        memory.put("format.json", b'{"format": "input-checkpoint", "version": 7}')
        with pytest.raises(UnsupportedFormatError, match=rf"{memory.uri} .* version 7, .* version 1"):
            CheckpointStore.open(memory)
