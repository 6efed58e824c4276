"""Requests to the JSON API of Cloud Storage."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable, Optional

import requests
import tenacity

from input_checkpoint.backends.time_limits import Deadline, run_in_thread
from input_checkpoint.parallel import DaemonExecutor
from input_checkpoint_gcs.answers import Answer
from input_checkpoint_gcs.errors import is_unavailable, is_worth_repeating, read_answer
from input_checkpoint_gcs.session import open_session
from input_checkpoint_gcs.settings import GcsSettings

_PARALLEL_REQUESTS = 16
_ATTEMPTS = 4
# Two to three seconds in all: an object may be written once a second, and the 429 for more is over by then
# (https://cloud.google.com/storage/quotas#objects).
_PAUSE = tenacity.wait_exponential(multiplier=0.25, max=4) + tenacity.wait_random(0, 0.5)
# A block is sent within the time that the server may stall.
_SENT_BLOCK = 256 * 1024
_RECEIVED_BLOCK = 1 << 20


@dataclass(frozen=True)
class Request:
    """One request to the JSON API."""

    method: str
    path: str
    """From the root of the endpoint, already quoted."""
    params: Mapping[str, Optional[str]] = field(default_factory=dict)
    """Parameters that are None are left out."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Optional[Sequence[bytes]] = None
    """In parts, so that large ones need not be copied."""

    @property
    def upload_bytes(self) -> int:
        """Size of the body."""
        return sum(map(len, self.body or ()))


class GcsClient:
    """Sends requests, and repeats those that may succeed a moment later.

    It may be used from several threads.

    Args:
        settings: where requests go, and with which credentials.

    Example:
        ```python
        client = GcsClient(read_settings("gs://bucket", {"token": "anon"}))
        client.call(Request("GET", "/storage/v1/b/bucket/o")).body
        ```
    """

    def __init__(self, settings: GcsSettings) -> None:
        self.settings = settings
        self._session = open_session(settings)

    def call(self, request: Request) -> Answer:
        """Send a request and return the answer.

        Raises:
            GcsError: the server refuses the request.
            TimeLimitExceededError: the request and its repetitions took too long.
            requests.exceptions.RequestException: there is no answer.
            google.auth.exceptions.GoogleAuthError: there is no access token.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_worth_repeating),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=_PAUSE,
            reraise=True,
        )
        deadline = self.settings.limits.start(request.upload_bytes)
        return run_in_thread(lambda: retrying(self._send, request, deadline), deadline)

    @staticmethod
    def run_each(requests: Sequence[Callable[[], object]]) -> dict[int, Exception]:
        """Send requests in parallel. Return the failures by index in ``requests``.

        After one that finds the service unavailable, the rest is not sent: it would wait for the same answer.

        Args:
            requests: each sends one request through a client.
        """
        failures: dict[int, Exception] = {}
        stopped = threading.Event()

        def call(index: int) -> None:
            if stopped.is_set():
                return
            try:
                requests[index]()
            except Exception as error:
                failures[index] = error
                if is_unavailable(error):
                    stopped.set()

        with DaemonExecutor(_PARALLEL_REQUESTS, "input-checkpoint-gcs") as executor:
            try:
                list(executor.map(call, range(len(requests))))
            finally:
                stopped.set()
        return dict(sorted(failures.items()))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _send(self, request: Request, deadline: Deadline) -> Answer:
        settings = self.settings
        with self._session.request(
            request.method,
            settings.endpoint + request.path,
            params={**request.params, "userProject": settings.user_project},
            data=None if request.body is None else _UploadBody(request.body),
            headers=dict(request.headers),
            timeout=(settings.connect_timeout, settings.stall_timeout),
            # Following a redirect turns a POST into a GET, whose 200 would look like a stored object.
            allow_redirects=False,
            stream=True,
        ) as response:
            body = b"".join(_received(response, deadline))
            _check_complete(response, body)
            if not 200 <= response.status_code < 300:
                raise read_answer(response.status_code, body)
            headers = {name.lower(): value for name, value in response.headers.items()}
            # requests has already decoded the body.
            headers.pop("content-encoding", None)
            return Answer(response.status_code, body, headers)


def _check_complete(response: requests.Response, body: bytes) -> None:
    """Raise ConnectionError if a download has broken off. urllib3 does so only from version 2 on."""
    declared = response.headers.get("Content-Length", "")
    encoded = "Content-Encoding" in response.headers
    if declared.isdigit() and not encoded and len(body) < int(declared):
        raise requests.exceptions.ConnectionError(f"the answer ended after {len(body)} of {declared} bytes")


def _received(response: requests.Response, deadline: Deadline) -> Iterator[bytes]:
    for block in response.iter_content(_RECEIVED_BLOCK):
        deadline.extend(len(block))
        yield block


class _UploadBody:
    """The body of an upload, in blocks."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            for start in range(0, len(part), _SENT_BLOCK):
                yield part[start : start + _SENT_BLOCK]
