"""What goes wrong with Cloud Storage is said soon, in the library's words, and without a secret."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import requests.exceptions
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcs_scripted_server import HANG_UP, Said, refusal, resource, scripted_server

from input_checkpoint import (
    BackendError,
    BackendNotFoundError,
    BackendPermissionError,
    BackendUnavailableError,
    ObjectNotFoundError,
)
from input_checkpoint.errors import ObjectExistsError
from input_checkpoint_gcs import GcsBackend
from tests.support.answering_server import write_self_signed_certificate
from tests.support.operations import OPERATIONS, every_operation

SECRET = "hunter2"
STORED = resource(name="run/key", generation="1")

every_write = pytest.mark.parametrize("operation", [OPERATIONS["put"], OPERATIONS["create"]])


@contextlib.contextmanager
def refused(cls: type[BackendError], match: str) -> Iterator[None]:
    """Expect exactly this class, a message that names the place, and no secret in the whole traceback."""
    with pytest.raises(cls, match=match) as raised:
        yield
    assert type(raised.value) is cls
    assert "gs://bucket/run" in str(raised.value)
    assert SECRET not in "".join(traceback.format_exception(raised.type, raised.value, raised.tb))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def accepting():
    """Run a server that does one thing to every connection it accepts; gives its port."""
    with contextlib.ExitStack() as until_the_end:

        def start(treat: Callable[[socket.socket], object]) -> int:
            listener = until_the_end.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(50)
            until_the_end.callback(listener.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=accept, args=(listener, treat), daemon=True).start()
            return listener.getsockname()[1]

        def accept(listener: socket.socket, treat: Callable[[socket.socket], object]) -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                until_the_end.callback(connection.close)
                treat(connection)

        yield start


@pytest.fixture(scope="session")
def service_account() -> dict[str, str]:
    """The contents of a service account's key file, but for where its tokens come from."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"type": "service_account", "client_email": "a@b.example", "private_key": private.decode()}


class TestServerThatIsDown:
    def test_it_is_unavailable_within_twenty_seconds(self, closed_port):
        backend = GcsBackend(
            "gs://bucket/run", {"endpoint_url": f"http://127.0.0.1:{closed_port}", "token": "anon"}
        )
        started = time.monotonic()
        with refused(BackendUnavailableError, "trying again may help"):
            backend.create("key", b"data")
        assert time.monotonic() - started < 20

    @every_operation
    def test_it_is_unavailable_whatever_is_asked_for(self, closed_port, operation, hasty):
        options = {"endpoint_url": f"http://127.0.0.1:{closed_port}", "token": SECRET}
        with refused(BackendUnavailableError, "trying again may help"):
            operation(GcsBackend("gs://bucket/run", options))

    def test_deleting_a_thousand_keys_takes_no_longer_than_deleting_one(self, hasty):
        with scripted_server(lambda asked: refusal(503, "backendError", "Backend Error")) as server:
            backend = GcsBackend("gs://bucket/run", server.options())
            with refused(BackendUnavailableError, "503 backendError.*of 1000 deletions"):
                backend.delete([str(number) for number in range(1000)])
        assert len(server.asked) < 100


@pytest.mark.usefixtures("hasty")
class TestServerThatNeverAnswers:
    @every_operation
    def test_it_is_unavailable_when_the_time_out_of_the_options_is_over(self, accepting, operation):
        port = accepting(lambda connection: None)
        options = {"token": SECRET, "endpoint_url": f"http://127.0.0.1:{port}", "requests_timeout": 0.1}
        with refused(BackendUnavailableError, "no answer in time"):
            operation(GcsBackend("gs://bucket/run", options))

    def test_it_is_unavailable_by_itself(self, accepting, monkeypatch):
        monkeypatch.setattr("input_checkpoint_gcs.client._ANSWER", 0.3)
        port = accepting(lambda connection: None)
        options = {"token": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}
        with refused(BackendUnavailableError, "no answer in time"):
            GcsBackend("gs://bucket/run", options).get("key")

    @pytest.mark.timeout(30)
    def test_an_upload_that_it_reads_no_further_ends(self, accepting, monkeypatch):
        monkeypatch.setattr("input_checkpoint_gcs.client._ANSWER", 0.3)
        monkeypatch.setattr("input_checkpoint_gcs.client._MIN_UPLOAD_BYTES_PER_SECOND", 64 << 20)
        port = accepting(lambda connection: connection.recv(1000))
        options = {"token": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}
        with refused(BackendUnavailableError, "no answer in time"):
            GcsBackend("gs://bucket/run", options).create("key", bytes(32 << 20))


