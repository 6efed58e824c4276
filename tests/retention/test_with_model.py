"""Input checkpoints are kept as long as their model checkpoint exists."""

from __future__ import annotations

import logging
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import fsspec
import pytest

import input_checkpoint as ic
from input_checkpoint.retention.with_model import needed_by_model
from tests.support.retention import info, kept, of_steps, reason, store_with
from tests.support.s3_server import S3Server


def test_a_checkpoint_with_its_model_checkpoint_is_kept() -> None:
    assert [ref.step for ref in needed_by_model(of_steps(10, 20, 30), {10, 30})] == [10, 30]


def test_a_model_checkpoint_without_its_own_keeps_the_newest_before_it() -> None:
    assert sorted(ref.step for ref in needed_by_model(of_steps(10, 20, 30), {25, 30})) == [20, 30]


def test_checkpoints_newer_than_every_model_checkpoint_are_kept() -> None:
    assert [ref.step for ref in needed_by_model(of_steps(10, 20, 30), {10})] == [10, 20, 30]


def test_everything_is_kept_while_the_model_has_no_checkpoint(tmp_path: Path) -> None:
    policy = ic.KeepWithModel(model_with(tmp_path, "events.out", "checkpoint"))
    assert kept(policy, of_steps(10, 20)) == [10, 20]


def test_a_model_checkpoint_older_than_every_input_checkpoint_keeps_nothing() -> None:
    assert [ref.step for ref in needed_by_model(of_steps(10, 20), {5, 20})] == [20]


def test_steps_are_read_from_the_names_of_the_index_files(tmp_path: Path) -> None:
    folder = model_with(tmp_path, "model.ckpt-10.index", "other-30.index")
    assert kept(ic.KeepWithModel(folder), of_steps(10, 20, 30)) == [10, 30]


@pytest.mark.parametrize(
    "name",
    [
        "model.ckpt-20.data-00000-of-00001",
        "model.ckpt-20.meta",
        "model.ckpt-20.index.tempstate7",
        "model.ckpt.index",
        "-20.index",
    ],
)
def test_other_files_are_ignored(tmp_path: Path, name: str) -> None:
    folder = model_with(tmp_path, "model.ckpt-30.index", name)
    assert kept(ic.KeepWithModel(folder), of_steps(20, 30)) == [30]


def test_a_model_checkpoint_still_being_written_in_a_subfolder_is_ignored(tmp_path: Path) -> None:
    folder = model_with(tmp_path, "model.ckpt-30.index")
    model_with(tmp_path / "model.ckpt-20_temp", "part-20.index")
    assert kept(ic.KeepWithModel(folder), of_steps(20, 30)) == [30]


def test_the_model_directory_may_be_a_path_object(tmp_path: Path) -> None:
    model_with(tmp_path, "model.ckpt-10.index", "model.ckpt-30.index")
    assert kept(ic.KeepWithModel(tmp_path), of_steps(10, 20, 30)) == [10, 30]


@pytest.mark.parametrize("written", ["model", "./model/", Path("model")])
def test_a_relative_path_is_resolved_when_the_policy_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Any
) -> None:
    model_with(tmp_path / "here" / "model", "model.ckpt-10.index")
    model_with(tmp_path / "there" / "model", "model.ckpt-30.index")
    monkeypatch.chdir(tmp_path / "here")
    policy = ic.KeepWithModel(written)
    monkeypatch.chdir(tmp_path / "there")
    assert kept(policy, of_steps(10, 20)) == [10, 20]
    assert reason(policy, of_steps(10), 10) == "the model checkpoint of step 10 still exists"


@pytest.mark.parametrize("written", ["file://{}#1", "file:{}#1", "file://{}%231", "{}#1"])
def test_a_local_model_directory_is_written_as_for_a_backend(tmp_path: Path, written: str) -> None:
    model_with(tmp_path / "model#1", "model.ckpt-10.index")
    assert kept(ic.KeepWithModel(written.format(tmp_path / "model")), of_steps(10, 20)) == [10, 20]
    assert reason(ic.KeepWithModel(written.format(tmp_path / "model")), of_steps(10), 10) == (
        "the model checkpoint of step 10 still exists"
    )


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("gs:/bucket/run", "Write gs://bucket/run"),
        ("file://model", "Write file:///absolute/path"),
        ("gc://bucket/run", "Did you mean gs://bucket/run"),
        ("https://storage.googleapis.com/bucket/run", "Did you mean gs://bucket/run"),
        ("ftp://host/run?1", "Write ftp://host/run"),
    ],
)
def test_a_model_directory_that_would_be_another_place_is_refused(written: str, advice: str) -> None:
    with pytest.raises(ic.InvalidLocationError, match=advice):
        ic.KeepWithModel(written)


def test_a_tilde_stands_for_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model_with(tmp_path / "model", "model.ckpt-10.index", "model.ckpt-30.index")
    assert kept(ic.KeepWithModel("~/model"), of_steps(10, 20, 30)) == [10, 30]


def test_the_model_directory_may_be_any_fsspec_uri() -> None:
    uri = f"memory://models-{uuid.uuid4().hex}"
    for step in (10, 30):
        with fsspec.open(f"{uri}/model.ckpt-{step}.index", "wb"):
            pass
    assert kept(ic.KeepWithModel(uri), of_steps(10, 20, 30)) == [10, 30]


