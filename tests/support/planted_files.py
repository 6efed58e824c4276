"""What other programs put into the folder of a backend, and the tests that it is neither used nor changed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Callable

import pytest

from input_checkpoint import Backend, BackendError, ObjectExistsError, ObjectNotFoundError
from tests.support.operations import outcome

WITHIN = 30
"""Seconds. A backend that opens a named pipe waits forever."""


def make_socket(path: Path, theirs: Path) -> None:
    # The path of a socket is short, so it is bound from within its folder.
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def make_device(path: Path, theirs: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # the same as /dev/null
    except PermissionError:
        pytest.skip("only root makes devices")


SPECIAL: dict[str, Callable[[Path, Path], object]] = {
    "named pipe": lambda path, theirs: os.mkfifo(path),
    "socket": make_socket,
    "device": make_device,
    "folder": lambda path, theirs: path.mkdir(),
}
LINKS: dict[str, Callable[[Path, Path], object]] = {
    "link to a file": lambda path, theirs: path.symlink_to(theirs / "file"),
    "link to a folder": lambda path, theirs: path.symlink_to(theirs),
    "link to nothing": lambda path, theirs: path.symlink_to(theirs / "nothing"),
    "link to itself": lambda path, theirs: path.symlink_to(path.name),
}
KINDS = {**SPECIAL, **LINKS}
"""Makes something at a path that is not a regular file. ``theirs`` is a folder with the file ``file``."""


class PlantedFilesContract:
    """Tests for backends that store objects as files.

    Inherit it and override the fixtures ``folder`` and ``backend``.
    """

    @pytest.fixture
    def folder(self) -> Path:
        """Return the folder of the backend, which exists."""
        raise NotImplementedError("override the `folder` fixture")

    @pytest.fixture
    def theirs(self, tmp_path: Path) -> Path:
        """A folder of somebody else's."""
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "file").write_bytes(b"theirs")
        return theirs

    @pytest.fixture(params=KINDS)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def planted(self, folder: Path, theirs: Path, kind: str) -> Path:
        """Something that is not a regular file, in place of the object ``a/object``."""
        (folder / "a").mkdir()
        KINDS[kind](folder / "a/object", theirs)
        return folder / "a/object"

    @pytest.fixture
    def unchanged(self, planted: Path, theirs: Path) -> Callable[[], bool]:
        """Returns whether it is still there, and nothing has been written through it."""
        before = planted.lstat()
        return lambda: (
            (planted.lstat().st_ino, planted.lstat().st_mode) == (before.st_ino, before.st_mode)
            and sorted(os.listdir(theirs)) == ["file"]
            and (theirs / "file").read_bytes() == b"theirs"
        )

    def test_what_is_not_a_file_cannot_be_read(self, backend: Backend, planted, kind):
        error = outcome(lambda: backend.get("a/object"), WITHIN)
        assert isinstance(error, BackendError)
        # Readers pass over what is missing. A link may lead to the object, so they must not.
        assert isinstance(error, ObjectNotFoundError) is (kind in SPECIAL)
        assert (error.uri, error.key) == (backend.uri, "a/object")

    def test_a_range_of_it_cannot_be_read_either(self, backend: Backend, planted):
        assert isinstance(outcome(lambda: backend.get("a/object", 2, 4), WITHIN), BackendError)
        assert isinstance(outcome(lambda: backend.get("a/object", 3, 3), WITHIN), BackendError)

    def test_it_is_not_listed(self, backend: Backend, planted, folder):
        (folder / "a/other").write_bytes(b"data")
        assert [info.key for info in backend.list()] == ["a/other"]
        assert [info.key for info in backend.list("a/o")] == ["a/other"]
        assert list(backend.list("a/object")) == []

    def test_a_log_line_says_once_what_is_ignored(self, backend: Backend, planted, kind, caplog):
        for _ in range(2):
            list(backend.list())
        said = [line.getMessage() for line in caplog.records if "a/object is a" in line.getMessage()]
        assert len(said) == (kind != "folder")

    def test_it_is_not_deleted(self, backend: Backend, planted, unchanged):
        backend.delete(["a/object"])
        assert unchanged()

    @pytest.mark.parametrize("write", ["put", "create"])
    def test_it_is_not_replaced(self, backend: Backend, planted, unchanged, write):
        error = outcome(lambda: getattr(backend, write)("a/object", b"data"), WITHIN)
        assert type(error) is BackendError or (type(error).__mro__[1] is BackendError)
        assert not isinstance(error, ObjectExistsError)
        assert str(error.key) == "a/object"
        assert unchanged()
        assert os.listdir(planted.parent) == ["object"]

    @pytest.mark.parametrize("key", ["linked/object", "linked/below/object"])
    @pytest.mark.parametrize("link", ["link to a folder", "link to nothing", "link to itself"])
    def test_nothing_is_done_behind_a_link_in_place_of_a_folder(
        self, backend: Backend, folder, theirs, link, key
    ):
        (theirs / "object").write_bytes(b"theirs")
        (theirs / "below").mkdir()
        (theirs / "below/object").write_bytes(b"theirs")
        LINKS[link](folder / "linked", theirs)
        for work in (
            lambda: backend.get(key),
            lambda: backend.put(key, b"data"),
            lambda: backend.create(key, b"data"),
            lambda: backend.delete([key]),
            lambda: list(backend.list(key.rpartition("/")[0] + "/")),
        ):
            with pytest.raises(BackendError, match=r"linked is a symbolic link.*Replace it") as raised:
                work()
            assert not isinstance(raised.value, ObjectNotFoundError)
        assert sorted(os.listdir(theirs)) == ["below", "file", "object"]
        assert os.listdir(theirs / "below") == ["object"]
        assert (theirs / "object").read_bytes() == (theirs / "below/object").read_bytes() == b"theirs"

    def test_a_linked_folder_is_left_out_of_a_listing_of_the_folder_above(
        self, backend: Backend, folder, theirs, caplog
    ):
        (folder / "linked").symlink_to(theirs)
        (folder / "object").write_bytes(b"data")
        assert [info.key for info in backend.list()] == ["object"]
        assert "linked is a symbolic link" in caplog.text

    def test_the_folder_of_the_backend_may_be_a_link(self, backend: Backend, folder, theirs):
        folder.rename(theirs / "moved")
        folder.symlink_to(theirs / "moved")
        backend.create("a/created", b"1")
        backend.put("a/put", b"2")
        assert [(info.key, backend.get(info.key)) for info in backend.list("a/")] == [
            ("a/created", b"1"),
            ("a/put", b"2"),
        ]
        backend.delete(["a/created"])
        assert os.listdir(theirs / "moved/a") == ["put"]

    def test_an_empty_folder_stays_if_nothing_in_it_was_deleted(self, backend: Backend, folder):
        (folder / "empty").mkdir()
        backend.delete(["empty/object"])
        assert (folder / "empty").is_dir()

    def test_folders_that_are_nested_deeper_than_calls_can_be_are_listed(self, backend: Backend, folder):
        (folder / "object").write_bytes(b"data")
        deepest = str(folder)
        for _ in range(400):
            deepest += "/d"
            os.mkdir(deepest)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(300)
        try:
            assert [info.key for info in backend.list()] == ["object"]
        finally:
            sys.setrecursionlimit(limit)
            os.removedirs(deepest)
