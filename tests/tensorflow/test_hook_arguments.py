"""A wrong argument of the hook is refused when the hook is made, with what to pass instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import input_checkpoint as ic
from tests.support.training import make_estimator


@pytest.fixture
def estimator(tmp_path: Path) -> Any:
    return make_estimator(tmp_path / "model")


def test_a_path_is_accepted_as_a_backend(estimator, tmp_path):
    ic.CheckpointInputPipelineHook(estimator, backend=tmp_path / "input")
    assert (tmp_path / "input" / "format.json").exists()


def test_a_uri_in_the_place_of_the_policy_is_refused_with_advice(estimator, tmp_path):
    with pytest.raises(ValueError, match=r"For the URI of a backend, pass backend="):
        ic.CheckpointInputPipelineHook(estimator, str(tmp_path / "input"))


def test_a_secret_in_a_misplaced_uri_is_not_shown(estimator):
    with pytest.raises(ValueError, match="backend=") as raised:
        ic.CheckpointInputPipelineHook(estimator, "sftp://joe:hidden@host/input")
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("estimator", ["/models/run", None, Path("/models/run")])
def test_what_is_no_estimator_is_refused_with_a_way_out(estimator):
    with pytest.raises(TypeError, match=r"needs an Estimator.*for_session\(model_dir="):
        ic.CheckpointInputPipelineHook(estimator)


def test_a_number_as_retention_is_refused_with_advice(estimator):
    with pytest.raises(TypeError, match=r"pass KeepLast\(5\)"):
        ic.CheckpointInputPipelineHook(estimator, retention=5)


def test_steps_as_text_are_refused(estimator):
    with pytest.raises(TypeError, match="save_steps must be a whole number, got '100'"):
        ic.CheckpointInputPipelineHook(estimator, save_steps="100")


def test_a_backend_inside_the_model_directory_is_refused_and_nothing_is_made(estimator, tmp_path):
    with pytest.raises(ValueError, match="inside the model directory"):
        ic.CheckpointInputPipelineHook(estimator, backend=str(tmp_path / "model" / "input"))
    assert not (tmp_path / "model" / "input").exists()


def test_an_unknown_argument_is_refused(estimator):
    with pytest.raises(TypeError, match="keep"):
        ic.CheckpointInputPipelineHook(estimator, keep=5)


def test_for_session_makes_the_hook_that_the_estimators_hook_is_built_on(tmp_path):
    hook = ic.CheckpointInputPipelineHook.for_session(model_dir=str(tmp_path / "model"), save_steps=10)
    assert type(hook) is ic.SessionHook
    assert issubclass(ic.CheckpointInputPipelineHook, ic.SessionHook)