def test_storage_options_are_passed_to_the_filesystem(s3_server: S3Server) -> None:
    uri = f"s3://{s3_server.bucket}/model-{uuid.uuid4().hex}"
    for step in (10, 30):
        with fsspec.open(f"{uri}/model.ckpt-{step}.index", "wb", **s3_server.options) as file:
            file.write(b"index")
    policy = ic.KeepWithModel(uri, storage_options=s3_server.options)
    assert kept(policy, of_steps(10, 20, 30)) == [10, 30]


@pytest.mark.parametrize("place", ["bucket/no-such-run", "no-such-bucket/run"])
def test_everything_is_kept_if_the_bucket_or_prefix_does_not_exist(s3_server: S3Server, place: str) -> None:
    policy = ic.KeepWithModel(f"s3://{place}", storage_options=s3_server.options)
    assert kept(policy, of_steps(10, 20)) == [10, 20]


def test_a_model_checkpoint_deleted_between_two_prunes_is_noticed(tmp_path: Path) -> None:
    folder = model_with(tmp_path, "model.ckpt-10.index", "model.ckpt-20.index")
    policy = ic.KeepWithModel(folder)
    before = kept(policy, of_steps(10, 20))
    (tmp_path / "model.ckpt-10.index").unlink()
    assert (before, kept(policy, of_steps(10, 20))) == ([10, 20], [20])


def test_everything_is_kept_if_the_folder_does_not_exist(tmp_path: Path) -> None:
    assert kept(ic.KeepWithModel(tmp_path / "nowhere"), of_steps(10, 20)) == [10, 20]


def test_everything_is_kept_if_no_filesystem_supports_the_uri() -> None:
    assert kept(ic.KeepWithModel("nonsense://bucket/run"), of_steps(10, 20)) == [10, 20]


@pytest.mark.parametrize("error", [TimeoutError("gone"), RuntimeError("driver"), KeyError("Contents")])
def test_everything_is_kept_if_listing_fails_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = model_with(tmp_path, "model.ckpt-20.index")
    fail_to_list(monkeypatch, error)
    assert kept(ic.KeepWithModel(folder), of_steps(10, 20)) == [10, 20]


def test_the_reason_says_that_the_folder_cannot_be_listed(tmp_path: Path) -> None:
    folder = str(tmp_path / "nowhere")
    assert reason(ic.KeepWithModel(folder), of_steps(10), 10) == f"{folder} cannot be listed"


def test_a_listing_failure_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ic.KeepWithModel(tmp_path / "nowhere").keep(of_steps(10))
    assert "FileNotFoundError" in caplog.text


def test_a_password_in_the_uri_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = "memory://joe:hunter2@host/run"
    fail_to_list(monkeypatch, OSError(f"cannot open {uri}"))
    policy = ic.KeepWithModel(uri, storage_options={"password": "hunter2"})
    text = reason(policy, of_steps(10), 10)
    assert "hunter2" not in text + repr(policy) + caplog.text


def test_the_reasons_name_the_model_checkpoint() -> None:
    assert list(needed_by_model(of_steps(10, 20, 40), {10, 30}).values()) == [
        "the model checkpoint of step 10 still exists",
        "newer than the newest model checkpoint, of step 30",
        "the newest before the model checkpoint of step 30",
    ]


def marked(step: int, *marks: int, lineage: int = 1) -> ic.CheckpointInfo:
    return replace(info(step, lineage=lineage), marks=marks)


def test_the_checkpoint_that_the_mark_of_a_model_leans_on_is_kept() -> None:
    history = [marked(10, 15, 35), marked(20), marked(30), marked(40)]
    assert needed_by_model(history, {35, 40}) == {
        history[3].ref: "the model checkpoint of step 40 still exists",
        history[0].ref: "the mark of the model checkpoint of step 35 leans on it",
        history[2].ref: "the newest before the model checkpoint of step 35",
    }


def test_every_checkpoint_that_a_mark_of_the_step_leans_on_is_kept() -> None:
    history = [marked(10, 35), marked(20, 35), marked(30)]
    assert sorted(ref.step for ref in needed_by_model(history, {35})) == [10, 20, 30]


def test_a_mark_keeps_nothing_if_its_step_has_a_checkpoint_of_its_own() -> None:
    history = [marked(10, 30), marked(20), marked(30)]
    assert [ref.step for ref in needed_by_model(history, {30})] == [30]


def test_a_mark_whose_model_is_gone_keeps_nothing() -> None:
    history = [marked(10, 15), marked(20), marked(30)]
    assert [ref.step for ref in needed_by_model(history, {30})] == [30]


def test_the_policy_works_without_tensorflow(tmp_path: Path) -> None:
    folder = model_with(tmp_path, "model.ckpt-10.index")
    program = (
        "import sys; sys.modules['tensorflow'] = None; import input_checkpoint as ic; "
        f"print(ic.KeepWithModel({folder!r}).keep([]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{}\n", "")


def test_a_prune_removes_nothing_while_the_model_directory_is_unreachable(tmp_path: Path) -> None:
    store = store_with([10, 20, 30])
    report = store.prune(ic.KeepWithModel(tmp_path / "not-mounted"))
    assert (report.removed, len(store.checkpoints())) == ((), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ic.KeepWithModel(""), r"KeepWithModel\(model_dir\) must be a path or a URI, got ''"),
        (lambda: ic.KeepWithModel(None), r"KeepWithModel\(model_dir\) must be a path or a URI, got None"),
    ],
)
def test_an_invalid_argument_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def model_with(folder: Path, *files: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).touch()
    return str(folder)


def fail_to_list(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(self: Any, path: str, detail: Optional[bool] = None, **options: Any) -> Any:
        raise error

    for name in ("file", "memory"):
        monkeypatch.setattr(fsspec.get_filesystem_class(name), "ls", broken)
