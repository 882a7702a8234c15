"""What a private training refuses to do."""

from __future__ import annotations


class UnclippedGradientError(RuntimeError):
    """The sum to be noised is longer than clipped gradients can make it; nothing was released."""


class LostAccountingError(RuntimeError):
    """More was released than the ledger knows; no epsilon can be stated."""
