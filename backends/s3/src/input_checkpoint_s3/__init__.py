"""S3 backend for input-checkpoint."""

from input_checkpoint_s3.backend import S3Backend, open_s3

__all__ = ["S3Backend", "open_s3"]
