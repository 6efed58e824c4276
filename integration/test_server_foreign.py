"""On every server, objects and files of other people stay, and do not disturb a store."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings

from input_checkpoint import open_backend
from input_checkpoint.backends.object_store import ObjectStoreBackend
from integration.servers.server import Place, Server
from integration.servers.sshd import Sshd
from tests.support.foreign import (
    NEARLY_OURS,
    check_files_stay,
    check_objects_stay,
    files,
    foreign_names,
    plant_file,
)
from tests.support.planted_files import KINDS

MARKS_OF_FOLDERS = ("saves/main/", "packs/main/00000001/")


def folder_of(place: Place) -> Path:
    return Path(urlsplit(place.uri).path)


@pytest.mark.timeout(300)
def test_objects_with_names_that_are_nearly_ours_stay(server: Server, place: Place) -> None:
    backend = open_backend(place.uri, place.storage_options)
    if isinstance(backend, ObjectStoreBackend):
        check_stay_in_bucket(backend, (*NEARLY_OURS, *MARKS_OF_FOLDERS))
    else:
        root = folder_of(place)
        check_objects_stay(
            lambda: backend,
            lambda name, data: plant_file(root, name, data),
            lambda: files(root),
            NEARLY_OURS,
        )
    backend.close()


def check_stay_in_bucket(backend: ObjectStoreBackend, names: Sequence[str]) -> None:
    # Its own requests take any name: only `put` and the others insist on keys.
    def plant(name: str, data: bytes) -> None:
        # The mark of a folder has no content. The emulator of Cloud Storage drops it.
        backend.upload(backend.prefix + name, b"" if name.endswith("/") else data, if_absent=False)

    def stored() -> dict[str, object]:
        found = list(backend.list_objects(backend.prefix))
        return {info.key: backend.download(info.key, 0, None) if info.size else b"" for info in found}

    check_objects_stay(lambda: backend, plant, stored, names)


@pytest.mark.timeout(300)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(names=foreign_names)
def test_foreign_objects_stay(server: Server, place: Place, names: list[str]) -> None:
    backend = open_backend(f"{place.uri}/{uuid.uuid4().hex}", place.storage_options)
    if isinstance(backend, ObjectStoreBackend):
        check_stay_in_bucket(backend, names)
    backend.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["probe", "saves/main", "checkpoints/main/00000001/000000000030.manifest"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("link", "named"))])
def test_links_and_named_pipes_on_an_sftp_server_stay(
    server: Server, place: Place, path: str, kind: str
) -> None:
    if not isinstance(server, Sshd):
        pytest.skip("an object store has none")
    backend = open_backend(place.uri, place.storage_options)
    check_files_stay(folder_of(place), lambda: backend, NEARLY_OURS[:3], {path: kind})
    backend.close()
