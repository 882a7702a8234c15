"""A small private training that every test here starts from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard.core import Grads, State
from gradguard.dp import PrivateTraining, make_private
from gradguard.hook_warning import without_hook_warning

RECORDS = 64


def data(records: int = RECORDS, *, scale: float = 1.0, seed: int = 0) -> TensorDataset:
    """Random inputs of four features, labels of two classes."""
    rng = torch.Generator().manual_seed(seed)
    inputs = scale * torch.randn(records, 4, generator=rng)
    return TensorDataset(inputs, torch.randint(2, (records,), generator=rng))


def network(seed: int = 0) -> nn.Sequential:
    """4 -> 8 -> 2, the same for every seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def private(
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    loader: Any = None,
    batch_size: int = 8,
    seed: int | None = None,
    **options: Any,
) -> PrivateTraining:
    """``make_private`` with everything that a test does not care about filled in."""
    model = network() if model is None else model
    if optimizer is None:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loader = DataLoader(data(), batch_size=batch_size) if loader is None else loader
    options = {"max_grad_norm": 1.0, **options}
    if "target_epsilon" not in options:
        options = {"noise_multiplier": 1.0, **options}
    training = make_private(model, optimizer, loader, **options)
    if seed is not None:
        training.reseed(seed)
    return training


def step(training: PrivateTraining, inputs: Tensor, labels: Tensor) -> Any:
    """One step on one batch, however it was drawn."""
    training.optimizer.zero_grad()
    backward(training, inputs, labels)
    return training.optimizer.step()


def backward(training: PrivateTraining, inputs: Tensor, labels: Tensor) -> None:
    """Gradients of a batch, through the training's own criterion."""
    with without_hook_warning():
        training.criterion(training.model(inputs), labels).backward()


def epoch(training: PrivateTraining) -> list[int]:
    """Train once through the loader; the sizes of the batches."""
    sizes = []
    for inputs, labels in training.loader:
        step(training, inputs, labels)
        sizes.append(len(labels))
    return sizes


def batch(size: int = 8, *, scale: float = 1.0, seed: int = 1) -> tuple[Tensor, Tensor]:
    """A batch that was given, not sampled."""
    inputs, labels = data(size, scale=scale, seed=seed).tensors
    return inputs, labels


def flat(model: nn.Module) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Spy:
    """A transform that changes nothing and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def init(self, params: Any) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        self.seen.append(torch.cat([g.flatten() for g in grads if g is not None]))
        return list(grads), state
