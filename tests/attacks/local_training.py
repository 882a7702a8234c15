"""Clients that train locally, trained models, and colour images, for the tests of attacks."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradguard.attacks.composition import draw_counts
from gradguard.attacks.threat import Observation


def cifar() -> tuple[Tensor, Tensor]:
    """5,000 CIFAR-10 images in [0, 1] and their labels; skips the test where there are none."""
    path = Path(os.environ.get("GRADGUARD_DATA", "")) / "cifar10-train5000.npz"
    if "GRADGUARD_DATA" not in os.environ or not path.exists():
        pytest.skip(f"GRADGUARD_DATA does not name a folder with {path.name}")
    with np.load(path) as found:
        pixels = torch.from_numpy(found["images"]).float().div(255).permute(0, 3, 1, 2)
        return pixels.contiguous(), torch.from_numpy(found["labels"].astype(np.int64))


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """A copy after ``steps`` of SGD with momentum on batches of 64."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (64,), generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def local_change(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], rate: float, momentum: float = 0.0
) -> Observation:
    """What a client sends that takes one step of SGD on each of ``batches`` in turn.

    The labels counted are those of all batches, each object once: a client that repeats its data
    passes the same pair several times.
    """
    end = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(end.parameters(), lr=rate, momentum=momentum)
    for inputs, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(end(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = dict(end.named_parameters())
    update = {n: (p - after[n]).detach() for n, p in model.named_parameters()}
    examples = sum({id(x): len(x) for x, _ in batches}.values())
    logits = model(batches[0][0])
    return Observation(update, examples, logits.shape[1], len(batches), rate)


def draw(
    inputs: Tensor, labels: Tensor, size: int, composition: str, rng: np.random.Generator
) -> tuple[Tensor, Tensor, np.ndarray]:
    """A batch of these examples, its labels and its label counts over ten classes."""
    counts = draw_counts(composition, 10, size, rng)
    found = labels.numpy()
    rows = [
        rng.choice(np.flatnonzero(found == c), n, replace=n > (found == c).sum())
        for c, n in enumerate(counts)
    ]
    chosen = torch.from_numpy(np.concatenate(rows))
    return inputs[chosen], labels[chosen], counts
