"""What is raised for bytes that are no message, and for messages that are too large to be one."""

from __future__ import annotations


class WireError(ValueError):
    """These bytes cannot be decoded, or this message cannot be encoded; the text says why."""
