"""A URI or path opens the right backend; errors say what is wrong and contain no secrets."""

from __future__ import annotations

import shutil
import time
import traceback
import uuid
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from input_checkpoint import (
    Backend,
    BackendError,
    BackendNotFoundError,
    BackendUnavailableError,
    CheckpointStore,
    InputCheckpointError,
    InvalidLocationError,
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
from tests.support.answering_server import Answer, answering

SECRET = "hunter2"


class InheritingFileSystem(LocalFileSystem):
    """A filesystem without a plugin that inherits fsspec's ``pipe_file``."""

    protocol = ("inheriting",)

    @classmethod
    def _strip_protocol(cls, path):
        """Needed before fsspec 2026, where LocalFileSystem strips only its own protocols."""
        return super()._strip_protocol(path.replace("inheriting://", ""))


class RacyFileSystem(InheritingFileSystem):
    """Accepts ``mode``, but checks first and then writes."""

    protocol = ("racy",)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("racy://", ""))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)  # as long as a request to a remote storage
        super().pipe_file(path, value)


class AtomicFileSystem(InheritingFileSystem):
    """Creates atomically, as the operating system does."""

    protocol = ("atomic",)

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("atomic://", ""))

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        with open(path, "xb" if mode == "create" else "wb") as file:
            file.write(value)


def saved_store(folder: Path):
    """Make a store with one checkpoint."""
    store = CheckpointStore.open(str(folder), create=True)
    return store.begin_run("main").save(10, [IteratorState("Iterator", [(b"slot", b"payload")])])


@pytest.fixture
def inheriting_uri(tmp_path: Path) -> str:
    fsspec.register_implementation("inheriting", f"{__name__}.InheritingFileSystem", clobber=True)
    return f"inheriting://{tmp_path}"


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


class BytesPath:
    """A path object for a path in bytes."""

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
        (BytesPath(), "BytesPath"),
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


@pytest.mark.parametrize(
    "uri",
    [
        "s3:/bucket/run",
        "gs:bucket/run",
        "dbfs:/mnt/run",
        "hdfs:/tmp/run",
        "memory:run",
        "file:run",
        "s3//bucket",
    ],
)
def test_a_text_that_is_almost_a_uri_makes_no_folder(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidLocationError, match="Write "):
        CheckpointStore.open(uri, create=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_uri_with_one_slash_is_an_absolute_path(tmp_path):
    open_backend(f"file:{tmp_path}/run").put("key", b"data")
    assert (tmp_path / "run/key").read_bytes() == b"data"


@pytest.mark.parametrize("mark", ["#", "?", "%23", "%3F"])
def test_file_uris_that_differ_after_a_mark_are_two_stores(tmp_path, mark):
    open_backend(f"file://{tmp_path}/run{mark}1").put("key", b"data")
    assert list(open_backend(f"file://{tmp_path}/run{mark}2").list()) == []
    assert (tmp_path / f"run{unquote(mark)}1" / "key").exists()


def test_the_uri_of_a_backend_opens_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = open_backend(f"file://{tmp_path}/run?1")
    backend.put("key", b"data")
    relative = open_backend("./s3:/run")
    relative.put("key", b"other")
    monkeypatch.chdir("/")
    assert open_backend(backend.uri).get("key") == b"data"
    assert open_backend(relative.uri).get("key") == b"other"


def test_the_uri_of_a_relative_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_backend("run").uri == str(tmp_path / "run")


@pytest.mark.parametrize("again", ["memory://{}", "memory://{}/", "MEMORY://{}", "memory:///{}"])
def test_memory_backends_with_the_same_uri_share_objects(again):
    name = uuid.uuid4().hex
    open_backend(f"memory://{name}").put("key", b"data")
    assert isinstance(open_backend(again.format(name)), MemoryBackend)
    assert open_backend(again.format(name)).get("key") == b"data"


def test_memory_backends_with_different_uris_share_nothing():
    open_backend(f"memory://{uuid.uuid4().hex}").put("key", b"data")
    assert list(open_backend(f"memory://{uuid.uuid4().hex}").list()) == []


def test_an_open_backend_is_returned_unchanged():
    backend = MemoryBackend(f"memory://{uuid.uuid4().hex}")
    assert open_backend(backend) is backend


def test_an_open_backend_accepts_no_options():
    with pytest.raises(ValueError, match="already open"):
        open_backend(MemoryBackend(f"memory://{uuid.uuid4().hex}"), {"key": "value"})


@pytest.mark.parametrize("uri", ["/data/run", "file:///data/run", "memory://run"])
def test_built_in_backends_name_the_options_they_refuse_without_their_values(uri):
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
def test_the_error_for_a_missing_plugin_says_what_to_install(no_plugins, uri, extra):
    with pytest.raises(
        UnknownBackendError, match=rf"{uri}: .*pip install 'input-checkpoint\[{extra}\]'"
    ) as raised:
        open_backend(uri)
    assert raised.value.uri == uri


def test_the_error_for_an_unknown_scheme_lists_the_known_schemes():
    with pytest.raises(
        UnknownBackendError, match=r"'nosuch'.* file, .*memory, s3, .*input_checkpoint\.backends"
    ):
        open_backend("nosuch://place/run")


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("gc://bucket/run", "gs://bucket/run"),
        ("wasbs://c@account.blob.core.windows.net/run", "abfss://c@account.dfs.core.windows.net/run"),
        ("https://bucket.s3.amazonaws.com/run?sig=hunter2", "s3://bucket/run"),
        ("https://storage.googleapis.com/bucket/run", "gs://bucket/run"),
        ("https://account.blob.core.windows.net/c/run", "abfs://c@account.dfs.core.windows.net/run"),
    ],
)
def test_the_error_for_another_name_of_a_known_storage_suggests_ours(uri, meant):
    with pytest.raises(UnknownBackendError) as raised:
        open_backend(uri)
    assert f"Did you mean {meant}?" in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("scheme", ["s3", "s3a", "S3"])
