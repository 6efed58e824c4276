"""Failures of Cloud Storage are reported soon, as the library's own errors, and without secrets."""

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
from aiohttp import ClientTimeout
from gcs_scripted_server import HANG_UP, Reply, content, refusal, resource, scripted_server, success

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
    """Expect exactly this class, a message with the URI, and no secret in the whole traceback."""
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
    """Return a function that starts a server, which calls ``handle`` with each connection, on a free port."""
    with contextlib.ExitStack() as cleanup:

        def start(handle: Callable[[socket.socket], object]) -> int:
            listener = cleanup.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(50)
            cleanup.callback(listener.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=accept, args=(listener, handle), daemon=True).start()
            return listener.getsockname()[1]

        def accept(listener: socket.socket, handle: Callable[[socket.socket], object]) -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                cleanup.callback(connection.close)
                handle(connection)

        yield start


class TestServerThatIsDown:
    def test_an_operation_is_unavailable_within_twenty_seconds(self, closed_port):
        backend = GcsBackend(
            "gs://bucket/run", {"endpoint_url": f"http://127.0.0.1:{closed_port}", "token": "anon"}
        )
        started = time.monotonic()
        with refused(BackendUnavailableError, "trying again may help"):
            backend.create("key", b"data")
        assert time.monotonic() - started < 20

    @every_operation
    def test_every_operation_is_unavailable(self, closed_port, operation, hasty):
        options = {"endpoint_url": f"http://127.0.0.1:{closed_port}", "token": SECRET}
        with refused(BackendUnavailableError, "trying again may help"):
            operation(GcsBackend("gs://bucket/run", options))

    def test_deleting_a_thousand_keys_takes_no_longer_than_deleting_one(self, hasty):
        with scripted_server(lambda request: refusal(503, "backendError", "Backend Error")) as server:
            backend = GcsBackend("gs://bucket/run", server.options())
            with refused(BackendUnavailableError, "503 backendError.*of 1000 deletions"):
                backend.delete([str(number) for number in range(1000)])
        assert len(server.received) < 100


@pytest.mark.usefixtures("hasty")
class TestServerThatNeverAnswers:
    @every_operation
    def test_every_operation_is_unavailable_after_the_timeout_in_the_options(self, accepting, operation):
        port = accepting(lambda connection: None)
        options = {"token": SECRET, "endpoint_url": f"http://127.0.0.1:{port}", "requests_timeout": 0.1}
        with refused(BackendUnavailableError, "trying again may help"):
            operation(GcsBackend("gs://bucket/run", options))

    @pytest.mark.parametrize(
        "option",
        [{"requests_timeout": ClientTimeout(total=0.1)}, {"requests_timeout": 60, "timeout": 0.1}],
        ids=["aiohttp", "ours"],
    )
    def test_the_timeouts_in_the_options_are_respected(self, accepting, option):
        port = accepting(lambda connection: None)
        options = {"token": SECRET, "endpoint_url": f"http://127.0.0.1:{port}", **option}
        started = time.monotonic()
        with refused(BackendUnavailableError, "trying again may help"):
            GcsBackend("gs://bucket/run", options).get("key")
        assert time.monotonic() - started < 10

    def test_a_download_that_trickles_ends_after_the_timeout_in_the_options(self, accepting):
        def trickle(connection):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    connection.sendall(bytes(1000))
                    time.sleep(0.05)

        options = {"token": "anon", "endpoint_url": f"http://127.0.0.1:{accepting(trickle)}"}
        started = time.monotonic()
        with refused(BackendUnavailableError, "did not finish within .* trying again may help"):
            GcsBackend("gs://bucket/run", {**options, "requests_timeout": 0.5}).get("key")
        assert time.monotonic() - started < 10

    def test_a_token_server_that_never_answers_is_unavailable_after_one_attempt(
        self, accepting, service_account
    ):
        connections = []
        token = {**service_account, "token_uri": f"http://127.0.0.1:{accepting(connections.append)}/token"}
        with refused(BackendUnavailableError, "trying again may help"):
            GcsBackend("gs://bucket/run", {"token": token, "timeout": 0.5}).get("key")
        assert len(connections) == 1

    @pytest.mark.timeout(30)
    def test_an_upload_that_the_server_stops_reading_ends(self, accepting):
        port = accepting(lambda connection: connection.recv(1000))
        options = {"token": SECRET, "endpoint_url": f"http://127.0.0.1:{port}", "timeout": 0.3}
        with refused(BackendUnavailableError, "no answer in time"):
            GcsBackend("gs://bucket/run", options).create("key", bytes(32 << 20))


