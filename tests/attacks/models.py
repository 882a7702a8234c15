"""Small models, data and gradients that the attack tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks.threat import Knowledge, Observation

CLASSES = 4
SIDE = 8


class FlatModel(nn.Module):
    """A linear classifier on flattened inputs: an output layer and nothing else."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(SIDE * SIDE, CLASSES, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(inputs.flatten(1))
        return out


def cnn(
    seed: int = 0, *, classes: int = CLASSES, bias: bool = True, sigmoid: bool = False
) -> nn.Sequential:
    """Two convolutions and a head; with ``sigmoid`` the parameters are U(-0.5, 0.5)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        act = nn.Sigmoid if sigmoid else nn.ReLU
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, stride=2),
            act(),
            nn.Conv2d(6, 6, 3, padding=1, stride=2),
            act(),
            nn.Flatten(),
            nn.Linear(24, classes, bias=bias),
        )
        if sigmoid:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.uniform_(-0.5, 0.5)
    return model


def data(examples: int, seed: int = 0, *, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Noisy images in [0, 1] of a pattern per class; every class in turn."""
    patterns = torch.rand(classes, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(examples) % classes
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(examples, 1, SIDE, SIDE, generator=rng)
    return 0.7 * patterns[labels] + 0.3 * noise, labels


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The undefended message: the gradient of the mean cross-entropy, by autograd."""
    loss = nn.functional.cross_entropy(model(inputs), labels)
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def batches(
    model: nn.Module, counts: np.ndarray, seed: int = 1
) -> list[tuple[Tensor, Tensor, Observation]]:
    """A batch with each row of label counts, and what the server sees of it undefended."""
    classes = counts.shape[1]
    pool, _ = data(40 * classes, seed, classes=classes)
    pool = pool.to(next(model.parameters()).dtype)
    rng = np.random.default_rng(seed)
    out = []
    for row in counts:
        rows = [c + classes * rng.choice(40, n, replace=n > 40) for c, n in enumerate(row) if n]
        inputs = pool[torch.from_numpy(np.concatenate(rows))]
        labels = torch.from_numpy(np.repeat(np.arange(classes), row))
        seen = Observation(gradient(model, inputs, labels), int(row.sum()), classes)
        out.append((inputs, labels, seen))
    return out


def knowledge(model: nn.Module, batch_size: int = 8, **changes: object) -> Knowledge:
    """Everything an attacker can have, about an undefended client."""
    known: dict[str, object] = {
        "model": model,
        "auxiliary": data(80, seed=7),
        "client": lambda inputs, labels: gradient(model, inputs, labels),
        "num_classes": CLASSES,
        "batch_size": batch_size,
        "composition": "skewed",
        "seed": 3,
    }
    return Knowledge(**(known | changes))  # type: ignore[arg-type]


def skewed(rows: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Label counts of skewed batches."""
    rng = np.random.default_rng(seed)
    return np.stack([_skewed(rng, size) for _ in range(rows)])


def _skewed(rng: np.random.Generator, size: int) -> np.ndarray:
    major, minor = rng.permutation(CLASSES)[:2]
    counts = rng.multinomial(size - size // 2 - size // 4, np.full(CLASSES, 1 / CLASSES))
    counts[major] += size // 2
    counts[minor] += size // 4
    return counts


def overlap(found: Tensor, counts: np.ndarray) -> float:
    """Multiset overlap over all batches."""
    return float(np.minimum(found.numpy(), counts).sum() / counts.sum())