def test_a_plugin_is_found_by_its_entry_point(scheme):
    plugin = pytest.importorskip("input_checkpoint_s3")
    assert isinstance(open_backend(f"{scheme}://bucket/run", {"anon": True}), plugin.S3Backend)


def test_a_third_party_plugin_may_claim_a_scheme_that_resembles_another(monkeypatch):
    plugin = EntryPoint("gc", "input_checkpoint.backends.memory:MemoryBackend", "input_checkpoint.backends")
    opened = []
    monkeypatch.setattr(
        EntryPoint, "load", lambda _: lambda uri, options: opened.append(uri) or MemoryBackend(uri)
    )
    monkeypatch.setattr("input_checkpoint.backends.schemes.installed_plugins", lambda: (plugin,))
    open_backend("gc://place//run?x#y")
    assert opened == ["gc://place//run?x#y"]


def test_a_third_party_plugin_gets_uri_and_options(tmp_path, monkeypatch):
    info = tmp_path / "thirdparty-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[input_checkpoint.backends]\nthirdparty = third_party_plugin:connect\n"
    )
    (tmp_path / "third_party_plugin.py").write_text(
        "from input_checkpoint.backends.memory import MemoryBackend\n"
        "def connect(uri, storage_options):\n"
        "    backend = MemoryBackend(uri)\n"
        "    backend.options = storage_options\n"
        "    return backend\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    backend = open_backend("thirdparty://place", {"color": "green"})
    assert (backend.uri, backend.options) == ("thirdparty://place", {"color": "green"})


class TestGeneric:
    def test_it_opens_a_scheme_that_only_fsspec_knows(self, inheriting_uri):
        assert isinstance(open_backend(inheriting_uri), GenericBackend)

    def test_it_opens_a_filesystem_that_the_program_registered(self, tmp_path):
        fsspec.register_implementation("registered", InheritingFileSystem, clobber=True)
        assert isinstance(open_backend(f"registered://{tmp_path}"), GenericBackend)

    def test_options_are_passed_to_the_filesystem(self, inheriting_uri, tmp_path):
        open_backend(f"{inheriting_uri}/deep/run", {"auto_mkdir": True}).put("key", b"data")
        assert (tmp_path / "deep/run/key").read_bytes() == b"data"

    def test_existing_objects_can_be_read(self, inheriting_uri, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/key").write_bytes(b"0123456789")
        backend = open_backend(f"{inheriting_uri}/run")
        assert [(info.key, info.size) for info in backend.list()] == [("key", 10)]
        assert backend.get("key", 2, 5) == b"234"

    def test_create_fails_without_an_atomic_create(self, inheriting_uri, tmp_path):
        with pytest.raises(BackendError, match=r"no atomic create-if-absent.*Choose another") as raised:
            open_backend(inheriting_uri).create("key", b"data")
        assert (raised.value.uri, raised.value.key) == (inheriting_uri, "key")
        assert list(tmp_path.iterdir()) == []

    def test_no_store_is_made_without_an_atomic_create(self, inheriting_uri, tmp_path):
        with pytest.raises(BackendError, match="no atomic create-if-absent"):
            CheckpointStore.open(inheriting_uri, create=True)
        assert list(tmp_path.iterdir()) == []

    def test_create_fails_if_a_race_has_several_winners(self, tmp_path):
        fsspec.register_implementation("racy", f"{__name__}.RacyFileSystem", clobber=True)
        backend = open_backend(f"racy://{tmp_path}")
        with pytest.raises(BackendError, match=r"of 8 writers .* succeeded.*commit_lock"):
            backend.create("key", b"data")
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_create_works_if_a_race_has_one_winner(self, tmp_path):
        fsspec.register_implementation("atomic", f"{__name__}.AtomicFileSystem", clobber=True)
        backend = open_backend(f"atomic://{tmp_path}")
        backend.create("key", b"data")
        with pytest.raises(ObjectExistsError, match=r"atomic://.*/key already exists"):
            backend.create("key", b"other")
        assert [info.key for info in backend.list()] == ["key"]

    def test_an_unsupported_operation_is_not_retried(self, tmp_path):
        store = tmp_path / "store.zip"
        with zipfile.ZipFile(store, "w") as archive:
            archive.writestr("key", b"data")
        backend = open_backend(f"zip::file://{store}")
        with pytest.raises(BackendError) as raised:
            backend.delete(["key"])
        assert not isinstance(raised.value, BackendUnavailableError)

    def test_the_error_for_a_missing_object_carries_uri_and_key(self, inheriting_uri):
        with pytest.raises(ObjectNotFoundError) as raised:
            open_backend(inheriting_uri).get("folder/key")
        assert (raised.value.uri, raised.value.key) == (inheriting_uri, "folder/key")

    def test_a_store_can_be_read_from_an_archive(self, tmp_path):
        store = CheckpointStore.open(str(tmp_path / "run"), create=True)
        state = IteratorState("Iterator", [(b"slot", b"payload")])
        info = store.begin_run("main").save(10, [state])
        shutil.make_archive(str(tmp_path / "run"), "zip", tmp_path / "run")
        archived = CheckpointStore.open(f"zip::file://{tmp_path}/run.zip")
        assert archived.checkpoints() == [info]
        assert [found.in_order() for found in archived.load(info)] == [[(b"slot", b"payload")]]

    def test_a_chained_folder_can_commit_only_if_its_filesystem_can(self, tmp_path):
        backend = open_backend(f"dir::file://{tmp_path}")
        with pytest.raises(BackendError, match="no atomic create-if-absent"):
            backend.create("key", b"data")

    def test_a_folder_in_a_chain_is_the_folder_that_the_uri_names(self, tmp_path):
        info = saved_store(tmp_path / "run")
        chained = CheckpointStore.open(f"dir::file://{tmp_path}/run")
        assert chained.checkpoints() == [info]
        assert CheckpointStore.open(f"dir://run::file://{tmp_path}").checkpoints() == [info]

    def test_what_is_written_through_a_chain_is_where_the_uri_says(self):
        name = uuid.uuid4().hex
        open_backend(f"dir::memory://{name}").put("folder/key", b"data")
        assert fsspec.filesystem("memory").cat_file(f"/{name}/folder/key") == b"data"

    def test_a_chained_local_folder_is_refused_with_how_to_write_it(self, tmp_path):
        with pytest.raises(BackendError, match=f"Remove dir:: from the URI: file://{tmp_path}"):
            open_backend(f"dir::file://{tmp_path}").create("key", b"data")

    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_an_archive_that_is_not_there_is_not_found(self, tmp_path, kind):
        with pytest.raises(BackendNotFoundError, match=r"cannot open .*missing: not found"):
            open_backend(f"{kind}::file://{tmp_path}/missing")

    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_an_archive_that_is_none_is_refused(self, tmp_path, kind):
        (tmp_path / "text").write_text("no archive")
        with pytest.raises(BackendError, match="the archive is damaged, or not an archive") as raised:
            open_backend(f"{kind}::file://{tmp_path}/text")
        assert not isinstance(raised.value, BackendUnavailableError)

    @pytest.mark.parametrize("uri", ["reference://run", "jupyter://run"])
    def test_missing_options_are_named(self, uri):
        with pytest.raises(BackendError, match=r"storage_options do not fit.*missing 1 required"):
            open_backend(uri)

    def test_a_store_cannot_be_written_to_references_which_are_in_memory(self):
        backend = open_backend("reference://run", {"fo": {}})
        for write in (lambda: backend.create("key", b""), lambda: backend.put("key", b"")):
            with pytest.raises(
                BackendError, match=r"because it keeps what is written in memory.*can be read"
            ):
                write()

    def test_a_store_cannot_be_written_to_jupyter_which_hides_failed_writes(self):
        with answering(Answer(403)) as url:
            backend = open_backend("jupyter://run", {"url": url, "tok": "token"})
            with pytest.raises(BackendError, match="does not notice when the server refuses a write"):
                backend.put("key", b"data")

    @pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
    def test_a_cache_is_refused(self, tmp_path, cache):
        with pytest.raises(UnknownBackendError, match=f"cannot be used through a cache.*Remove {cache}::"):
            open_backend(f"{cache}::file://{tmp_path}")

    def test_the_error_names_a_package_that_fsspec_needs(self):
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
    def test_none_appears_in_the_error_for_a_uri_that_cannot_be_opened(self, uri):
        with pytest.raises(InputCheckpointError) as raised:
            open_backend(uri)
        assert SECRET not in "".join(traceback.format_exception(None, raised.value, None))

    @pytest.mark.parametrize("uri", SECRET_URIS)
    def test_none_appears_in_a_redacted_uri(self, uri):
        assert SECRET not in redact(uri)

    @pytest.mark.parametrize(
        "uri", [f"memory://joe:{SECRET}@place/run", f"memory://place/run?token={SECRET}"]
    )
    def test_none_appears_in_the_uri_or_repr_of_a_backend(self, uri):
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

    def test_redaction_keeps_the_rest_of_a_uri(self):
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
    def test_redaction_keeps_a_uri_without_secrets(self, uri):
        assert redact(uri) == uri

    def test_redaction_keeps_the_text_around_a_uri(self):
        message = f"'ftp://joe:a/{SECRET}@host/run' and s3://bucket/a@b: refused for joe@example.com"
        assert redact(message) == "'ftp://***@host/run' and s3://bucket/a@b: refused for joe@example.com"

    def test_redaction_of_a_long_message_is_fast(self):
        started = time.monotonic()
        redact("https://host:" + "a" * 200_000)
        assert time.monotonic() - started < 5


def test_the_repr_of_a_backend_shows_its_uri():
    backend: Backend = open_backend("memory://shown")
    assert repr(backend) == "MemoryBackend('memory://shown')"
