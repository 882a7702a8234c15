"""Real images for the slow tests, from the folder that GRADGUARD_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradguard.attacks.composition import draw_counts

AUXILIARY = 5000  # the images before this one are the attacker's, the others the victims'


def images() -> tuple[Tensor, Tensor]:
    """8,000 images in [0, 1] and their labels; skips the test where there are none."""
    path = Path(os.environ.get("GRADGUARD_DATA", "")) / "mnist-t10k-first8000.npz"
    if "GRADGUARD_DATA" not in os.environ or not path.exists():
        pytest.skip(f"GRADGUARD_DATA does not name a folder with {path.name}")
    with np.load(path) as found:
        pixels = torch.from_numpy(found["images"]).float().div(255)[:, None]
        return pixels, torch.from_numpy(found["labels"].astype(np.int64))


def network(seed: int, *, sigmoid: bool) -> nn.Module:
    """The LLG paper's three convolutions; with sigmoid, parameters U(-0.5, 0.5) as its authors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 1
        for stride in (2, 2, 1):
            layers += [nn.Conv2d(channels, 12, 5, padding=2, stride=stride)]
            layers += [nn.Sigmoid() if sigmoid else nn.ReLU()]
            channels = 12
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(588, 10))
        if sigmoid:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.uniform_(-0.5, 0.5)
    return model


def victim_batch(
    pixels: Tensor, labels: Tensor, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, np.ndarray]:
    """A skewed batch of victims' images, its labels and its label counts."""
    counts = draw_counts("skewed", 10, size, rng)
    rows = []
    for label, number in enumerate(counts):
        members = AUXILIARY + np.flatnonzero(labels[AUXILIARY:].numpy() == label)
        rows.append(rng.choice(members, number, replace=False))
    chosen = torch.from_numpy(np.concatenate(rows))
    return pixels[chosen], labels[chosen], counts
