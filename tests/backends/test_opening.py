"""Which backend serves a URI, what is said when none does, and what is never said."""

from __future__ import annotations

import shutil
import time
import traceback
import uuid
import zipfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from input_checkpoint import (
    Backend,
    BackendError,
    BackendUnavailableError,
    CheckpointStore,
    InputCheckpointError,
    IteratorState,
    ObjectExistsError,
    ObjectNotFoundError,
    UnknownBackendError,
    open_backend,
)
from input_checkpoint.backends.generic import GenericBackend
from input_checkpoint.backends.local import LocalBackend
from input_checkpoint.backends.memory import MemoryBackend
from input_checkpoint.backends.redaction import redact

SECRET = "hunter2"


class ShelfFileSystem(LocalFileSystem):
    """A filesystem that fsspec knows, no plugin claims, and that inherits fsspec's ``pipe_file``."""

    protocol = ("shelf",)

    @classmethod
    def _strip_protocol(cls, path):
        """Needed before fsspec 2026: there LocalFileSystem knows only its own protocols."""
        return super()._strip_protocol(path.replace("shelf://", ""))


class HastyFileSystem(ShelfFileSystem):
    """Takes ``mode``, but asks first and writes then."""

    protocol = ("hasty",)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("hasty://", ""))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)  # as a storage behind a network
        super().pipe_file(path, value)


class CarefulFileSystem(ShelfFileSystem):
    """Creates as the operating system does."""

    protocol = ("careful",)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("careful://", ""))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        with open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)


@pytest.fixture
def shelf(tmp_path: Path) -> str:
    fsspec.register_implementation("shelf", f"{__name__}.ShelfFileSystem", clobber=True)
    return f"shelf://{tmp_path}"


def test_a_bare_path_is_a_local_folder(tmp_path):
    backend = open_backend(str(tmp_path / "run"))
    backend.put("key", b"data")
    assert isinstance(backend, LocalBackend)
    assert (tmp_path / "run/key").read_bytes() == b"data"


@pytest.mark.parametrize("scheme", ["file", "FILE", "local"])
def test_a_file_uri_is_a_local_folder(tmp_path, scheme):
    backend = open_backend(f"{scheme}://{tmp_path}/run")
    backend.put("key", b"data")
    assert isinstance(backend, LocalBackend)
    assert (tmp_path / "run/key").read_bytes() == b"data"


class PathInBytes:
    """A path, but not one of text."""

    def __fspath__(self) -> bytes:
        return b"/data/run"


def test_a_path_object_is_a_local_folder(tmp_path):
    backend = open_backend(tmp_path / "run")
    backend.put("key", b"data")
    assert isinstance(backend, LocalBackend)
    assert backend.uri == str(tmp_path / "run")
    assert (tmp_path / "run/key").read_bytes() == b"data"


def test_a_store_is_opened_at_a_path_object(tmp_path):
    CheckpointStore.open(tmp_path / "run", create=True)
    assert (tmp_path / "run/format.json").exists()
    assert CheckpointStore.open(tmp_path / "run").uri == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("uri", "given"),
    [
        (None, "NoneType"),
        (7, "int"),
        (SECRET.encode(), "bytes"),
        ([SECRET], "list"),
        (PathInBytes(), "PathInBytes"),
    ],
)
def test_anything_but_a_uri_a_path_or_a_backend_is_a_type_error(uri, given):
    message = rf"a URI \(str\), a path \(os\.PathLike\) or a Backend, got {given}$"
    with pytest.raises(TypeError, match=message) as raised:
        open_backend(uri)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("uri", ["", " ", "://bucket/run"])
def test_a_string_that_is_neither_a_uri_nor_a_path_is_a_value_error(uri):
    with pytest.raises(ValueError, match=f"not a URI or path: '{uri}'. Write for example"):
        open_backend(uri)


@pytest.mark.parametrize("uri", ["file://", "file://localhost"])
def test_a_file_uri_without_a_path_is_a_value_error(uri):
    with pytest.raises(ValueError, match=f"{uri} names no folder"):
        open_backend(uri)


