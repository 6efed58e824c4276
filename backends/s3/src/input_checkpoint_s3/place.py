"""Where in S3 a backend is: what its URI says."""

from __future__ import annotations

from input_checkpoint.backends.redaction import redact
from input_checkpoint.errors import BackendNotFoundError


def bucket_and_prefix(uri: str) -> tuple[str, str]:
    """Return the bucket, and the prefix of all names with a slash at its end, or nothing.

    >>> bucket_and_prefix("s3://bucket/run-7/input")
    ('bucket', 'run-7/input/')

    Raises:
        BackendNotFoundError: the URI names no bucket, or holds credentials.
    """
    bucket, _, prefix = uri.partition("://")[2].lstrip("/").partition("/")
    if "@" in bucket or ":" in bucket:
        raise BackendNotFoundError(
            f"{redact(uri)}: credentials do not belong into the URI. Write s3://bucket/prefix, and pass "
            "storage_options or use the AWS tools' configuration."
        )
    if not bucket:
        raise BackendNotFoundError(f"{redact(uri)} names no bucket. Write s3://bucket/prefix.")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
