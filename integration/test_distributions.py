"""What a package index gets, and what a user gets from it, in new virtual environments without TensorFlow."""

from __future__ import annotations

import email.message
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.s3_server import S3Server

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("backends/*/pyproject.toml"))
SAVE_AND_READ = ROOT / "integration" / "distributions" / "save_and_read.py"
UV = (sys.executable, "-m", "uv", "--quiet", "--native-tls")

pytestmark = [pytest.mark.xdist_group("distributions"), pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, *arguments: object) -> None:
        """Install with pip, as a user does."""
        run(self.python, "-m", "pip", "install", "--quiet", *arguments)

    def install_lowest(self, *arguments: object) -> None:
        """Install the lowest versions of what is named. pip cannot do that."""
        lowest = ("--resolution", "lowest-direct", "--only-binary", ":all:")
        run(*UV, "pip", "install", "--python", self.python, *lowest, *arguments)

    def save_and_read(self, uri: str, options: Mapping[str, object]) -> subprocess.CompletedProcess[str]:
        command = [self.python, SAVE_AND_READ, uri, json.dumps(options)]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder)


def run(*command: object, **variables: str) -> None:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a source distribution and a wheel of each project, built as for a release."""
    folder = tmp_path_factory.mktemp("dist")
    for project in (ROOT, *(ROOT / "backends" / name for name in PLUGINS)):
        build = (sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder, project)
        run(*build, INPUT_CHECKPOINT_RELEASE="1", UV_NATIVE_TLS="1")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    run(*UV, "venv", "--seed", "--python", sys.executable, tmp_path / "environment")
    return Environment(tmp_path / "environment")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that git knows, in a folder whose name has a space."""
    folder = tmp_path / "a clone"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def requirements(wheels: Iterable[Path]) -> list[str]:
    """What the wheels require of others, without extras."""
    every = [line for wheel in wheels for line in metadata(wheel).get_all("Requires-Dist", [])]
    return [line for line in every if "extra ==" not in line and not line.startswith("input-checkpoint")]


def wheels(distributions: Path) -> list[Path]:
    found = sorted(distributions.glob("*.whl"))
    assert len(found) == 1 + len(PLUGINS)
    return found


class TestMetadata:
    def test_a_package_index_can_show_every_description(self, distributions):
        files = sorted(distributions.iterdir())
        assert len(files) == 2 * (1 + len(PLUGINS))
        run(sys.executable, "-m", "twine", "check", "--strict", *files)

    def test_every_link_of_a_description_is_absolute(self, distributions):
        for wheel in wheels(distributions):
            links = re.findall(r"\]\(([^)]+)\)", metadata(wheel).get_payload())
            assert links
            assert [link for link in links if not link.startswith(("https://", "#"))] == []

    def test_every_distribution_carries_the_license(self, distributions):
        text = (ROOT / "LICENSE").read_bytes()
        for wheel in wheels(distributions):
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
                assert archive.read(name) == text
            assert metadata(wheel)["License-Expression"] == "Apache-2.0"

    def test_every_distribution_names_its_authors_and_where_to_find_it(self, distributions):
        for wheel in wheels(distributions):
            found = metadata(wheel)
            assert found["Author"]
            labels = {url.partition(",")[0] for url in found.get_all("Project-URL")}
            assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} <= labels

    def test_a_release_requires_no_file(self, distributions):
        for wheel in wheels(distributions):
            assert [line for line in metadata(wheel).get_all("Requires-Dist") if "@" in line] == []

    def test_plugins_and_core_require_versions_of_each_other_that_fit(self, distributions):
        lines = [line for wheel in wheels(distributions) for line in metadata(wheel).get_all("Requires-Dist")]
        ours = {line.partition(";")[0] for line in lines if line.startswith("input-checkpoint")}
        assert {"input-checkpoint<0.2,>=0.1"} | {
            f"input-checkpoint-{name}<0.2,>=0.1" for name in PLUGINS
        } == ours


class TestInstalledWheels:
    def test_the_lowest_declared_versions_save_and_read_a_store(
        self, distributions, environment, s3_server: S3Server, tmp_path
    ):
        built = wheels(distributions)
        (tmp_path / "requirements.txt").write_text("\n".join(requirements(built)))
        environment.install_lowest("-r", tmp_path / "requirements.txt", *built)
        stores = [(str(tmp_path / "store"), {}), (f"s3://{s3_server.bucket}/lowest", s3_server.options)]
        for uri, options in stores:
            done = environment.save_and_read(uri, options)
            assert (done.returncode, done.stdout) == (0, "saved and read\n"), done.stderr
        for name in PLUGINS:
            run(environment.python, "-c", f"import input_checkpoint_{name}")

    def test_the_core_alone_saves_and_reads_a_store(self, distributions, environment, tmp_path):
        environment.install(*[wheel for wheel in wheels(distributions) if "_checkpoint-" in wheel.name])
        done = environment.save_and_read(str(tmp_path / "store"), {})
        assert (done.returncode, done.stdout) == (0, "saved and read\n"), done.stderr


class TestClone:
    def test_the_extra_of_a_plugin_installs_the_plugin_of_the_clone(
        self, clone, environment, s3_server: S3Server
    ):
        environment.install(f"{clone}[s3]")
        done = environment.save_and_read(f"s3://{s3_server.bucket}/clone", s3_server.options)
        assert (done.returncode, done.stdout) == (0, "saved and read\n"), done.stderr

    def test_the_error_for_a_missing_plugin_recommends_a_command_that_works(
        self, clone, environment, s3_server: S3Server
    ):
        environment.install(clone)
        uri = f"s3://{s3_server.bucket}/recommended"
        refused = environment.save_and_read(uri, s3_server.options)
        command = re.search(r"Install it: pip install (.+)", refused.stderr)
        assert command, refused.stderr
        environment.install(*shlex.split(command.group(1)))
        done = environment.save_and_read(uri, s3_server.options)
        assert (done.returncode, done.stdout) == (0, "saved and read\n"), done.stderr
