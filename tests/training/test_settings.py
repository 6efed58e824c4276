"""Settings are checked when an integration is constructed, and every error says what to pass instead."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import input_checkpoint as ic
from input_checkpoint.training.settings import TrainingOptions, TrainingSettings

SCHEDULE = {"save_steps": 10}


@pytest.mark.parametrize(
    ("retention", "advice"),
    [
        (5, r"pass KeepLast\(5\)"),
        (np.int64(5), r"pass KeepLast\(5\)"),
        (ic.KeepLast, "KeepLast is a class; pass an instance"),
        ([ic.KeepLast(5)], r"combine several policies with \|"),
        (None, r"pass one, such as KeepLast\(5\)"),
        (True, r"pass one, such as KeepLast\(5\)"),
        ("last:5", r"pass one, such as KeepLast\(5\)"),
    ],
)
def test_a_value_that_is_not_a_retention_policy_is_refused_with_advice(retention: Any, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        TrainingSettings(retention=retention, **SCHEDULE)


@pytest.mark.parametrize("steps", ["100", 100.0, True, [100]])
def test_steps_that_are_not_a_whole_number_are_refused(steps: Any) -> None:
    with pytest.raises(TypeError, match="save_steps must be a whole number"):
        TrainingSettings(save_steps=steps)


@pytest.mark.parametrize("secs", ["100", True, [100]])
def test_seconds_that_are_not_a_number_are_refused(secs: Any) -> None:
    with pytest.raises(TypeError, match="save_secs must be a number of seconds"):
        TrainingSettings(save_secs=secs)


def test_numpy_numbers_are_accepted_and_become_plain_ones() -> None:
    by_steps = TrainingSettings(
        save_steps=np.int64(100),
        num_workers=np.int32(1),
        max_failed_saves=np.uint8(5),
        max_fast_forward=np.int64(7),
    )
    plain = TrainingSettings(save_steps=100, num_workers=1, max_failed_saves=5, max_fast_forward=7)
    assert repr(by_steps) == repr(plain)
    assert repr(by_steps.schedule) == repr(plain.schedule)
    assert type(by_steps.fast_forward_limit.steps) is int
    by_time = TrainingSettings(save_secs=np.float32(0.5))
    assert (repr(by_time.save_secs), repr(by_time.schedule.every_secs)) == ("0.5", "0.5")


@pytest.mark.parametrize("name", ["max_failed_saves", "num_workers"])
@pytest.mark.parametrize("count", [2.0, True, "2", None])
def test_counts_that_are_not_a_whole_number_are_refused(name: str, count: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a whole number"):
        TrainingSettings(**{name: count}, **SCHEDULE)


@pytest.mark.parametrize("retry", [60, "never", ic.RetryPolicy])
def test_a_value_that_is_not_a_retry_policy_is_refused(retry: Any) -> None:
    with pytest.raises(TypeError, match="retry must be a RetryPolicy or None"):
        TrainingSettings(retry=retry, **SCHEDULE)


@pytest.mark.parametrize("option", [{"resume": "newest"}, {"when_busy": "block"}, {"worker": "a/b"}])
def test_an_invalid_option_is_refused(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option.values()))}"):
        TrainingSettings(**option, **SCHEDULE)


@pytest.mark.parametrize(
    "inside",
    ["{}", "{}/", "{}/input", "{}/a/../input", "file://{}/input", "file:{}/input", "dir::file://{}/input"],
)
def test_a_backend_inside_the_model_directory_is_refused(tmp_path: Path, inside: str) -> None:
    model_dir = tmp_path / "model"
    with pytest.raises(ValueError, match=f"is inside the model directory {model_dir}.*{model_dir}-input"):
        TrainingSettings(model_dir=str(model_dir), backend=inside.format(model_dir), **SCHEDULE)


def test_a_path_inside_the_model_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside the model directory"):
        TrainingSettings(model_dir=str(tmp_path), backend=tmp_path / "input", **SCHEDULE)


def test_an_open_backend_inside_the_model_directory_is_refused(tmp_path: Path) -> None:
    backend = ic.open_backend(str(tmp_path / "model" / "input"))
    with pytest.raises(ValueError, match="inside the model directory"):
        TrainingSettings(model_dir=str(tmp_path / "model"), backend=backend, **SCHEDULE)


def test_a_symlink_into_the_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(ValueError, match="inside the model directory"):
        TrainingSettings(model_dir=str(tmp_path / "model"), backend=str(tmp_path / "link/input"), **SCHEDULE)


@pytest.mark.parametrize("inside", ["s3://bucket/run/input", "S3://bucket/run", "s3a://bucket/run/input"])
def test_a_prefix_inside_the_bucket_folder_of_the_model_is_refused(inside: str) -> None:
    with pytest.raises(ValueError, match="inside the model directory s3://bucket/run"):
        TrainingSettings(model_dir="s3://bucket/run/", backend=inside, **SCHEDULE)


@pytest.mark.parametrize("model_dir", ["file:rel", "s3://bucket//run", "$HOME/run", "gs://bucket/run#1"])
def test_a_model_directory_may_have_any_name_that_tensorflow_accepts(model_dir: str) -> None:
    TrainingSettings(model_dir=model_dir, backend="memory://run", **SCHEDULE)


def test_a_folder_inside_a_model_directory_with_an_odd_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="inside the model directory"):
        TrainingSettings(model_dir="file:rel", backend=tmp_path / "file:rel/input", **SCHEDULE)


@pytest.mark.parametrize("backend", ["s3:/bucket/run", "memory:run", "$HOME/run"])
def test_a_backend_that_is_no_location_is_refused_with_how_to_write_it(backend: str) -> None:
    with pytest.raises(ic.InvalidLocationError, match="Write "):
        TrainingSettings(model_dir="/models/run", backend=backend, **SCHEDULE)


@pytest.mark.parametrize(
    "location", ["/models/run-input", "/models", "memory://models/run", "s3://models/run/input"]
)
def test_a_backend_outside_the_model_directory_is_accepted(location: str) -> None:
    assert TrainingSettings(model_dir="/models/run", backend=location, **SCHEDULE).backend == location


def test_the_repr_does_not_show_storage_options() -> None:
    settings = TrainingSettings(storage_options={"secret": "hidden"}, **SCHEDULE)
    assert "hidden" not in repr(settings)


def test_every_option_of_the_integrations_is_a_setting_of_the_same_type() -> None:
    options = {name: kind.__forward_arg__ for name, kind in TrainingOptions.__annotations__.items()}
    settings = {field.name: field.type for field in fields(TrainingSettings)}
    assert options.items() <= settings.items()
    assert set(settings) - set(options) == {"model_dir", "worker", "num_workers", "model_schedule"}
