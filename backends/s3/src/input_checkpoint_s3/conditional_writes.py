"""Checks that the installed botocore sends the condition of a create."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from input_checkpoint.errors import BackendError


def check_client_sends_conditions(client: Any, uri: str) -> None:
    """Refuse a client that would store an object without its condition.

    s3fs silently leaves out parameters that botocore does not know. Then every writer would believe
    that it committed.

    Args:
        client: of botocore or aiobotocore, for S3.
        uri: of the backend, for the message.

    Raises:
        BackendError: the client does not know ``If-None-Match`` on PutObject.
    """
    parameters = client.meta.service_model.operation_model("PutObject").input_shape.members
    if "IfNoneMatch" in parameters:
        return
    installed = ", ".join(f"{name} {version(name)}" for name in ("botocore", "aiobotocore", "s3fs"))
    raise BackendError(
        f"cannot open {uri}: the installed client does not know If-None-Match on PutObject, so two writers "
        f"could both believe that they committed ({installed}). Install a newer one: pip install --upgrade "
        "'s3fs>=2024.10' 'aiobotocore>=2.14' 'botocore>=1.35.2'",
        uri=uri,
    )
