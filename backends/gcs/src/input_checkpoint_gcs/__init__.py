"""Google Cloud Storage backend for input-checkpoint, with the options of gcsfs."""

from input_checkpoint_gcs.backend import GcsBackend, open_gcs

__all__ = ["GcsBackend", "open_gcs"]