class TestSlowServer:
    def test_an_upload_survives_a_pause_longer_than_the_connect_timeout(self):
        options = {"requests_timeout": ClientTimeout(sock_connect=0.2)}

        def pause(request):
            time.sleep(1)
            return STORED

        # More than the buffers of both sockets hold.
        with scripted_server(pause) as server:
            GcsBackend("gs://bucket/run", {**server.options(), **options}).create("key", bytes(32 << 20))
        assert len(server.received) == 1


@pytest.mark.usefixtures("hasty")
class TestServerThatDiesDuringARequest:
    def test_a_download_that_breaks_off_is_unavailable(self, accepting):
        def break_off(connection):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbeginning")
            connection.close()

        options = {"token": "anon", "endpoint_url": f"http://127.0.0.1:{accepting(break_off)}"}
        with refused(BackendUnavailableError, "trying again may help"):
            GcsBackend("gs://bucket/run", options).get("key")

    @pytest.mark.parametrize("method", ["put", "create"])
    def test_an_upload_is_unavailable(self, method):
        with scripted_server(lambda request: HANG_UP) as server:
            backend = GcsBackend("gs://bucket/run", server.options())
            with refused(BackendUnavailableError, "trying again may help"):
                getattr(backend, method)("key", bytes(8 << 20))

    @every_write
    def test_an_upload_that_succeeds_after_two_failures_is_stored(self, operation):
        answers = iter([HANG_UP, refusal(503, "backendError", "Backend Error"), STORED])
        with scripted_server(lambda request: next(answers)) as server:
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.received) == 3

    def test_a_create_whose_answer_was_lost_finds_the_key_taken(self):
        answers = iter([HANG_UP, refusal(412, "conditionNotMet", "Precondition Failed")])
        with scripted_server(lambda request: next(answers)) as server, pytest.raises(ObjectExistsError):
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
    def test_an_operation_is_unavailable_after_four_attempts(self, answer, operation):
        with (
            scripted_server(lambda request: answer) as server,
            refused(BackendUnavailableError, "asks to slow down"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.received) == 4

    @pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504])
    def test_a_status_that_cloud_storage_says_to_retry_is_unavailable(self, status):
        with (
            scripted_server(lambda request: refusal(status, "backendError", "Backend Error")) as server,
            refused(BackendUnavailableError, f"{status} backendError"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")

    @pytest.mark.parametrize("status", [400, 405, 413, 501])
    def test_any_other_status_is_permanent_and_not_retried(self, status):
        with (
            scripted_server(lambda request: refusal(status, "invalid", "Invalid argument.")) as server,
            refused(BackendError, f"{status} invalid: Invalid argument"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")
        assert len(server.received) == 1

    def test_data_that_was_damaged_in_transit_is_sent_again(self):
        damaged = 'Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "mnG7TA==".'
        answers = iter([refusal(400, "invalid", damaged), STORED])
        with scripted_server(lambda request: next(answers)) as server:
            GcsBackend("gs://bucket/run", server.options()).put("key", b"data")


class TestMissingBucket:
    @every_operation
    def test_it_is_distinguished_from_a_missing_object_by_the_message(self, operation):
        answer = refusal(404, "notFound", "The specified bucket does not exist.")
        with (
            scripted_server(lambda request: answer) as server,
            refused(BackendNotFoundError, "bucket does not exist.*URI"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.received) == 1

    @every_operation
    def test_it_is_distinguished_from_a_missing_object_without_the_help_of_the_server(
        self, fake_gcs, operation
    ):
        backend = GcsBackend("gs://no-such-bucket/run", fake_gcs.place("any").storage_options)
        with pytest.raises(BackendNotFoundError, match=r"no-such-bucket.*bucket does not exist") as raised:
            operation(backend)
        assert not isinstance(raised.value, ObjectNotFoundError)

    def test_a_missing_object_is_reported_after_one_request(self):
        # The answer to a download is plain text.
        answer = Reply(404, b"No such object: bucket/run/key")
        with (
            scripted_server(lambda request: answer) as server,
            refused(ObjectNotFoundError, "gs://bucket/run/key: it does not exist"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")
        assert len(server.received) == 1

    @pytest.mark.parametrize("uri", ["gs://", "gs:///run"])
    def test_a_uri_without_a_bucket_is_refused(self, uri):
        with pytest.raises(BackendNotFoundError, match="names no bucket"):
            GcsBackend(uri, {"token": "anon"})


class TestWrongCredentials:
    @every_operation
    def test_the_error_does_not_show_them(self, operation):
        answer = refusal(401, "authError", "Invalid Credentials")
        with (
            scripted_server(lambda request: answer) as server,
            refused(BackendPermissionError, "not accepted.*expired.*clock.*Invalid Credentials"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options(token=f"ya29.{SECRET}")))
        # Once more after looking the credentials up again.
        sent = [request.headers["authorization"] for request in server.received]
        assert sent == [f"Bearer ya29.{SECRET}"] * 2

    def test_if_none_are_found_the_error_says_how_to_log_in(self):
        said = "Anonymous caller does not have storage.objects.get access to the Google Cloud Storage object."
        with (
            scripted_server(lambda request: refusal(401, "required", said)) as server,
            refused(BackendPermissionError, "no credentials were found.*application-default login"),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")

    @pytest.mark.parametrize("token", ["/no/such/key.json", "key.json", "~/key.json"])
    def test_a_missing_key_file_is_reported(self, token):
        with refused(BackendPermissionError, "token names a file that does not exist"):
            GcsBackend("gs://bucket/run", {"token": token})

    def test_a_file_that_is_no_key_file_is_refused(self, tmp_path):
        file = tmp_path / "key.json"
        file.write_text(f'{{"password": "{SECRET}"}}')
        with refused(BackendPermissionError, "no usable credentials.*application-default login"):
            GcsBackend("gs://bucket/run", {"token": str(file)})

    def test_missing_default_credentials_are_reported_when_the_backend_is_opened(self, monkeypatch, tmp_path):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
        with refused(BackendPermissionError, "no usable credentials.*GOOGLE_APPLICATION_CREDENTIALS"):
            GcsBackend("gs://bucket/run", {"token": "google_default"})


class TestTokenRenewal:
    def test_a_wrong_clock_is_reported(self, service_account):
        said = (
            b'{"error": "invalid_grant", "error_description": "Invalid JWT: Token must be a short-lived '
            b'token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT."}'
        )
        with scripted_server(lambda request: Reply(400, said)) as server:
            token = {**service_account, "token_uri": f"{server.url}/token"}
            with refused(
                BackendPermissionError, "could not be renewed.*reasonable timeframe.*clock is wrong"
            ):
                GcsBackend("gs://bucket/run", server.options(token=token)).get("key")
        assert {request.path for request in server.received} == {"/token"}

    def test_a_token_server_that_is_down_is_unavailable(self, service_account, closed_port, hasty):
        token = {**service_account, "token_uri": f"http://127.0.0.1:{closed_port}/token"}
        with refused(BackendUnavailableError, "could not be renewed.*trying again may help"):
            GcsBackend("gs://bucket/run", {"token": token}).get("key")

    def test_a_renewed_token_is_used(self, service_account):
        def answer(request):
            if request.path == "/token":
                return resource(access_token="fresh", expires_in=3600, token_type="Bearer")
            return content(b"data")

        with scripted_server(answer) as server:
            token = {**service_account, "token_uri": f"{server.url}/token"}
            backend = GcsBackend("gs://bucket/run", server.options(token=token))
            assert backend.get("key") == backend.get("key") == b"data"
        assert [request.path for request in server.received].count("/token") == 1
        assert server.received[-1].headers["authorization"] == "Bearer fresh"


class TestMissingPermissions:
    @pytest.mark.parametrize(
        ("operation", "permission"),
        [
            ("get", "storage.objects.get"),
            ("get of nothing", "storage.objects.get"),
            ("put", "storage.objects.create and, to replace an object, storage.objects.delete"),
            ("create", "storage.objects.create"),
            ("list", "storage.objects.list"),
            ("delete", "storage.objects.delete"),
        ],
    )
    def test_the_missing_permission_is_named(self, operation, permission):
        said = "a@b.iam.gserviceaccount.com does not have the access to the Google Cloud Storage object."
        with (
            scripted_server(lambda request: refusal(403, "forbidden", said)) as server,
            refused(BackendPermissionError, f"access denied. The account needs {permission} on the bucket"),
        ):
            OPERATIONS[operation](GcsBackend("gs://bucket/run", server.options(token=SECRET)))
        assert len(server.received) == 1

    def test_a_requester_pays_bucket_names_the_option_to_pass(self):
        said = "Bucket is a requester pays bucket but no user project provided."
        with (
            scripted_server(lambda request: refusal(400, "required", said)) as server,
            refused(BackendError, "Pass requester_pays="),
        ):
            GcsBackend("gs://bucket/run", server.options()).get("key")

    def test_the_project_that_pays_is_sent_with_every_request(self):
        with scripted_server(success) as server:
            backend = GcsBackend("gs://bucket/run", server.options(requester_pays="payer"))
            for operation in OPERATIONS.values():
                operation(backend)
        assert {request.query["userProject"] for request in server.received} == {"payer"}


class TestDeletionThatFailsPartly:
    @staticmethod
    def answer(request):
        if "/locked/" in request.path:
            return refusal(403, "retentionPolicyNotMet", "Object is subject to bucket's retention policy.")
        if "/gone/" in request.path:
            return refusal(404, "notFound", f"No such object: {request.path}")
        return Reply(204)

    def test_refused_deletions_are_counted_and_the_others_are_done(self):
        keys = ["locked/1", *(f"free/{number}" for number in range(100)), "gone/1", "locked/2"]
        with scripted_server(self.answer) as server:
            backend = GcsBackend("gs://bucket/run", server.options())
            with refused(
                BackendPermissionError, r"locked/1: .*retention policy.*\(2 of 103 deletions failed"
            ):
                backend.delete(keys)
        assert sorted(request.path for request in server.received) == sorted(
            f"/storage/v1/b/bucket/o/run/{key}" for key in keys
        )

    def test_an_unavailable_service_is_reported_before_a_refusal(self, hasty):
        def answer(request):
            if request.path.endswith("/late"):
                return refusal(503, "backendError", "Backend Error")
            return self.answer(request)

        with (
            scripted_server(answer) as server,
            refused(BackendUnavailableError, "late: 503.*2 of 2 deletions failed"),
        ):
            GcsBackend("gs://bucket/run", server.options()).delete(["locked/1", "late"])

    def test_objects_that_were_already_gone_are_no_failures(self):
        with scripted_server(self.answer) as server:
            GcsBackend("gs://bucket/run", server.options()).delete(["gone/1", "free/1", "gone/2"])


@pytest.mark.usefixtures("hasty")
class TestSecureConnections:
    def test_an_untrusted_certificate_is_a_permanent_error(self, tmp_path):
        write_self_signed_certificate(tmp_path / "server.pem")
        with (
            scripted_server(lambda request: STORED, tmp_path / "server.pem") as server,
            refused(BackendError, "certificate is not trusted.*self.signed.*SSL_CERT_FILE"),
        ):
            GcsBackend("gs://bucket/run", server.options(token=SECRET)).get("key")
        assert server.received == []

    def test_a_certificate_in_ssl_cert_file_is_trusted(self, tmp_path, monkeypatch):
        certificate = tmp_path / "server.pem"
        write_self_signed_certificate(certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with scripted_server(lambda request: content(b"data"), certificate) as server:
            assert GcsBackend("gs://bucket/run", server.options()).get("key") == b"data"

    def test_a_trusted_certificate_of_another_host_is_a_permanent_error(self, tmp_path, monkeypatch):
        certificate = tmp_path / "server.pem"
        write_self_signed_certificate(certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with scripted_server(lambda request: STORED, certificate) as server:
            options = server.options(endpoint_url=server.url.replace("127.0.0.1", "localhost"))
            with refused(BackendError, "certificate is not trusted"):
                GcsBackend("gs://bucket/run", options).get("key")
        assert server.received == []

    def test_a_server_without_tls_is_a_permanent_error(self):
        with scripted_server(lambda request: STORED) as server:
            options = server.options(endpoint_url=server.url.replace("http://", "https://"))
            with refused(BackendError, "no secure connection.*endpoint_url"):
                GcsBackend("gs://bucket/run", options).get("key")

    @pytest.mark.parametrize("size", [1, 65536], ids=["reset", "closed"])
    def test_a_connection_that_is_dropped_in_the_handshake_is_unavailable(self, accepting, size):
        port = accepting(lambda connection: (connection.recv(size), connection.close()))
        options = {"token": "anon", "endpoint_url": f"https://127.0.0.1:{port}"}
        with refused(BackendUnavailableError, "trying again may help"):
            GcsBackend("gs://bucket/run", options).get("key")


class TestServerThatIsNotCloudStorage:
    @pytest.mark.parametrize("operation", ["put", "create", "list"])
    def test_a_page_of_a_proxy_does_not_look_like_success(self, operation):
        with (
            scripted_server(lambda request: Reply(200, b"<html>Please log in</html>")) as server,
            refused(BackendUnavailableError, "the server answered .*proxy or a login page may have answered"),
        ):
            OPERATIONS[operation](GcsBackend("gs://bucket/run", server.options()))
        assert len(server.received) == 1

    @every_operation
    def test_a_redirect_is_not_followed(self, operation):
        def answer(request):
            return STORED if request.path == "/elsewhere" else Reply(302, location="/elsewhere")

        with (
            scripted_server(answer) as server,
            refused(BackendUnavailableError, "the server answered .*proxy or a login page may have answered"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))
        assert len(server.received) == 1

    @every_write
    def test_an_upload_whose_answer_names_no_object_has_failed(self, operation):
        with (
            scripted_server(lambda request: resource(status="ok")) as server,
            refused(BackendUnavailableError, "not with the stored object"),
        ):
            operation(GcsBackend("gs://bucket/run", server.options()))

    @pytest.mark.parametrize("url", ["127.0.0.1:9", "nonsense"])
    def test_an_endpoint_that_is_no_url_is_refused_when_the_backend_is_opened(self, url):
        with refused(BackendError, "endpoint_url must begin with"):
            GcsBackend("gs://bucket/run", {"token": "anon", "endpoint_url": url})

    def test_an_endpoint_without_a_host_is_a_permanent_error(self):
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
    def test_credentials_in_the_uri_are_refused_without_repeating_them(self, uri):
        with pytest.raises(BackendError, match="must not be part of the URI") as raised:
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

    def test_a_token_is_not_sent_to_google_to_ask_for_its_expiry(self, monkeypatch, closed_port):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port}")
        GcsBackend("gs://bucket/run", {"token": f"ya29.{SECRET}"})

    def test_a_token_in_the_url_of_a_failed_token_request_does_not_appear_in_errors(self, monkeypatch):
        def fail_as_newer_versions_of_gcsfs(**options):
            raise requests.exceptions.ConnectionError(f"with url: /tokeninfo?access_token={SECRET}")

        fail_as_newer_versions_of_gcsfs.protocol = ("gs", "gcs")
        monkeypatch.setattr("input_checkpoint_gcs.settings.GCSFileSystem", fail_as_newer_versions_of_gcsfs)
        with refused(BackendUnavailableError, "servers for credentials did not answer"):
            GcsBackend("gs://bucket/run", {})
