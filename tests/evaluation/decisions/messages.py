"""A small model, its auxiliary data and its messages, shared by the tests of scan and monitor."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gradguard import Defense
from gradguard.evaluation import load_digits

NONE = Defense("none", transform=[])
DIGITS = load_digits()
AUXILIARY = replace(
    DIGITS, name="auxiliary", images=DIGITS.images[:700], labels=DIGITS.labels[:700]
)
BATCH = 8


def net(seed: int = 0) -> nn.Module:
    """A small classifier of digits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def victims(number: int = BATCH, start: int = 900) -> tuple[Tensor, Tensor]:
    """Images and labels that are not in the auxiliary data."""
    rows = slice(start, start + number)
    return DIGITS.images[rows], DIGITS.labels[rows]


def message(
    model: nn.Module, defense: Defense = NONE, *, number: int = BATCH, start: int = 900
) -> dict[str, Tensor]:
    """What one client sends."""
    return defense.client(model, batch_size=number, seed=5)(*victims(number, start))
