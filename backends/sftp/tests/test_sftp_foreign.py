"""Whatever else lies in the folder of a store, it is there afterwards."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from input_checkpoint import Backend, open_backend
from tests.support.foreign import (
    NEARLY_OURS,
    check_files_stay,
    check_objects_stay,
    files,
    foreign_names,
    obstacles,
    plant_file,
)
from tests.support.planted_files import KINDS

few = settings(
    max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Folder:
    """A folder on the server that does not exist yet."""

    def __init__(self, server) -> None:
        name = uuid.uuid4().hex
        self.path: Path = server.data / name
        self._opened: list[Backend] = []
        self._server, self._name = server, name

    def open(self) -> Backend:
        if not self._opened:
            self._opened.append(open_backend(self._server.uri(self._name), self._server.options()))
        return self._opened[0]

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        for backend in self._opened:
            backend.close()


def check_nearly_ours(server, names) -> None:
    with Folder(server) as folder:
        check_objects_stay(
            folder.open,
            lambda name, data: plant_file(folder.path, name, data),
            lambda: files(folder.path),
            names,
        )


def test_files_with_names_that_are_nearly_ours_stay(server):
    check_nearly_ours(server, NEARLY_OURS)


@few
@given(names=foreign_names)
def test_foreign_files_stay(server, names):
    check_nearly_ours(server, names)


@few
@given(names=foreign_names, found=obstacles)
def test_foreign_links_and_special_files_stay(server, names, found):
    with Folder(server) as folder:
        check_files_stay(folder.path, folder.open, names, found)


@pytest.mark.parametrize("path", ["probe", "saves/main", ".aside"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("link", "named"))])
def test_anything_in_place_of_a_folder_stays(server, path, kind):
    with Folder(server) as folder:
        check_files_stay(folder.path, folder.open, NEARLY_OURS, {path: kind})
