"""SFTP backend for input-checkpoint, over asyncssh."""

from input_checkpoint_sftp.backend import SftpBackend, open_sftp

__all__ = ["SftpBackend", "open_sftp"]
