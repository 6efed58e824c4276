"""The bucket that the places of an S3 server are in."""

from __future__ import annotations

import s3fs

from integration.servers.server import Place


def make_bucket(place: Place) -> None:
    """Make the bucket of a place unless it is there."""
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **place.storage_options)
    bucket = filesystem.split_path(place.uri)[0]
    if not filesystem.exists(bucket):
        filesystem.call_s3("create_bucket", Bucket=bucket)
