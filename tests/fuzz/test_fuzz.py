"""The fuzzer finds nothing: neither with the inputs in ``corpus/``, nor with some new ones.

It runs in a process of its own, whose memory is limited.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.drawing import draw
from tests.fuzz.mutations import apply, intact
from tests.fuzz.session import BrokenError, check, expected
from tests.fuzz.storage import FuzzedBackend

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.timeout(600)
def test_every_input_of_the_corpus_is_survived() -> None:
    fuzz("--replay")


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_an_input_of_the_corpus_says_why_it_is_there_and_changes_the_store(path: Path) -> None:
    kept = json.loads(path.read_text())
    assert kept["why"]
    assert apply(kept["mutations"], strict=True) != intact()


@pytest.mark.timeout(600)
def test_some_new_inputs_are_survived(tmp_path: Path) -> None:
    fuzz("--inputs", "15", "--seed", "7", "--keep", str(tmp_path))


def test_the_same_seed_draws_the_same_input() -> None:
    assert [draw(random.Random(seed)) for seed in range(50)] == [
        draw(random.Random(seed)) for seed in range(50)
    ]


def test_most_inputs_change_the_store() -> None:
    changed = sum(apply(draw(random.Random(seed))) != intact() for seed in range(100))
    assert changed > 80


def test_the_intact_store_is_fine() -> None:
    check([])


def test_wrong_data_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expected()  # loaded now, because the next line makes loading wrong
    monkeypatch.setattr("tests.fuzz.session._load", lambda store, ref: [])
    with pytest.raises(BrokenError, match="other data than was saved"):
        check([])


def test_an_error_that_is_not_the_library_s_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("input_checkpoint.CheckpointStore.verify", fail)
    with pytest.raises(BrokenError, match="verify: RecursionError: too deep"):
        check([])


def test_the_removal_of_a_live_pack_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("input_checkpoint.store.pruning.unneeded_packs", lambda packs, *rest: list(packs))
    with pytest.raises(BrokenError):
        check([])


def test_a_change_of_somebody_else_s_object_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    delete = FuzzedBackend.delete
    monkeypatch.setattr(FuzzedBackend, "delete", lambda self, keys: delete(self, [*keys, "notes.txt"]))
    with pytest.raises(BrokenError, match=r"notes\.txt"):
        check([])


def test_an_operation_without_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(self: object) -> None:
        while True:
            continue

    monkeypatch.setattr("tests.fuzz.session.PROCESSOR_SECONDS", 0.2)
    monkeypatch.setattr("input_checkpoint.CheckpointStore.workers", spin)
    with pytest.raises(BrokenError, match="not finished"):
        check([])
