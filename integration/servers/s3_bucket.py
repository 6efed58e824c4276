"""The bucket that contains all locations of an S3 server."""

from __future__ import annotations

import s3fs

from integration.servers.server import Place


def make_bucket(place: Place) -> None:
    """Create the bucket of a location unless it exists."""
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **place.storage_options)
    bucket = filesystem.split_path(place.uri)[0]
    if not filesystem.exists(bucket):
        filesystem.call_s3("create_bucket", Bucket=bucket)
