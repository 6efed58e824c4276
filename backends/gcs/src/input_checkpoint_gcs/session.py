"""A session of google-auth that can send large uploads over slow connections."""

from __future__ import annotations

import contextlib
import ssl
from importlib.metadata import version
from typing import Any

import requests
from google.auth.exceptions import GoogleAuthError
from google.auth.transport import mtls
from google.auth.transport.requests import AuthorizedSession, Request
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from input_checkpoint_gcs.settings import GcsSettings

_POOL_SIZE = 64
"""Connections that are kept open: enough for uploads, reads and parallel deletes at the same time."""


def open_session(settings: GcsSettings) -> AuthorizedSession:
    """Return a session with credentials, TLS and proxy as ``settings`` say. Sends nothing."""
    # No refresh after a 401: it would hide what the server says about a token that cannot be renewed.
    session = AuthorizedSession(settings.credentials, refresh_status_codes=())
    # Otherwise requests takes a password from ~/.netrc in place of the token.
    session.trust_env = False
    session.proxies.update(settings.proxies)
    adapter = _Adapter(_tls_context(settings.endpoint), settings.stall_timeout)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def refresh_token(settings: GcsSettings) -> None:
    """Replace the token of a credentials object. Keep it if the object cannot get another one."""
    with requests.Session() as session, contextlib.suppress(GoogleAuthError):
        session.proxies.update(settings.proxies)
        settings.credentials.refresh(Request(session))


class _Adapter(HTTPAdapter):
    """Has its own TLS settings, and lets a server pause while it reads an upload.

    Args:
        tls: the TLS settings.
        stall: seconds that the server may accept no data.
    """

    def __init__(self, tls: ssl.SSLContext, stall: float) -> None:
        self._tls = tls
        self._pools = _pool_classes(stall)
        super().__init__(pool_maxsize=_POOL_SIZE)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **{**kwargs, "ssl_context": self._tls})
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> PoolManager:
        manager: PoolManager = super().proxy_manager_for(proxy, **{**kwargs, "ssl_context": self._tls})
        manager.pool_classes_by_scheme = self._pools
        return manager


def _tls_context(endpoint: str) -> ssl.SSLContext:
    # It trusts the authorities of the operating system and of SSL_CERT_FILE. requests alone ignores both.
    context = ssl.create_default_context()
    if version("urllib3").startswith("1."):
        # It compares the host name with the certificate itself, and cannot connect to an IP address if the
        # context does so too: urllib3/util/ssl_.py, `ssl_wrap_socket`.
        context.check_hostname = False
    # Older versions of google-auth, and of gcsfs, do not support client certificates.
    load_client_certificate = getattr(mtls, "load_default_client_cert", None)
    if load_client_certificate is not None and endpoint.startswith("https://"):
        load_client_certificate(context)
    return context


def _pool_classes(stall: float) -> dict[str, type[HTTPConnectionPool]]:
    """Return urllib3's classes, changed so that sending may stall for ``stall`` seconds.

    urllib3 applies the timeout for connecting to sending as well: a server that pauses for five seconds would
    break an upload.
    """

    class PatientConnection(HTTPConnection):
        def send(self, data: Any) -> None:
            if self.sock is not None:
                self.sock.settimeout(stall)
            super().send(data)

    class PatientTlsConnection(HTTPSConnection):
        def send(self, data: Any) -> None:
            if self.sock is not None:
                self.sock.settimeout(stall)
            super().send(data)

    class PatientPool(HTTPConnectionPool):
        ConnectionCls = PatientConnection

    class PatientTlsPool(HTTPSConnectionPool):
        ConnectionCls = PatientTlsConnection

    return {"http": PatientPool, "https": PatientTlsPool}
