"""A location goes where its text says, or the error says how to write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from input_checkpoint import InvalidLocationError
from input_checkpoint.backends.location import contains, parse_for_fsspec, parse_location
from input_checkpoint.backends.suggestions import did_you_mean

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/data/run", "/data/run"),
        ("/data/run/", "/data/run"),
        ("//data/run", "/data/run"),
        ("/data/run#1", "/data/run#1"),
        ("/data/run?1", "/data/run?1"),
        ("/data/100%25", "/data/100%25"),
        ("/data/run 1", "/data/run 1"),
        ("/data/12:30", "/data/12:30"),
        ("/", "/"),
        ("run", "{here}/run"),
        ("s3", "{here}/s3"),
        ("s3/bucket", "{here}/s3/bucket"),
        ("data//run", "{here}/data/run"),
        ("run:1", "{here}/run:1"),
        ("2024-01-01T12:00", "{here}/2024-01-01T12:00"),
        ("a\\b", "{here}/a\\b"),
        ("./s3:/bucket/run", "{here}/s3:/bucket/run"),
        ("./memory:run", "{here}/memory:run"),
        ("./C:\\data", "{here}/C:\\data"),
        ("./~joe", "{here}/~joe"),
        ("~/run", "{here}/home/run"),
        ("~", "{here}/home"),
        ("~root/run", "/root/run"),
        ("file:///data/run", "/data/run"),
        ("file://localhost/data/run", "/data/run"),
        ("file://LOCALHOST/data/run", "/data/run"),
        ("file:/data/run", "/data/run"),
        ("FILE:/data/run", "/data/run"),
        ("local:///data/run", "/data/run"),
        ("local:/data/run", "/data/run"),
        ("file:////data/run", "/data/run"),
        ("file:///data/run#1", "/data/run#1"),
        ("file:/data/run#1", "/data/run#1"),
        ("file:///data/run?lr=1&x", "/data/run?lr=1&x"),
        ("file:///data/run%231", "/data/run#1"),
        ("file:///data/run%3F1", "/data/run?1"),
        ("file:///data/run%201", "/data/run 1"),
        ("file:///data/r%C3%BCn", "/data/rün"),
        ("file:///data/%FF", "/data/\udcff"),
        ("file:///data/100%", "/data/100%"),
        ("file:///data/a::b", "/data/a::b"),
        ("file:///data/s3:/bucket", "/data/s3:/bucket"),
        ("file:///data/%24HOME", "/data/$HOME"),
        ("file:///%7Ejoe", "/~joe"),
        ("file:///", "/"),
    ],
)
def test_a_path_or_file_uri_names_the_folder_that_it_spells(here: Path, text: str, path: str) -> None:
    location = parse_location(text)
    assert (location.scheme, location.path) == ("file", path.format(here=here))


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("S3://bucket/Run/", "s3://bucket/Run"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/run#1", "s3://bucket/run#1"),
        ("s3://bucket/run%201", "s3://bucket/run%201"),
        ("s3://bucket/a::b", "s3://bucket/a::b"),
        ("s3://bucket/a//b", "s3://bucket/a//b"),
        ("GS://bucket/run", "gs://bucket/run"),
        (
            "abfss://container@account.dfs.core.windows.net/run/",
            "abfss://container@account.dfs.core.windows.net/run",
        ),
        ("SFTP://joe@Host:22/data/run", "sftp://joe@Host:22/data/run"),
        ("memory://run", "memory://run"),
        ("memory://run/", "memory://run"),
        ("memory:///run", "memory://run"),
        ("MEMORY://run", "memory://run"),
        ("memory://run#1", "memory://run#1"),
        ("hdfs:///tmp/run", "hdfs:///tmp/run"),
        ("my_plugin://Place//x?y#z", "my_plugin://Place//x?y#z"),
        ("zip::file:///archive/run.zip", "zip::file:///archive/run.zip"),
    ],
)
def test_a_uri_is_kept_but_for_the_case_of_its_scheme_and_needless_slashes(text: str, uri: str) -> None:
    location = parse_location(text)
    assert (location.uri, location.path) == (uri, None)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "Write for example s3://bucket"),
        (" ", "Write for example s3://bucket"),
        ("://bucket/run", "Write for example s3://bucket"),
        (" s3://bucket/run", "Write s3://bucket/run"),
        ("s3://bucket/run\n", "Write s3://bucket/run"),
        ("/data/run\n", "Write /data/run"),
        ("/data/\x00run", "control character"),
        ("'s3://bucket/run'", "Write s3://bucket/run"),
        ('"/data/run"', "Write /data/run"),
        ("file:run", "Write file:///absolute/path, or only the path"),
        ("file:", "Write file:///absolute/path, or only the path"),
        ("file://", "names no folder. Write file:///absolute/path"),
        ("file://localhost", "names no folder. Write file:///absolute/path"),
        ("file://data/run", "has no host. Write file:///absolute/path"),
        ("file://~/run", "has no host. Write file:///absolute/path"),
        ("file:///~/run", "Write ~/run"),
        ("file:///C:/data/run", "names a drive"),
        ("file:///data/%00", "control character"),
        ("file:///data/$USER/run", "variable $USER"),
        ("file::/data/run", "Write file:///absolute/path"),
        ("s3:/bucket/run", "Write s3://bucket/run"),
        ("s3:bucket/run", "Write s3://bucket/run"),
        ("S3:/bucket/run", "Write s3://bucket/run"),
        ("s3:", "Write s3://bucket/run-7"),
        ("s3::bucket/run", "Write s3://bucket/run"),
        ("s3//bucket/run", "Write s3://bucket/run"),
        ("s3:\\\\bucket\\run", "Write s3://bucket/run-7"),
        ("s3:///bucket/run", "names no bucket. Write s3://bucket/run-7"),
        ("az://", "names no container. Write az://container/run-7"),
        ("gs:/bucket/run", "Write gs://bucket/run"),
        ("gcs//bucket/run", "Write gcs://bucket/run"),
        ("gc:/bucket/run", "Write gs://bucket/run"),
        ("gc//bucket/run", "Write gs://bucket/run"),
        ("abfs:/container/run", "Write abfs://container/run"),
        ("wasbs:container/run", "Write abfss://container/run"),
        ("sftp:host/data/run", "Write sftp://host/data/run"),
        ("joe@host:/data/run", "Write sftp://host/data/run-7"),
        ("joe@host:run", "Write sftp://host/data/run-7"),
        ("host.example.org:/data/run", "such as s3://bucket/run-7 or sftp://host/data/run-7"),
        ("10.0.0.1:/export/run", "such as s3://bucket/run-7 or sftp://host/data/run-7"),
        ("nosuch:/run", "such as s3://bucket/run-7 or sftp://host/data/run-7"),
        ("dbfs:/mnt/run", "Write /dbfs/mnt/run, the folder that Databricks mounts"),
        ("hdfs:/tmp/run", "Write hdfs:///tmp/run"),
        ("http:/host/run", "Write http://host/run"),
        ("memory:run", "Write memory://run"),
        ("memory:/run", "Write memory://run"),
        ("memory://", "names no store. Write memory://run-7"),
        ("memory://a/../b", "Write memory://a/b"),
        ("arn:aws:s3:::bucket/run", "Write s3://bucket/run-7"),
        ("1s3://bucket/run", "does not start with a scheme"),
        ("/models/s3://bucket/run", "does not start with a scheme"),
        ("/models/s3:/bucket/run", "Write s3://bucket/run"),
        ("models/gs:/bucket/run", "Write gs://bucket/run"),
        ("C:\\data\\run", "is a path of Windows"),
        ("C:/data/run", "is a path of Windows"),
        ("\\\\server\\share", "is a path of Windows"),
        ("~nosuchuser/run", "unknown user, ~nosuchuser"),
        ("$HOME/run", "variable $HOME"),
        ("/data/${USER}/run", "variable ${USER}"),
        ("s3://bucket//run", "Write s3://bucket/run"),
        ("s3://bucket/a/../run", "Write s3://bucket/a/run"),
        ("s3://bucket/run?versionId=1", "Write s3://bucket/run, and use storage_options"),
        ("gs://bucket/run#1", "Write gs://bucket/run, and use storage_options"),
        ("abfs://container/run?sig=1", "Write abfs://container/run, and use storage_options"),
        ("sftp://host/~/run", "Write sftp://host/home/user/run-7"),
    ],
)
def test_a_text_that_is_not_quite_a_location_is_refused_with_how_to_write_it(text: str, advice: str) -> None:
    with pytest.raises(InvalidLocationError) as raised:
        parse_location(text)
    assert advice in str(raised.value)


@pytest.mark.parametrize("text", ["s3:/bucket/run", "memory:run", "s3//bucket", "C:\\data", "~nosuchuser/x"])
def test_the_advice_to_write_a_literal_folder_works(here: Path, text: str) -> None:
    with pytest.raises(InvalidLocationError) as raised:
        parse_location(text)
    literal = str(raised.value).partition("If a folder of this name is meant, write ")[2].rstrip(".")
    assert parse_location(literal).path == str(here / text)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("memory:run", "memory:run"),
        (" run ", " run "),
        ("$HOME", "$HOME"),
        ("a#b?c", "a#b?c"),
        ("s3:run", "s3:run"),
    ],
)
def test_a_path_object_is_taken_literally(here: Path, path: str, name: str) -> None:
    assert parse_location(Path(path)).path == str(here / name)


@pytest.mark.parametrize(
    "path",
    [
        Path("s3://bucket/run"),
        Path("file:///data"),
        Path("/models") / "s3://bucket",
        Path("s3://b").absolute(),
    ],
)
def test_a_path_object_that_was_made_from_a_uri_is_refused(path: Path) -> None:
    with pytest.raises(InvalidLocationError, match=r"pathlib removed a slash|is a folder joined with a URI"):
        parse_location(path)


@pytest.mark.parametrize(
    "location",
    [
        "/data/run#1",
        "file:///data/run#1?x%25",
        "file:///%7Ejoe",
        "file:///data/%FF",
        "file:///C%3A/x",
        "./s3:/bucket",
        "S3://bucket/run/",
        "memory:///run",
        Path(" $HOME/s3:run\n"),
        Path("/data/\udcff"),
    ],
)
def test_the_canonical_uri_of_a_location_names_the_same_place(location: str | Path) -> None:
    parsed = parse_location(location)
    assert parse_location(parsed.uri) == parsed


def test_a_folder_is_found_from_a_working_directory_whose_name_is_odd(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "$x" / "s3:").mkdir(parents=True)
    monkeypatch.chdir(here / "$x" / "s3:")
    location = parse_location("run")
    assert location.path == str(here / "$x" / "s3:" / "run")
    assert parse_location(location.uri) == location


def test_a_relative_path_is_refused_if_the_working_directory_is_gone(here: Path) -> None:
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    with pytest.raises(InvalidLocationError, match="Write an absolute path"):
        parse_location("run")


@pytest.mark.parametrize(
    "text",
    [
        f"s3:/joe:{SECRET}@bucket/run",
        f"nosuch:/joe:{SECRET}@host/run",
        f"joe:{SECRET}@host:/run",
        f" sftp://joe:it is {SECRET}@host/run",
        f"'sftp://joe:{SECRET}@host/run'",
        f"s3://bucket/run?token={SECRET}",
        f"s3:/bucket/run?token={SECRET}",
        f"s3//bucket/run?token={SECRET}",
        f"/models/s3://joe:{SECRET}@bucket",
        f"/models/s3:/joe:{SECRET}@bucket",
        f"file://joe:{SECRET}@host/run",
        f"sftp://joe:{SECRET}@host/~/run",
    ],
)
def test_a_refusal_shows_no_secret(text: str) -> None:
    with pytest.raises(InvalidLocationError) as raised:
        parse_location(text)
    assert SECRET not in f"{raised.value} {raised.value.uri}"


class TestForFsspec:
    @pytest.mark.parametrize(
        ("uri", "opened"),
        [
            ("zip::file:///archive/run%201.zip", "zip::file:///archive/run 1.zip"),
            ("zip::file:/archive/run#1.zip", "zip::file:///archive/run#1.zip"),
            ("dir::run", "dir::file://{here}/run"),
            ("zip::S3://bucket/run.zip", "zip::s3://bucket/run.zip"),
            ("zip::https://host/run.zip?sig=1", "zip::https://host/run.zip?sig=1"),
            ("ftp://host/run#1", "ftp://host/run#1"),
        ],
    )
    def test_the_end_of_a_chain_is_a_location(self, here: Path, uri: str, opened: str) -> None:
        assert parse_for_fsspec(uri) == opened.format(here=here)

    @pytest.mark.parametrize(
        ("uri", "advice"),
        [
            ("ftp://host/run?x=1", "Write ftp://host/run"),
            ("https://host/run?x=1", "Write https://host/run"),
            ("zip::s3:/bucket/run.zip", "Write s3://bucket/run.zip"),
            ("zip::", "Write for example"),
        ],
    )
    def test_what_fsspec_would_drop_or_take_for_a_path_is_refused(self, uri: str, advice: str) -> None:
        with pytest.raises(InvalidLocationError, match=advice):
            parse_for_fsspec(uri)


class TestContains:
    @pytest.mark.parametrize(
        ("outer", "inner"),
        [
            ("/models/run", "/models/run"),
            ("/models/run", "//models/run/input"),
            ("/models/run", "file:/models/run/input"),
            ("file:///models/run%201", "/models/run 1/input"),
            ("file:///models/run#1", "file:///models/run%231/input"),
            ("/", "/models"),
            ("run", "./run/a/../input"),
            ("/models/run", "dir::file:///models/run/input"),
            ("s3://bucket", "s3://bucket/run"),
            ("s3://bucket/run/", "S3A://bucket/run/input"),
            ("gs://bucket/run", "gcs://bucket/run/input"),
            ("abfs://c/run", "abfss://c@account.dfs.core.windows.net/run/input"),
            ("az://account.dfs.core.windows.net/c/run", "abfs://c@account.blob.core.windows.net/run/input"),
            ("sftp://joe@Host/run", "ssh://host:22/run/input"),
            ("memory://run", "memory:///run/input"),
            ("hdfs://host/run", "hdfs://host/run/input"),
        ],
    )
    def test_a_place_contains_itself_and_what_lies_below_however_it_is_written(
        self, outer: str, inner: str
    ) -> None:
        assert contains(parse_location(outer), parse_location(inner))

    @pytest.mark.parametrize(
        ("outer", "inner"),
        [
            ("/models/run", "/models/run-input"),
            ("/models/run", "/models"),
            ("file:///models/run#1", "file:///models/run#2"),
            ("s3://bucket/run", "s3://bucket/run-input"),
            ("s3://bucket/run", "gs://bucket/run/input"),
            ("s3://bucket/Run", "s3://bucket/run/input"),
            ("/bucket/run", "s3://bucket/run"),
            ("abfs://c@one.dfs.core.windows.net/run", "abfs://c@two.dfs.core.windows.net/run"),
            ("memory://run#1", "memory://run#2"),
        ],
    )
    def test_a_place_does_not_contain_what_lies_beside_it(self, outer: str, inner: str) -> None:
        assert not contains(parse_location(outer), parse_location(inner))

    def test_links_are_followed(self, here: Path) -> None:
        (here / "model").mkdir()
        (here / "link").symlink_to(here / "model")
        assert contains(parse_location("model"), parse_location("link/input"))


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("gc://bucket/run", "gs://bucket/run"),
        ("GSS://bucket/run", "gs://bucket/run"),
        ("s3n://bucket/run", "s3://bucket/run"),
        ("aws://bucket", "s3://bucket"),
        ("azure://container/run", "abfs://container/run"),
        ("wasb://container/run", "abfs://container/run"),
        (
            "wasbs://container@account.blob.core.windows.net/run",
            "abfss://container@account.dfs.core.windows.net/run",
        ),
        ("scp://joe:hunter2@host/run", "sftp://***@host/run"),
        ("sfpt://host/run", "sftp://host/run"),
        ("files:///data/run", "file:///data/run"),
        ("https://bucket.s3.amazonaws.com/my%20run", "s3://bucket/my run"),
        ("https://Bucket.s3.eu-west-1.amazonaws.com/run?X-Amz-Signature=hunter2", "s3://bucket/run"),
        ("https://my.bucket.s3-eu-west-1.amazonaws.com/run", "s3://my.bucket/run"),
        ("https://bucket.s3.dualstack.us-west-2.amazonaws.com/run", "s3://bucket/run"),
        ("https://bucket.s3.cn-north-1.amazonaws.com.cn/run", "s3://bucket/run"),
        ("https://s3.us-west-2.amazonaws.com/bucket/run/", "s3://bucket/run"),
        ("https://s3.amazonaws.com", "s3://bucket"),
        ("https://s3.console.aws.amazon.com/s3/buckets/bucket?region=x&prefix=run/7/", "s3://bucket/run/7"),
        (
            "http://bucket.s3.example.org:9000/run",
            "s3://bucket/run with storage_options={'endpoint_url': 'http://s3.example.org:9000'}",
        ),
        (
            "https://0a1b.r2.cloudflarestorage.com/bucket/run",
            "s3://bucket/run with storage_options={'endpoint_url': 'https://0a1b.r2.cloudflarestorage.com'}",
        ),
        ("https://storage.googleapis.com/bucket/run", "gs://bucket/run"),
        ("https://bucket.storage.googleapis.com/run", "gs://bucket/run"),
        ("https://storage.cloud.google.com/bucket/run", "gs://bucket/run"),
        ("https://console.cloud.google.com/storage/browser/bucket/run;tab=objects?x", "gs://bucket/run"),
        (
            "https://account.blob.core.windows.net/container/run?sig=hunter2",
            "abfs://container@account.dfs.core.windows.net/run",
        ),
        (
            "https://account.dfs.core.windows.net/container",
            "abfs://container@account.dfs.core.windows.net",
        ),
        ("https://example.org/run", None),
        ("nosuch://host/run", None),
        ("s3://bucket/run", None),
        ("hdfs://host/run", None),
    ],
)
def test_the_uri_that_was_probably_meant_is_suggested(uri: str, meant: str | None) -> None:
    assert did_you_mean(uri) == meant
