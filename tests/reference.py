"""Slow and obvious versions of what the library does fast, in plain Python."""

from __future__ import annotations

import math


def top_k(values: list[float], count: int) -> list[float]:
    """Keep ``count`` values of largest magnitude; among equals the first."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    kept = set(order[:count])
    return [v if i in kept else 0.0 for i, v in enumerate(values)]


def l2_norm(values: list[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))
