"""A model directory is where TensorFlow puts it, however it is spelled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tensorflow as tf

import input_checkpoint as ic
from input_checkpoint.backends.location import parse_location
from input_checkpoint.training.model_directory import default_backend_uri, locate_model_dir
from tests.support.hooked_training import Steps, drop_input, train, train_in_session
from tests.support.training import trained_on

SPELLINGS = [
    "{}/model",
    "{}/x/../model",
    "{}/link/../model",
    "{}/a%20b",
    "{}/a b",
    "{}//model//",
    "file://{}/model",
    "file:///{}/model/",
    "file://{}/a%20b/model",
    "file://{}/a b#c?d",
    "file://localhost{}/model",
    "file://host{}/model",
    "file://{}/link/../model",
    "file://{}/deep/..",
    "file:{}/model",
    "file:model",
    "model",
    "./model",
    "~/model",
    "$HOME/model",
    "a-b://c/model",
    "1s://c/model",
    "a://c/model",
    " model",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_is_located_where_tensorflow_puts_it(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    model_dir = spelling.format(tmp_path)
    tf.io.gfile.makedirs(model_dir)
    with tf.io.gfile.GFile(os.path.join(model_dir, "file"), "w") as file:
        file.write("here")
    (found,) = tmp_path.rglob("file")
    located = locate_model_dir(model_dir)
    assert located.path == str(found.parent)
    assert parse_location(default_backend_uri(model_dir)).path == f"{found.parent}-input"


def test_training_with_an_encoded_uri_goes_back_and_resumes_beside_the_model(
    tmp_path: Path, reference: Steps
) -> None:
    folder = tmp_path / "a%20b"
    model_dir = f"file://{folder}/model"
    train(model_dir, 30)
    drop_input(folder / "model", 30)
    train(model_dir, 20)
    assert sorted(os.listdir(folder)) == ["model", "model-input"]
    assert trained_on(model_dir) == reference[:40]


def test_a_path_object_names_the_model_directory_of_a_session(tmp_path: Path, reference: Steps) -> None:
    for _ in range(2):
        hook = ic.SessionHook(model_dir=tmp_path / "model", save_steps=10)
        train_in_session(tmp_path / "model", [hook], steps=20)
    assert sorted(os.listdir(tmp_path)) == ["model", "model-input"]
    assert trained_on(tmp_path / "model") == reference[:40]
