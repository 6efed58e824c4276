"""A wrong argument is refused when the hook is constructed, and the error says what to pass instead."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import input_checkpoint as ic
from tests.support.hooked_training import train
from tests.support.training import make_estimator, shuffled_ids


@pytest.fixture
def estimator(tmp_path: Path) -> Any:
    return make_estimator(tmp_path / "model")


def test_a_path_is_accepted_as_a_backend(estimator, tmp_path):
    ic.CheckpointInputPipelineHook(estimator, backend=tmp_path / "input")
    assert (tmp_path / "input" / "format.json").exists()


def test_a_uri_passed_as_the_external_state_policy_is_refused_with_advice(estimator, tmp_path):
    with pytest.raises(ValueError, match=r"For the URI of a backend, pass backend="):
        ic.CheckpointInputPipelineHook(estimator, str(tmp_path / "input"))


def test_the_error_about_a_misplaced_uri_shows_no_secret(estimator):
    with pytest.raises(ValueError, match="backend=") as raised:
        ic.CheckpointInputPipelineHook(estimator, "sftp://joe:hidden@host/input")
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("estimator", ["/models/run", None, Path("/models/run")])
def test_a_value_that_is_not_an_estimator_is_refused_with_an_alternative(estimator):
    with pytest.raises(TypeError, match=r"needs an Estimator.*for_session\(model_dir="):
        ic.CheckpointInputPipelineHook(estimator)


def test_a_number_as_retention_is_refused_with_advice(estimator):
    with pytest.raises(TypeError, match=r"pass KeepLast\(5\)"):
        ic.CheckpointInputPipelineHook(estimator, retention=5)


def test_steps_as_text_are_refused(estimator):
    with pytest.raises(TypeError, match="save_steps must be a whole number, got '100'"):
        ic.CheckpointInputPipelineHook(estimator, save_steps="100")


def test_a_backend_inside_the_model_directory_is_refused_and_nothing_is_created(estimator, tmp_path):
    with pytest.raises(ValueError, match="inside the model directory"):
        ic.CheckpointInputPipelineHook(estimator, backend=str(tmp_path / "model" / "input"))
    assert not (tmp_path / "model" / "input").exists()


def test_an_unknown_argument_is_refused(estimator):
    with pytest.raises(TypeError, match="keep"):
        ic.CheckpointInputPipelineHook(estimator, keep=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_steps": 5, "save_secs": 5}, "both save_secs and save_steps"),
        ({"save_steps": 0}, "save_steps must be positive"),
        ({"save_secs": -1}, "save_secs must be positive"),
        ({"resume": "sometimes"}, "resume must be one of 'aligned'"),
        ({"when_busy": "panic"}, "when_busy must be 'wait' or 'skip'"),
    ],
)
def test_an_invalid_value_raises_a_value_error_that_names_the_argument(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"), **arguments)


def test_passing_the_hook_to_evaluate_is_refused(tmp_path: Path) -> None:
    estimator = make_estimator(tmp_path / "model")
    estimator.train(shuffled_ids, steps=1)
    with pytest.raises(ValueError, match="do not pass it to evaluate"):
        estimator.evaluate(shuffled_ids, steps=1, hooks=[ic.CheckpointInputPipelineHook(estimator)])


def test_passing_the_hook_to_predict_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "model", 10)
    estimator = make_estimator(tmp_path / "model")
    hook = ic.CheckpointInputPipelineHook(estimator)
    with pytest.raises(ValueError, match=r"do not pass it to predict\(\)"):
        next(iter(estimator.predict(shuffled_ids, hooks=[hook])))


def test_the_default_backend_is_beside_the_model_directory_even_if_that_is_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    train(Path("."), 10)
    assert sorted(os.listdir(tmp_path)) == ["model", "model-input"]
    assert [name for name in os.listdir(tmp_path / "model") if "input" in name] == ["input-checkpoint.json"]


def test_parameter_servers_cause_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = {"chief": ["localhost:1"], "ps": ["localhost:2"], "worker": ["localhost:3"]}
    for task in ("chief", "worker"):
        caplog.clear()
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": task, "index": 0}}))
        ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"), backend=str(tmp_path / "input"))
        assert "the input of the workers that keep running does not" in caplog.text


def test_training_without_parameter_servers_causes_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ic.CheckpointInputPipelineHook(make_estimator(tmp_path / "model"))
    assert "parameter server" not in caplog.text