def test_a_uri_that_pathlib_has_changed_is_a_value_error():
    with pytest.raises(ValueError, match=r"pathlib removed a slash from this s3:// URI") as raised:
        open_backend(Path(f"s3://joe:{SECRET}@bucket/run"))
    assert SECRET not in str(raised.value)


def test_a_memory_uri_names_a_space_of_this_process():
    uri = f"memory://{uuid.uuid4().hex}"
    open_backend(uri).put("key", b"data")
    assert isinstance(open_backend(uri), MemoryBackend)
    assert open_backend(uri + "/").get("key") == b"data"


def test_two_memory_uris_are_two_spaces():
    open_backend(f"memory://{uuid.uuid4().hex}").put("key", b"data")
    assert list(open_backend(f"memory://{uuid.uuid4().hex}").list()) == []


def test_an_open_backend_is_passed_through():
    backend = MemoryBackend(f"memory://{uuid.uuid4().hex}")
    assert open_backend(backend) is backend


def test_an_open_backend_takes_no_options():
    with pytest.raises(ValueError, match="already open"):
        open_backend(MemoryBackend(f"memory://{uuid.uuid4().hex}"), {"key": "value"})


@pytest.mark.parametrize("uri", ["/data/run", "file:///data/run", "memory://run"])
def test_built_in_backends_refuse_options_by_name_and_not_by_value(uri):
    with pytest.raises(ValueError, match=r"storage_options, got \['secret'\]") as raised:
        open_backend(uri, {"secret": SECRET})
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "extra"),
    [
        ("s3://bucket/run", "s3"),
        ("s3a://bucket/run", "s3"),
        ("gs://bucket/run", "gcs"),
        ("gcs://bucket/run", "gcs"),
        ("abfs://container/run", "azure"),
        ("abfss://container/run", "azure"),
        ("az://container/run", "azure"),
        ("sftp://host/run", "sftp"),
        ("ssh://host/run", "sftp"),
    ],
)
def test_a_scheme_whose_plugin_is_missing_says_what_to_install(no_plugins, uri, extra):
    with pytest.raises(
        UnknownBackendError, match=rf"{uri}: .*pip install 'input-checkpoint\[{extra}\]'"
    ) as raised:
        open_backend(uri)
    assert raised.value.uri == uri


def test_an_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(
        UnknownBackendError, match=r"'nosuch'.* file, .*memory, s3, .*input_checkpoint\.backends"
    ):
        open_backend("nosuch://place/run")


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_a_plugin_is_found_by_its_entry_point(scheme):
    plugin = pytest.importorskip("input_checkpoint_s3")
    assert isinstance(open_backend(f"{scheme}://bucket/run", {"anon": True}), plugin.S3Backend)