@pytest.mark.usefixtures("hasty")
class TestServerThatDiesInTheMiddle:
    @pytest.mark.parametrize("method", ["put", "create"])
    def test_an_upload_is_unavailable(self, method):
        with scripted_server(lambda asked: HANG_UP) as server:
            backend = GcsBackend("gs://bucket/run", server.options())
            with refused(BackendUnavailableError, "trying again may help"):
                getattr(backend, method)("key", bytes(8 << 20))

    @every_write
    def test_an_upload_that_gets_through_the_second_time_is_done(self, operation):
        answers = iter([HANG_UP, refusal(503, "backendError", "Backend Error"), STORED])
        with scripted_server(lambda asked: next(answers)) as server:
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.asked) == 3

    def test_a_create_whose_answer_was_lost_finds_the_key_taken(self):
        answers = iter([HANG_UP, refusal(412, "conditionNotMet", "Precondition Failed")])
        with scripted_server(lambda asked: next(answers)) as server, pytest.raises(ObjectExistsError):
            GcsBackend("gs://bucket/run", server.options()).create("key", b"data")


@pytest.mark.usefixtures("hasty")
class TestThrottling:
    @every_operation
    @pytest.mark.parametrize(
        "answer",
        [
            refusal(429, "rateLimitExceeded", "The object exceeded the rate limit for object mutations."),
            refusal(403, "userRateLimitExceeded", "User Rate Limit Exceeded"),
        ],
        ids=["429", "403"],
    )
    def test_it_is_unavailable_after_four_attempts(self, answer, operation):
        with (
            scripted_server(lambda asked: answer) as server,
            refused(BackendUnavailableError, "asks to slow down"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.asked) == 4

    @pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
    def test_what_cloud_storage_says_to_try_again_is_unavailable(self, status):
        with (
            scripted_server(lambda asked: refusal(status, "backendError", "Backend Error")) as server,
            refused(BackendUnavailableError, f"{status} backendError"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")

    @pytest.mark.parametrize("status", [400, 405, 413, 501])
    def test_anything_else_is_for_good_and_asked_once(self, status):
        with (
            scripted_server(lambda asked: refusal(status, "invalid", "Invalid argument.")) as server,
            refused(BackendError, f"{status} invalid: Invalid argument"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")
        assert len(server.asked) == 1

    def test_data_damaged_on_the_way_are_sent_again(self):
        damaged = 'Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "mnG7TA==".'
        answers = iter([refusal(400, "invalid", damaged), STORED])
        with scripted_server(lambda asked: next(answers)) as server:
            GcsBackend("gs://bucket/run", server.options()).put("key", b"data")


class TestMissingBucket:
    @every_operation
    def test_it_is_told_from_a_missing_object_by_what_cloud_storage_says(self, operation):
        answer = refusal(404, "notFound", "The specified bucket does not exist.")
        with (
            scripted_server(lambda asked: answer) as server,
            refused(BackendNotFoundError, "bucket does not exist.*URI"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.asked) == 1

    @every_operation
    def test_it_is_told_from_a_missing_object_where_the_server_does_not_say_which(self, fake_gcs, operation):
        backend = GcsBackend("gs://no-such-bucket/run", fake_gcs.place("any").storage_options)
        with pytest.raises(BackendNotFoundError, match=r"no-such-bucket.*bucket does not exist") as raised:
            operation(backend)
        assert not isinstance(raised.value, ObjectNotFoundError)

    def test_a_missing_object_is_just_that_and_takes_one_request(self):
        # The answer to a download is plain text.
        answer = Said(404, b"No such object: bucket/run/key")
        with (
            scripted_server(lambda asked: answer) as server,
            refused(ObjectNotFoundError, "gs://bucket/run/key: it does not exist"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")
        assert len(server.asked) == 1

    @pytest.mark.parametrize("uri", ["gs://", "gs:///run"])
    def test_a_uri_without_a_bucket_is_refused(self, uri):
        with pytest.raises(BackendNotFoundError, match="names no bucket"):
            GcsBackend(uri, {"token": "anon"})


class TestWrongCredentials:
    @every_operation
    def test_they_are_refused_without_showing_them(self, operation):
        answer = refusal(401, "authError", "Invalid Credentials")
        with (
            scripted_server(lambda asked: answer) as server,
            refused(BackendPermissionError, "not accepted.*expired.*clock.*Invalid Credentials"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options(token=f"ya29.{SECRET}")))
        assert [asked.headers["authorization"] for asked in server.asked] == [f"Bearer ya29.{SECRET}"]

    def test_where_none_were_found_it_says_how_to_log_in(self):
        said = "Anonymous caller does not have storage.objects.get access to the Google Cloud Storage object."
        with (
            scripted_server(lambda asked: refusal(401, "required", said)) as server,
            refused(BackendPermissionError, "no credentials were found.*application-default login"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")

    @pytest.mark.parametrize("token", ["/no/such/key.json", "key.json", "~/key.json"])
    def test_a_key_file_that_is_not_there_is_named_as_such(self, token):
        with refused(BackendPermissionError, "token names a file that does not exist"):
            GcsBackend("gs://bucket/run", {"token": token})

    def test_a_key_file_that_is_none_is_refused(self, tmp_path):
        file = tmp_path / "key.json"
        file.write_text(f'{{"password": "{SECRET}"}}')
        with refused(BackendPermissionError, "no usable credentials.*application-default login"):
            GcsBackend("gs://bucket/run", {"token": str(file)})

    def test_default_credentials_that_are_not_there_are_refused_at_once(self, monkeypatch, tmp_path):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
        with refused(BackendPermissionError, "no usable credentials.*GOOGLE_APPLICATION_CREDENTIALS"):
            GcsBackend("gs://bucket/run", {"token": "google_default"})


class TestTokensThatAreRenewed:
    def test_a_wrong_clock_is_named(self, service_account):
        said = (
            b'{"error": "invalid_grant", "error_description": "Invalid JWT: Token must be a short-lived '
            b'token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT."}'
        )
        with scripted_server(lambda asked: Said(400, said)) as server:
            token = {**service_account, "token_uri": f"{server.url}/token"}
            with refused(
                BackendPermissionError, "could not be renewed.*reasonable timeframe.*clock is wrong"
            ):
                GcsBackend("gs://bucket/run", server.options(token=token)).get("key")
        assert {asked.path for asked in server.asked} == {"/token"}

    def test_a_token_server_that_is_away_is_unavailable(self, service_account, closed_port, hasty):
        token = {**service_account, "token_uri": f"http://127.0.0.1:{closed_port}/token"}
        with refused(BackendUnavailableError, "could not be renewed.*trying again may help"):
            GcsBackend("gs://bucket/run", {"token": token}).get("key")

    def test_a_renewed_token_is_used(self, service_account):
        def answer(asked):
            if asked.path == "/token":
                return resource(access_token="fresh", expires_in=3600, token_type="Bearer")
            return Said(200, b"data")

        with scripted_server(answer) as server:
            token = {**service_account, "token_uri": f"{server.url}/token"}
            backend = GcsBackend("gs://bucket/run", server.options(token=token))
            assert backend.get("key") == backend.get("key") == b"data"
        assert [asked.path for asked in server.asked].count("/token") == 1
        assert server.asked[-1].headers["authorization"] == "Bearer fresh"


class TestMissingRights:
    @pytest.mark.parametrize(
        ("operation", "right"),
        [
            ("get", "storage.objects.get"),
            ("get of nothing", "storage.objects.get"),
            ("put", "storage.objects.create and, to replace an object, storage.objects.delete"),
            ("create", "storage.objects.create"),
            ("list", "storage.objects.list"),
            ("delete", "storage.objects.delete"),
        ],
    )
    def test_the_right_that_is_missing_is_named(self, operation, right):
        said = "a@b.iam.gserviceaccount.com does not have the access to the Google Cloud Storage object."
        with (
            scripted_server(lambda asked: refusal(403, "forbidden", said)) as server,
            refused(BackendPermissionError, f"access denied. The account needs {right} on the bucket"),
        ):
            OPERATIONS[operation](GcsBackend("gs://bucket/run", server.options(token=SECRET)))
        assert len(server.asked) == 1

    def test_a_bucket_whose_readers_pay_says_what_to_pass(self):
        said = "Bucket is a requester pays bucket but no user project provided."
        with (
            scripted_server(lambda asked: refusal(400, "required", said)) as server,
            refused(BackendError, "Pass requester_pays="),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")

    def test_the_project_that_pays_is_passed_on(self):
        with scripted_server(lambda asked: STORED) as server:
            backend = GcsBackend("gs://bucket/run", server.options(requester_pays="payer"))
            for operation in OPERATIONS.values():
                operation(backend)
        assert {asked.query["userProject"] for asked in server.asked} == {"payer"}


class TestDeletionThatFailsInPart:
    @staticmethod
    def answer(asked):
        if "/locked/" in asked.path:
            return refusal(403, "retentionPolicyNotMet", "Object is subject to bucket's retention policy.")
        if "/gone/" in asked.path:
            return refusal(404, "notFound", f"No such object: {asked.path}")
        return Said(204)

    def test_what_was_refused_is_counted_and_the_others_are_deleted(self):
        keys = ["locked/1", *(f"free/{number}" for number in range(100)), "gone/1", "locked/2"]
        with scripted_server(self.answer) as server:
            backend = GcsBackend("gs://bucket/run", server.options())
            with refused(
                BackendPermissionError, r"locked/1: .*retention policy.*\(2 of 103 deletions failed"
            ):
                backend.delete(keys)
        assert sorted(asked.path for asked in server.asked) == sorted(
            f"/storage/v1/b/bucket/o/run/{key}" for key in keys
        )

    def test_what_trying_again_may_delete_goes_before_what_is_refused(self, hasty):
        def answer(asked):
            if asked.path.endswith("/late"):
                return refusal(503, "backendError", "Backend Error")
            return self.answer(asked)

        with (
            scripted_server(answer) as server,
            refused(BackendUnavailableError, "late: 503.*2 of 2 deletions failed"),
        ):
            GcsBackend("gs://bucket/run", server.options()).delete(["locked/1", "late"])

    def test_what_was_gone_already_is_no_failure(self):
        with scripted_server(self.answer) as server:
            GcsBackend("gs://bucket/run", server.options()).delete(["gone/1", "free/1", "gone/2"])


@pytest.mark.usefixtures("hasty")
class TestSecureConnections:
    def test_a_certificate_that_nobody_vouches_for_is_refused_for_good(self, tmp_path):
        write_self_signed_certificate(tmp_path / "server.pem")
        with (
            scripted_server(lambda asked: STORED, tmp_path / "server.pem") as server,
            refused(BackendError, "no secure connection.*self.signed.*SSL_CERT_FILE"),
        ):
            GcsBackend("gs://bucket/run", server.options(token=SECRET)).get("key")
        assert server.asked == []

    def test_a_server_that_speaks_no_tls_is_refused_for_good(self):
        with scripted_server(lambda asked: STORED) as server:
            options = server.options(endpoint_url=server.url.replace("http://", "https://"))
            with refused(BackendError, "no secure connection.*endpoint_url"):
                GcsBackend("gs://bucket/run", options).get("key")

    @pytest.mark.parametrize("much", [1, 65536], ids=["reset", "closed"])
    def test_a_connection_that_is_dropped_in_the_handshake_is_unavailable(self, accepting, much):
        port = accepting(lambda connection: (connection.recv(much), connection.close()))
        options = {"token": "anon", "endpoint_url": f"https://127.0.0.1:{port}"}
        with refused(BackendUnavailableError, "trying again may help"):
            GcsBackend("gs://bucket/run", options).get("key")


class TestWhatIsNotCloudStorage:
    @pytest.mark.parametrize("operation", ["put", "create", "list"])
    def test_its_answer_does_not_pass_for_one(self, operation):
        with (
            scripted_server(lambda asked: Said(200, b"<html>Please log in</html>")) as server,
            refused(BackendError, "not Cloud Storage: correct endpoint_url"),
        ):
            OPERATIONS[operation](GcsBackend("gs://bucket/run", server.options()))
        assert len(server.asked) == 1

    @every_operation
    def test_where_it_sends_us_we_do_not_go(self, operation):
        def answer(asked):
            return STORED if asked.path == "/elsewhere" else Said(302, location="/elsewhere")

        with (
            scripted_server(answer) as server,
            refused(BackendError, "not Cloud Storage: correct endpoint_url"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.asked) == 1

    @every_write
    def test_a_success_that_names_no_stored_object_is_none(self, operation):
        with (
            scripted_server(lambda asked: resource(status="ok")) as server,
            refused(BackendError, "does not name a stored object"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))

    @pytest.mark.parametrize("url", ["127.0.0.1:9", "nonsense"])
    def test_an_endpoint_that_is_no_url_is_refused_when_it_is_opened(self, url):
        with refused(BackendError, "endpoint_url must begin with"):
            GcsBackend("gs://bucket/run", {"token": "anon", "endpoint_url": url})

    def test_an_endpoint_that_cannot_be_asked_is_refused_for_good(self):
        with refused(BackendError, "the URI or storage_options are wrong"):
            GcsBackend("gs://bucket/run", {"token": "anon", "endpoint_url": "http://:9"}).get("key")


class TestSecrets:
    def test_options_do_not_appear_in_the_uri_or_the_repr(self):
        backend = GcsBackend("gs://bucket/run", {"token": SECRET})
        assert SECRET not in backend.uri + repr(backend)

    @pytest.mark.parametrize(
        "uri",
        [f"gs://joe:{SECRET}@bucket/run", f"gs://{SECRET}@bucket/run", f"gs://bucket/run?token={SECRET}"],
    )
    def test_they_are_refused_in_the_uri_without_repeating_them(self, uri):
        with pytest.raises(BackendError, match="do not belong into the URI") as raised:
            GcsBackend(uri, {"token": "anon"})
        assert SECRET not in str(raised.value)

    def test_a_password_in_the_endpoint_does_not_appear_in_errors(self, closed_port, hasty):
        options: dict[str, Any] = {
            "token": "anon",
            "endpoint_url": f"http://joe:{SECRET}@127.0.0.1:{closed_port}",
        }
        with pytest.raises(BackendError) as raised:
            GcsBackend("gs://bucket/run", options).get("key")
        assert SECRET not in str(raised.value)

    def test_a_token_is_not_sent_to_google_to_ask_for_its_age(self, monkeypatch, closed_port):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port}")
        GcsBackend("gs://bucket/run", {"token": f"ya29.{SECRET}"})

    def test_a_token_in_a_url_that_requests_could_not_reach_does_not_appear_in_errors(self, monkeypatch):
        def open_as_newer_gcsfs_does(**options):
            raise requests.exceptions.ConnectionError(f"with url: /tokeninfo?access_token={SECRET}")

        monkeypatch.setattr("input_checkpoint_gcs.backend.GCSFileSystem", open_as_newer_gcsfs_does)
        with refused(BackendUnavailableError, "servers for credentials did not answer"):
            GcsBackend("gs://bucket/run", {})
