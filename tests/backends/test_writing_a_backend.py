"""The plugin in docs/writing-a-backend.md works exactly as it stands there."""

from __future__ import annotations

import re
import sys
import uuid
from pathlib import Path
from types import ModuleType

import pytest

from input_checkpoint import (
    Backend,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    CheckpointInputPipelineHook,
    CheckpointStore,
    open_backend,
)
from input_checkpoint.testing import BackendContract
from tests.support.answering_server import unused_port
from tests.support.s3_server import S3Server
from tests.support.training import make_estimator, shuffled_ids

PAGE = Path(__file__).parents[2] / "docs/writing-a-backend.md"


def code(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[number]


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory):
    """The plugin, installed as by pip: a module, and metadata with its entry point."""
    site = tmp_path_factory.mktemp("site")
    (site / "input_checkpoint_sqlite.py").write_text(code("python"), encoding="utf-8")
    metadata = site / "input_checkpoint_sqlite-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: input-checkpoint-sqlite\nVersion: 1.0\n", encoding="utf-8")
    entry = re.search(r"^sqlite = \"(.*)\"$", code("toml"), re.MULTILINE)
    assert entry
    (metadata / "entry_points.txt").write_text(
        f"[input_checkpoint.backends]\nsqlite = {entry.group(1)}\n", encoding="utf-8"
    )
    sys.path.insert(0, str(site))
    yield
    sys.path.remove(str(site))
    sys.modules.pop("input_checkpoint_sqlite", None)


class TestContract(BackendContract):
    listed_keys = 100  # SQLite has no pages

    @pytest.fixture
    def backend(self, tmp_path):
        return open_backend(f"sqlite://{tmp_path}/{uuid.uuid4().hex}.db")


def test_the_page_shows_the_test_above():
    assert "class TestSqliteBackend(BackendContract):" in code("python", 1)
    assert 'open_backend(f"sqlite://{tmp_path}/{uuid.uuid4().hex}.db")' in code("python", 1)


def test_the_plugin_has_fewer_than_sixty_lines():
    assert len(code("python").splitlines()) < 60


def test_an_estimator_saves_to_the_plugin_and_resumes(tmp_path):
    uri = f"sqlite://{tmp_path}/run.db"
    estimator = make_estimator(tmp_path / "model")
    hook = CheckpointInputPipelineHook(estimator, backend=uri)
    estimator.train(shuffled_ids, hooks=[hook], steps=20)
    assert CheckpointStore.open(uri).newest("main").step == 20


def test_the_error_for_a_missing_folder_mentions_it(tmp_path):
    with pytest.raises(BackendNotFoundError, match="Is the folder there"):
        open_backend(f"sqlite://{tmp_path}/nowhere/run.db")


@pytest.fixture(scope="module")
def boto3_plugin() -> ModuleType:
    """The module of the section "On an object store"."""
    module = ModuleType("input_checkpoint_boto3")
    exec(compile(code("python", 2), str(PAGE), "exec"), vars(module))
    return module


def boto3_options(server: S3Server) -> dict[str, str]:
    return {
        "endpoint_url": server.url,
        "region_name": "us-east-1",
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
    }


@pytest.mark.usefixtures("small_pages")
class TestObjectStoreContract(BackendContract):
    race_rounds = 5
    listed_keys = 120

    @pytest.fixture
    def backend(self, boto3_plugin, s3_server) -> Backend:
        uri = f"boto3://{s3_server.bucket}/{uuid.uuid4().hex}"
        return boto3_plugin.Boto3Backend(uri, boto3_options(s3_server))


class TestObjectStoreErrors:
    def test_a_missing_bucket_is_named(self, boto3_plugin, s3_server):
        backend = boto3_plugin.Boto3Backend("boto3://no-such-bucket/run", boto3_options(s3_server))
        with pytest.raises(
            BackendNotFoundError, match="cannot write boto3://no-such-bucket/run/key"
        ) as raised:
            backend.put("key", b"data")
        assert (raised.value.uri, raised.value.key) == (backend.uri, "key")

    def test_unknown_credentials_are_a_matter_of_permission(
        self, boto3_plugin, s3_server, checks_credentials
    ):
        options = {**boto3_options(s3_server), "aws_access_key_id": "AKIAWRONG"}
        backend = boto3_plugin.Boto3Backend(f"boto3://{s3_server.bucket}/run", options)
        with pytest.raises(BackendPermissionError):
            backend.put("key", b"data")

    def test_a_server_that_is_down_is_unavailable(self, boto3_plugin, s3_server):
        options = {**boto3_options(s3_server), "endpoint_url": f"http://127.0.0.1:{unused_port()}"}
        backend = boto3_plugin.Boto3Backend("boto3://bucket/run", options)
        with pytest.raises(BackendUnavailableError, match="trying again may help"):
            backend.put("key", b"data")

    def test_the_example_has_fewer_than_a_hundred_lines(self):
        assert len(code("python", 2).splitlines()) < 100
