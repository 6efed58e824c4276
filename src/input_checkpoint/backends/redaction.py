"""What backends need to keep credentials out of messages. See the package `input_checkpoint.redaction`."""

from input_checkpoint.redaction.redactor import excerpt, redact, remember_secrets
from input_checkpoint.redaction.uris import redact_location, redact_uri

__all__ = ["excerpt", "redact", "redact_location", "redact_uri", "remember_secrets"]
