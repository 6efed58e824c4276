"""Which places are beside a model directory, and which are inside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import input_checkpoint as ic
from input_checkpoint.backends.location import parse_location
from input_checkpoint.training.model_directory import check_outside_model_dir, default_backend_uri


@pytest.mark.parametrize(
    ("model_dir", "beside"),
    [
        ("/models/run", "/models/run-input"),
        ("/models/run//", "/models/run-input"),
        ("/models/./x/../run", "/models/run-input"),
        ("/models/run 7", "/models/run 7-input"),
        ("/models/run%207", "/models/run%207-input"),
        ("/models/run#7", "/models/run#7-input"),
        ("/models/$run", "/models/$run-input"),
        ("file:///models/run", "/models/run-input"),
        ("file:////models/run/", "/models/run-input"),
        ("file://localhost/models/run", "/models/run-input"),
        ("file:///models/run%207", "/models/run%207-input"),
        ("file:///models/run/..", "/models-input"),
        ("file:///models/ä b?c#d", "/models/ä b?c#d-input"),
        ("file:///~/run", "/~/run-input"),
    ],
)
def test_the_default_place_is_beside_the_folder_that_tensorflow_uses(model_dir: str, beside: str) -> None:
    assert parse_location(default_backend_uri(model_dir)).path == beside


@pytest.mark.parametrize(
    ("model_dir", "beside"),
    [
        ("run", "run-input"),
        ("./run/", "run-input"),
        ("~/run", "~/run-input"),
        ("$HOME/run", "$HOME/run-input"),
        ("file:run", "file:run-input"),
        ("file:/models/run", "file:/models/run-input"),
        ("s3:/bucket/run", "s3:/bucket/run-input"),
        ("my-store://bucket/run", "my-store:/bucket/run-input"),
        ("C://run", "C:/run-input"),
        (" run", " run-input"),
    ],
)
def test_what_tensorflow_takes_for_a_relative_path_is_one(
    model_dir: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_location(default_backend_uri(model_dir)).path == f"{tmp_path}/{beside}"


@pytest.mark.parametrize(
    ("model_dir", "beside"),
    [
        ("gs://bucket/run/", "gs://bucket/run-input"),
        ("s3://bucket/a/run", "s3://bucket/a/run-input"),
        ("hdfs:///models/run", "hdfs:///models/run-input"),
        (
            "abfss://box@account.dfs.core.windows.net/run",
            "abfss://box@account.dfs.core.windows.net/run-input",
        ),
    ],
)
def test_the_default_place_for_a_model_in_a_bucket_is_beside_it(model_dir: str, beside: str) -> None:
    assert default_backend_uri(model_dir) == beside


@pytest.mark.parametrize("model_dir", ["gs://bucket", "s3://bucket/", "/", "file:///", "file://host"])
def test_a_whole_bucket_or_disk_has_no_place_beside_it(model_dir: str) -> None:
    with pytest.raises(
        ic.InvalidLocationError, match=r"cannot be put beside the model directory .*Pass a backend"
    ):
        default_backend_uri(model_dir)


def test_a_place_that_no_backend_opens_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ic.InvalidLocationError, match=r"beside the model directory gs://bucket/run#1: .*contains #"
    ):
        default_backend_uri("gs://bucket/run#1")


def test_beside_a_link_is_not_inside_the_folder_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").symlink_to(tmp_path / "run")
    assert default_backend_uri(str(tmp_path / "run" / "latest")) == f"{tmp_path}/run-input"


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    assert default_backend_uri(tmp_path / "latest") == f"{tmp_path}/latest-input"


@pytest.mark.parametrize(
    "backend", ["{}/a%20b/in", "file://{}/a%2520b/in", "{}/x/../a%20b", "dir::file://{}/a%2520b"]
)
@pytest.mark.parametrize(
    "model_dir",
    ["{}/a%20b", "file://{}/a%20b", "file://host{}/a%20b/", "{}/link/../a%20b", "file:///{}/a%20b"],
)
def test_a_backend_inside_the_model_directory_is_recognized_in_every_spelling(
    model_dir: str, backend: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match=f"inside the model directory {re.escape(str(tmp_path))}/a%20b"):
        check_outside_model_dir(backend.format(tmp_path), model_dir.format(tmp_path))


def test_a_relative_model_directory_with_a_tilde_is_no_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    check_outside_model_dir("~/run/input", "~/run")
    with pytest.raises(ValueError, match="inside the model directory"):
        check_outside_model_dir("./~/run/input", "~/run")


def test_a_backend_whose_name_decodes_to_another_folder_is_outside(tmp_path: Path) -> None:
    check_outside_model_dir(f"file://{tmp_path}/a%20b/in", f"file://{tmp_path}/a%20b")
