"""URIs of places in S3."""

from __future__ import annotations

import re

from input_checkpoint.backends.object_store import parse_bucket_uri
from input_checkpoint.backends.redaction import redact_uri
from input_checkpoint.errors import BackendNotFoundError

_LOGIN = "storage_options or the configuration of the AWS tools"

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-naming.html, and for S3 on Outposts
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3onoutposts.html
_ARN_START = "s3[a-z-]*:[a-z0-9-]*:[0-9]{12}"
_ACCESS_POINT = re.compile(
    rf"(arn:[a-z-]+:{_ARN_START}:(?:outpost[:/][^:/]+[:/])?accesspoint[:/][^:/]+)(?:/(.*))?", re.DOTALL
)


def parse_s3_uri(uri: str) -> tuple[str, str]:
    """Return the bucket, and the prefix of all names: empty, or with a slash at its end.

    Args:
        uri: ``s3://bucket/prefix``. The ARN of an access point may take the place of the bucket.

    Raises:
        BackendNotFoundError: the URI names no bucket, or holds credentials.

    Example:
        >>> parse_s3_uri("s3://bucket/run-7/input")
        ('bucket', 'run-7/input/')
        >>> parse_s3_uri("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/training/run-7")
        ('arn:aws:s3:eu-west-1:123456789012:accesspoint/training', 'run-7/')
    """
    address = uri.partition("://")[2]
    if not is_arn(address):
        return parse_bucket_uri(uri, login=_LOGIN)
    match = _ACCESS_POINT.fullmatch(address)
    if not match:
        shown = redact_uri(uri)
        raise BackendNotFoundError(
            f"{shown} does not contain the ARN of an access point. Write "
            "s3://arn:aws:s3:region:account:accesspoint/name/prefix.",
            uri=shown,
        )
    prefix = (match.group(2) or "").strip("/")
    return match.group(1), f"{prefix}/" if prefix else ""


def is_arn(bucket: str) -> bool:
    """Return whether an ARN takes the place of the bucket."""
    return bucket.startswith("arn:")


def is_access_point(bucket: str) -> bool:
    """Return whether an access point takes the place of the bucket: its ARN, or its alias.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-points-naming.html
    """
    return is_arn(bucket) or bucket.endswith(("-s3alias", "--ol-s3"))
