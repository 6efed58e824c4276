"""Requests to the JSON API of Cloud Storage, through the session and credentials of a gcsfs filesystem."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Optional

import tenacity
from aiohttp import ClientTimeout
from fsspec.asyn import sync
from gcsfs.core import GCSFileSystem

from input_checkpoint_gcs.errors import GcsError, answered_error, is_unavailable, is_worth_repeating

_IN_PARALLEL = 16
"""Requests of one `call_each` at a time. aiohttp's pool has 100 connections, so six of them fit."""

_ATTEMPTS = 4
# Two to three seconds in all: an object may be written once a second, and the 429 for more is over by then
# (https://cloud.google.com/storage/quotas#objects).
_PAUSE = tenacity.wait_exponential(multiplier=0.25, max=4) + tenacity.wait_random(0, 0.5)

_CONNECT = 10.0
_ANSWER = 60.0
_MIN_UPLOAD_BYTES_PER_SECOND = 64 * 1024
"""Bytes a second. aiohttp watches reading, not writing: a server that reads no more would stop a save
for good."""


@dataclass(frozen=True)
class Request:
    """One request to the JSON API."""

    method: str
    path: str
    """From the root of the endpoint, already quoted."""
    params: Mapping[str, Optional[str]] = field(default_factory=dict)
    """Those that are None are left out."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Optional[bytes] = None


@dataclass(frozen=True)
class Answer:
    """What the server said to a request that it has carried out."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the resource in the body; raises `GcsError` if there is none."""
        try:
            resource = json.loads(self.body)
        except ValueError:
            resource = None
        if not isinstance(resource, dict):
            raise GcsError(self.status, "notAResource", "the answer is not from Cloud Storage")
        return resource


class GcsClient:
    """Sends requests, a few times if need be, and says what the server answered.

    gcsfs brings the credentials, the session and the event loop. Its own `_request` is not used: it throws
    away the body of a 404, which alone tells a missing object from a missing bucket, and its number of
    attempts is fixed by a decorator, so that a server that is down is an error only after 32 seconds.

    Args:
        filesystem: opened and not shared. Its ``requests_timeout`` replaces the time-outs here; its
            ``timeout`` bounds a whole call.

    Example:
        ```python
        client = GcsClient(GCSFileSystem(token="anon", endpoint_url="http://127.0.0.1:4443"))
        client.call(Request("GET", "/storage/v1/b/bucket/o")).json()
        ```
    """

    def __init__(self, filesystem: GCSFileSystem) -> None:
        self._fs = filesystem

    def call(self, request: Request) -> Answer:
        """Send a request and return the answer; raises `GcsError`, or what aiohttp and google-auth raise."""
        answer: Answer = sync(self._fs.loop, self._send, request, timeout=self._fs.timeout)
        return answer

    def call_each(self, requests: Sequence[Request]) -> dict[int, Exception]:
        """Send many requests, some at a time. Return what went wrong, by place in ``requests``.

        One that finds the service unavailable ends it: the others would only wait for the same answer.
        """
        failures: dict[int, Exception] = {}
        sync(self._fs.loop, self._send_each, requests, failures, timeout=self._fs.timeout)
        return dict(sorted(failures.items()))

    def close(self) -> None:
        """Close the connections."""
        if self._fs.session is not None:
            sync(self._fs.loop, self._fs.session.close)

    async def _send_each(self, requests: Sequence[Request], failures: dict[int, Exception]) -> None:
        waiting = iter(enumerate(requests))
        workers = [self._send_some(waiting, failures) for _ in range(min(_IN_PARALLEL, len(requests)))]
        await asyncio.gather(*workers)

    async def _send_some(
        self, waiting: Iterator[tuple[int, Request]], failures: dict[int, Exception]
    ) -> None:
        for place, request in waiting:
            if any(is_unavailable(error) for error in failures.values()):
                return
            try:
                await self._send(request)
            except Exception as error:
                failures[place] = error

    async def _send(self, request: Request) -> Answer:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_worth_repeating),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=_PAUSE,
            reraise=True,
        )
        answer: Answer = await retrying(self._send_once, request)
        return answer

    async def _send_once(self, request: Request) -> Answer:
        session = await self._fs._set_session()
        async with session.request(
            request.method,
            self._fs._location.rstrip("/") + request.path,
            params=self._fs._get_params(request.params),
            headers=await self._headers(request),
            # A file object, since aiohttp writes plain bytes in one go and holds up its event loop.
            data=None if request.body is None else BytesIO(request.body),
            timeout=self._timeout(request),
            # A followed redirect turns a POST into a GET, and its 200 would pass for a stored object.
            allow_redirects=False,
        ) as response:
            body = await response.read()
            if not 200 <= response.status < 300:
                raise answered_error(response.status, body)
            return Answer(response.status, body)

    async def _headers(self, request: Request) -> dict[str, str]:
        # gcsfs renews a token here, with blocking calls that would hold up everybody on the event loop.
        headers: dict[str, str] = await asyncio.wait_for(
            asyncio.to_thread(self._fs._get_headers, dict(request.headers)), _ANSWER
        )
        return headers

    def _timeout(self, request: Request) -> ClientTimeout:
        chosen = self._fs.requests_timeout
        if chosen is not None:
            return chosen if isinstance(chosen, ClientTimeout) else ClientTimeout(total=chosen)
        upload = None if request.body is None else _ANSWER + len(request.body) / _MIN_UPLOAD_BYTES_PER_SECOND
        return ClientTimeout(total=upload, sock_connect=_CONNECT, sock_read=_ANSWER)
