"""Azure Blob Storage backend for input-checkpoint."""

from input_checkpoint_azure.backend import AzureBackend, open_azure

__all__ = ["AzureBackend", "open_azure"]
