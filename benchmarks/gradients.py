"""Gradients of real training, on which transforms and the wire format are measured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.resnet18 import resnet18
from benchmarks.resnet50 import resnet50

MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
}
CLASSES, BATCH, STEPS = 1000, 8, 20

Gradients = dict[str, Tensor]


def gradients(name: str, *, last: int = 1) -> list[Gradients]:
    """Gradients of the last steps of a short training run, by parameter name.

    The embedded digits, enlarged to 64 x 64 and three channels, with a 1,000-way head: ten
    classes occur. Early in training survivors of top-k lie closer together than later on; sizes
    are therefore also measured on uniform indices.

    Args:
        name: One of :data:`MODELS`.
        last: How many of the last steps.
    """
    torch.manual_seed(0)
    model = MODELS[name]((3, 64, 64), CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    digits, labels = load_digits(return_X_y=True)
    small = torch.as_tensor(digits, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.as_tensor(labels, dtype=torch.int64)
    kept: list[Gradients] = []
    for step in range(STEPS):
        rows = torch.randint(len(small), (BATCH,))
        images = nn.functional.interpolate(small[rows], size=64).expand(-1, 3, -1, -1)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), targets[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        if step >= STEPS - last:
            named = model.named_parameters()
            kept.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        optimizer.step()
    return kept
