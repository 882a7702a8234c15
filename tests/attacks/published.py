"""The settings of iLRG's published logs, as far as there is data: networks, batches and scores.

The logs use MNIST and CIFAR-100. MNIST is here; for CIFAR-100 stand CIFAR-10 images with uniform
random labels of 100 classes, which is fair for untrained networks only: they cannot tell classes
of images apart any better. Batches are drawn uniformly, as in the logs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradguard.attacks import Attack, Knowledge, Observation
from tests.attacks import mnist
from tests.attacks.models import gradient

TRAINING = 3000  # the images before this one train the networks that are trained,
AUXILIARY = 500  # as many after them are the attacker's, and the others the victims'


@dataclass(frozen=True)
class Scores:
    """The logs' three scores, averaged over batches.

    Args:
        presence: LeAcc, the share of classes whose presence is right.
        exact: LnAcc, the share of classes whose count is right.
        overlap: IRec, the share of the batch's labels that are recovered.
    """

    presence: float
    exact: float
    overlap: float


def scores(found: Tensor | np.ndarray, counts: np.ndarray) -> Scores:
    """Scores of counts ``found`` where the true ones are ``counts``."""
    guessed = np.asarray(found)
    return Scores(
        presence=float(((guessed > 0) == (counts > 0)).mean()),
        exact=float((guessed == counts).mean()),
        overlap=float((np.minimum(guessed, counts).sum(axis=1) / counts.sum(axis=1)).mean()),
    )


@cache  # trained once for all that attack it; attacks leave a model as it is
def mnist_network(seed: int, *, steps: int = 0) -> nn.Module:
    """Three fully connected layers with ReLU, after some steps of SGD on the first images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
    if steps:
        pixels, labels = mnist.images()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            rows = torch.from_numpy(rng.integers(0, TRAINING, 64))
            for name, gradient_of in gradient(model, pixels[rows], labels[rows]).items():
                model.get_parameter(name).grad = gradient_of
            optimizer.step()
    return model


def cifar() -> tuple[Tensor, Tensor]:
    """5,000 colour images in [0, 1], and uniform labels of 100 classes; skips without images."""
    path = Path(os.environ.get("GRADGUARD_DATA", "")) / "cifar10-train5000.npz"
    if "GRADGUARD_DATA" not in os.environ or not path.exists():
        pytest.skip(f"GRADGUARD_DATA does not name a folder with {path.name}")
    with np.load(path) as found:
        pixels = torch.from_numpy(found["images"]).float().div(255).permute(0, 3, 1, 2)
    return pixels, torch.from_numpy(np.random.default_rng(0).integers(0, 100, len(pixels)))


def cifar_network(seed: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """Three convolutions and a head of 100 classes, in the place of the logs' LeNet5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 3
        for stride in (2, 2, 1):
            layers += [nn.Conv2d(channels, 12, 5, padding=2, stride=stride), activation()]
            channels = 12
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 100))


def observed(
    model: nn.Module, images: tuple[Tensor, Tensor], size: int, *, batches: int, seed: int
) -> tuple[list[Observation], np.ndarray]:
    """Uniformly drawn batches of victims' images: messages and label counts."""
    pixels, labels = images
    classes = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    seen, counts = [], []
    for _ in range(batches):
        victims = np.arange(TRAINING + AUXILIARY, len(pixels))
        rows = torch.from_numpy(rng.choice(victims, size, replace=False))
        seen.append(Observation(gradient(model, pixels[rows], labels[rows]), size, classes))
        counts.append(np.bincount(labels[rows].numpy(), minlength=classes))
    return seen, np.stack(counts)


def measure(
    attack: Attack,
    network: Callable[[int], nn.Module],
    images: tuple[Tensor, Tensor],
    size: int,
    *,
    models: int = 20,
    batches: int = 2,
) -> Scores:
    """An attack's scores over several networks; its auxiliary data trained none of them."""
    found, true = [], []
    for seed in range(models):
        model = network(seed)
        seen, counts = observed(model, images, size, batches=batches, seed=seed)
        own = slice(TRAINING, TRAINING + AUXILIARY)
        auxiliary = images[0][own], images[1][own]
        known = Knowledge(model=model, auxiliary=auxiliary, num_classes=counts.shape[1])
        found.append(attack.fit(known).infer(seen).numpy())
        true.append(counts)
    return scores(np.concatenate(found), np.concatenate(true))
