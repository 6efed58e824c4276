"""The plugin in docs/writing-a-backend.md works exactly as it stands there."""

from __future__ import annotations

import re
import sys
import uuid
from pathlib import Path

import pytest

from input_checkpoint import BackendNotFoundError, CheckpointInputPipelineHook, CheckpointStore, open_backend
from input_checkpoint.testing import BackendContract
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