def test_a_strangers_plugin_is_found_and_given_uri_and_options(tmp_path, monkeypatch):
    info = tmp_path / "strange-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[input_checkpoint.backends]\nstrange = strange_plugin:connect\n")
    (tmp_path / "strange_plugin.py").write_text(
        "from input_checkpoint.backends.memory import MemoryBackend\n"
        "def connect(uri, storage_options):\n"
        "    backend = MemoryBackend(uri)\n"
        "    backend.options = storage_options\n"
        "    return backend\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    backend = open_backend("strange://place", {"colour": "green"})
    assert (backend.uri, backend.options) == ("strange://place", {"colour": "green"})


class TestGeneric:
    def test_a_scheme_that_only_fsspec_knows_is_opened(self, shelf):
        assert isinstance(open_backend(shelf), GenericBackend)

    def test_a_filesystem_that_the_program_has_registered_itself_is_opened(self, tmp_path):
        fsspec.register_implementation("ownshelf", ShelfFileSystem, clobber=True)
        assert isinstance(open_backend(f"ownshelf://{tmp_path}"), GenericBackend)

    def test_options_are_handed_to_the_filesystem(self, shelf, tmp_path):
        open_backend(f"{shelf}/deep/run", {"auto_mkdir": True}).put("key", b"data")
        assert (tmp_path / "deep/run/key").read_bytes() == b"data"

    def test_what_is_there_can_be_read(self, shelf, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/key").write_bytes(b"0123456789")
        backend = open_backend(f"{shelf}/run")
        assert [(info.key, info.size) for info in backend.list()] == [("key", 10)]
        assert backend.get("key", 2, 5) == b"234"

    def test_a_filesystem_that_cannot_commit_says_so_on_create(self, shelf, tmp_path):
        with pytest.raises(BackendError, match=r"no atomic create-if-absent.*Choose another") as raised:
            open_backend(shelf).create("key", b"data")
        assert (raised.value.uri, raised.value.key) == (shelf, "key")
        assert list(tmp_path.iterdir()) == []

    def test_a_store_is_not_made_where_nothing_can_be_committed(self, shelf, tmp_path):
        with pytest.raises(BackendError, match="no atomic create-if-absent"):
            CheckpointStore.open(shelf, create=True)
        assert list(tmp_path.iterdir()) == []

    def test_a_create_of_its_own_that_loses_a_race_is_found_out(self, tmp_path):
        fsspec.register_implementation("hasty", f"{__name__}.HastyFileSystem", clobber=True)
        backend = open_backend(f"hasty://{tmp_path}")
        with pytest.raises(BackendError, match=r"of 8 writers .* succeeded.*commit_lock"):
            backend.create("key", b"data")
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_a_create_of_its_own_that_keeps_its_word_is_trusted(self, tmp_path):
        fsspec.register_implementation("careful", f"{__name__}.CarefulFileSystem", clobber=True)
        backend = open_backend(f"careful://{tmp_path}")
        backend.create("key", b"data")
        with pytest.raises(ObjectExistsError, match=r"careful://.*/key already exists"):
            backend.create("key", b"other")
        assert [info.key for info in backend.list()] == ["key"]

    def test_what_a_filesystem_cannot_do_at_all_is_no_reason_to_try_again(self, tmp_path):
        store = tmp_path / "store.zip"
        with zipfile.ZipFile(store, "w") as archive:
            archive.writestr("key", b"data")
        backend = open_backend(f"zip::file://{store}")
        with pytest.raises(BackendError) as raised:
            backend.delete(["key"])
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_the_error_for_a_missing_object_carries_uri_and_key(self, shelf):
        with pytest.raises(ObjectNotFoundError) as raised:
            open_backend(shelf).get("folder/key")
        assert (raised.value.uri, raised.value.key) == (shelf, "folder/key")

    def test_a_store_can_be_read_out_of_an_archive(self, tmp_path):
        store = CheckpointStore.open(str(tmp_path / "run"), create=True)
        state = IteratorState("Iterator", [(b"slot", b"payload")])
        info = store.save(store.open_lineage("main", None), 10, [state])
        shutil.make_archive(str(tmp_path / "run"), "zip", tmp_path / "run")
        archived = CheckpointStore.open(f"zip::file://{tmp_path}/run.zip")
        assert archived.checkpoints() == [info]
        assert [found.in_order() for found in archived.load(info)] == [[(b"slot", b"payload")]]

    def test_a_folder_in_a_chain_is_trusted_to_commit_no_more_than_what_it_is_in(self, tmp_path):
        backend = open_backend(f"dir::file://{tmp_path}")
        with pytest.raises(BackendError, match="no atomic create-if-absent"):
            backend.create("key", b"data")

    @pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
    def test_a_store_behind_a_cache_is_refused(self, tmp_path, cache):
        with pytest.raises(UnknownBackendError, match=f"cannot be used through a cache.*Remove {cache}::"):
            open_backend(f"{cache}::file://{tmp_path}")

    def test_a_package_that_fsspec_lacks_is_named(self):
        with pytest.raises(UnknownBackendError, match="smbprotocol"):
            open_backend("smb://host/share")


SECRET_URIS = [
    f"nosuch://joe:{SECRET}@host/run",
    f"nosuch://{SECRET}@host/run",
    f"nosuch://host/run?token={SECRET}",
    f"nosuch://host/run?a=1&token={SECRET}\nmore",
    f"nosuch://joe:p@ss{SECRET}@host/run",
    f"nosuch://joe:pa/ss{SECRET}@host/run",
    f"nosuch://joe:/{SECRET}@host/run",
    f"nosuch://joe:p@a/ss{SECRET}@host/run",
    f"nosuch://joe:123456/{SECRET}@host:22/run",
    f"nosuch://joe:22@{SECRET}@host/run",
    f"nosuch://joe:p?{SECRET}/@host/run",
    f"nosuch://joe:{SECRET}@[::1]:22/run",
    f"outer::nosuch://joe:pa/ss{SECRET}@host/run",
    f"outer::nosuch://joe:{SECRET}@host/run",
    f"gs://joe:{SECRET}@bucket/run",
    f"sftp://joe:{SECRET}@host/run",
    f"file://joe:{SECRET}@host/run",
]


class TestSecrets:
    @pytest.mark.parametrize("uri", SECRET_URIS)
    def test_none_appears_in_what_is_raised_for_a_uri_that_cannot_be_opened(self, uri):
        with pytest.raises(InputCheckpointError) as raised:
            open_backend(uri)
        assert SECRET not in "".join(traceback.format_exception(None, raised.value, None))

    @pytest.mark.parametrize("uri", SECRET_URIS)
    def test_none_appears_in_a_redacted_uri(self, uri):
        assert SECRET not in redact(uri)

    @pytest.mark.parametrize(
        "uri", [f"memory://joe:{SECRET}@place/run", f"memory://place/run?token={SECRET}"]
    )
    def test_none_appears_in_the_uri_or_the_repr_of_a_backend(self, uri):
        backend = open_backend(uri)
        assert SECRET not in backend.uri
        assert SECRET not in repr(backend)

    @pytest.mark.parametrize(
        "uri", [f"memory://joe:{SECRET}@place/run", f"memory://place/run?token={SECRET}"]
    )
    def test_none_appears_in_the_errors_of_a_backend_or_a_store(self, uri):
        backend = open_backend(uri)
        errors = []
        for attempt in (
            lambda: backend.get("missing"),
            lambda: CheckpointStore.open(backend),
            lambda: CheckpointStore(backend).newest("main"),
        ):
            with pytest.raises(InputCheckpointError) as raised:
                attempt()
            errors.append(str(raised.value))
        assert not [message for message in errors if SECRET in message]

    def test_what_is_not_secret_stays_readable(self):
        assert redact(f"sftp://joe:{SECRET}@host:22/run-7/input") == "sftp://***@host:22/run-7/input"

    @pytest.mark.parametrize(
        "uri",
        [
            "/data/run@7",
            "file:///data/run@7",
            "s3://bucket/run@7/input",
            "sftp://host:22/run@7/input",
            "sftp://[::1]:22/run@7/input",
            "zip://store.zip::file:///data/run@7",
            "simplecache::s3://bucket/run@7/input",
            "memory://run",
        ],
    )
    def test_a_uri_without_secrets_is_left_as_it_is(self, uri):
        assert redact(uri) == uri

    def test_what_stands_beside_a_uri_in_a_message_stays_readable(self):
        message = f"'ftp://joe:a/{SECRET}@host/run' and s3://bucket/a@b: refused for joe@example.com"
        assert redact(message) == "'ftp://***@host/run' and s3://bucket/a@b: refused for joe@example.com"

    def test_a_long_message_is_redacted_in_no_time(self):
        started = time.monotonic()
        redact("https://host:" + "a" * 200_000)
        assert time.monotonic() - started < 5


def test_every_backend_shows_its_uri():
    backend: Backend = open_backend("memory://shown")
    assert repr(backend) == "MemoryBackend('memory://shown')"
