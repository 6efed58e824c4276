"""Google Cloud Storage backend for input-checkpoint, over gcsfs."""

from input_checkpoint_gcs.backend import GcsBackend, open_gcs

__all__ = ["GcsBackend", "open_gcs"]
