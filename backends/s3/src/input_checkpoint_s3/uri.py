"""URIs of places in S3."""

from __future__ import annotations

from input_checkpoint.backends.object_store import parse_bucket_uri


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Return the bucket, and the prefix of all names: empty, or with a slash at its end.

    Raises:
        BackendNotFoundError: the URI names no bucket, or holds credentials.

    Example:
        >>> parse_s3_uri("s3://bucket/run-7/input")
        ('bucket', 'run-7/input/')
    """
    return parse_bucket_uri(uri, login="storage_options or the configuration of the AWS tools")
