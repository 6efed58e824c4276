"""Suggests the URI that a user probably meant."""

from __future__ import annotations

import difflib
import re
from typing import Optional
from urllib.parse import parse_qs, unquote

from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.backends.schemes import BUILT_IN_SCHEMES, OFFICIAL_PLUGINS, SCHEME_PATTERN, is_known

NEAR_SCHEMES = {
    "s3n": "s3",
    "aws": "s3",
    "minio": "s3",
    "r2": "s3",
    "gc": "gs",
    "gcp": "gs",
    "google": "gs",
    "wasb": "abfs",
    "wasbs": "abfss",
    "azure": "abfs",
    "azblob": "abfs",
    "blob": "abfs",
    "adls": "abfs",
    "scp": "sftp",
    "sshfs": "sftp",
    "mem": "memory",
    "ram": "memory",
    "files": "file",
}
"""Schemes that other tools use or that people guess, and the one that serves the same storage here."""

_ADDRESS = re.compile(rf"({SCHEME_PATTERN})://([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?", re.DOTALL)
_AZURE_HOST = re.compile(r"([a-z0-9-]+)\.(?:blob|dfs)\.core\.[a-z.]+")
_S3_HOST = re.compile(r"(?:(.+)\.)?(s3(?:[.-][a-z0-9-]+)*\.[a-z0-9-]+\.[a-z]+)")
_AWS_HOST = re.compile(r".*\.amazonaws\.com(?:\.cn)?")
_R2_HOST = re.compile(r"(?:(.+)\.)?([0-9a-f]+(?:\.(?:eu|fedramp))?\.r2\.cloudflarestorage\.com)")
_AWS_CONSOLE = re.compile(r"(?:[a-z0-9-]+\.)*console\.(?:aws\.amazon\.com|amazonaws\.cn)")
_GCS_HOST = re.compile(r"(?:(.+)\.)?storage\.(?:googleapis|cloud\.google)\.com")
_GCS_CONSOLE = "console.cloud.google.com"


def did_you_mean(uri: str) -> Optional[str]:
    """Return the URI that was probably meant by one whose scheme no backend serves, or by a web address.

    Args:
        uri: with a scheme and ``://``.

    Returns:
        The URI, perhaps with an option to pass, without credentials. None if there is nothing to suggest.

    Example:
        >>> did_you_mean("gc://bucket/run-7")
        'gs://bucket/run-7'
        >>> did_you_mean("https://bucket.s3.eu-west-1.amazonaws.com/run-7")
        's3://bucket/run-7'
    """
    match = _ADDRESS.match(uri)
    if not match:
        return None
    scheme, host, path, query = match.group(1).lower(), match.group(2), match.group(3) or "", match.group(4)
    if scheme in ("http", "https"):
        server = f"{scheme}://{host.rpartition('@')[2].lower()}"
        return _meant_by_web_address(server, unquote(path).strip("/"), query or "")
    if is_known(scheme):
        return None
    if scheme in ("wasb", "wasbs"):
        return _meant_by_wasb(NEAR_SCHEMES[scheme], host, path)
    meant = NEAR_SCHEMES.get(scheme) or _closest(scheme)
    if meant is None:
        return None
    return redact_uri(f"{meant}://{'/' if meant == 'file' and host else ''}{host}{_below(path)}")


def _closest(scheme: str) -> Optional[str]:
    matches = difflib.get_close_matches(scheme, [*OFFICIAL_PLUGINS, *BUILT_IN_SCHEMES], n=1, cutoff=0.7)
    return matches[0] if matches else None


def _meant_by_wasb(scheme: str, authority: str, path: str) -> str:
    container, _, host = authority.rpartition("@")
    match = _AZURE_HOST.fullmatch(host.lower())
    if not match or ":" in container:
        return redact_uri(f"{scheme}://{authority}{_below(path)}")
    return redact_uri(
        f"{scheme}://{container or 'container'}@{match.group(1)}.dfs.core.windows.net{_below(path)}"
    )


def _meant_by_web_address(server: str, path: str, query: str) -> Optional[str]:
    host = server.partition("://")[2].partition(":")[0]
    return (
        _meant_by_google_address(host, path)
        or _meant_by_azure_address(host, path)
        or _meant_by_amazon_console(host, path, query)
        or _meant_by_s3_address(server, host, path)
    )


def _meant_by_google_address(host: str, path: str) -> Optional[str]:
    match = _GCS_HOST.fullmatch(host)
    if match:
        return _in_bucket("gs", match.group(1), path)
    if host == _GCS_CONSOLE and path.startswith("storage/browser/"):
        # The console adds its own settings behind a semicolon.
        return _in_bucket("gs", None, path[len("storage/browser/") :].partition(";")[0])
    return None


def _meant_by_azure_address(host: str, path: str) -> Optional[str]:
    match = _AZURE_HOST.fullmatch(host)
    if not match:
        return None
    container, _, prefix = path.partition("/")
    return f"abfs://{container or 'container'}@{match.group(1)}.dfs.core.windows.net{_below(prefix)}"


def _meant_by_amazon_console(host: str, path: str, query: str) -> Optional[str]:
    if not _AWS_CONSOLE.fullmatch(host) or not path.startswith("s3/"):
        return None
    prefix = parse_qs(query).get("prefix", [""])[0].strip("/")
    return f"s3://{path.rpartition('/')[2]}{_below(prefix)}"


def _meant_by_s3_address(server: str, host: str, path: str) -> Optional[str]:
    match = _R2_HOST.fullmatch(host) or _S3_HOST.fullmatch(host)
    if not match:
        return None
    bucket, endpoint = match.groups()
    meant = _in_bucket("s3", bucket, path)
    if _AWS_HOST.fullmatch(host):
        return meant
    return f"{meant} with storage_options={{'endpoint_url': '{server.replace(host, endpoint)}'}}"


def _in_bucket(scheme: str, bucket: Optional[str], path: str) -> str:
    return f"{scheme}://{bucket}{_below(path)}" if bucket else f"{scheme}://{path or 'bucket'}"


def _below(path: str) -> str:
    return f"/{path}" if path else ""
