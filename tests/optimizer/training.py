"""A small regression task that the optimizer tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard.core import Grads, State

_DATA = torch.Generator().manual_seed(11)
INPUTS = torch.randn(16, 4, generator=_DATA)
TARGETS = torch.randn(16, 3, generator=_DATA)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def differentiate(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def loss_of(model: nn.Module) -> Tensor:
    return nn.functional.mse_loss(model(INPUTS), TARGETS)


def backward(model: nn.Module, optimizer: Optimizer) -> float:
    optimizer.zero_grad()
    loss = loss_of(model)
    differentiate(loss)
    return loss.item()


def train(model: nn.Module, optimizer: Optimizer, steps: int = 5) -> list[Tensor]:
    for _ in range(steps):
        backward(model, optimizer)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@dataclass(frozen=True)
class Spy:
    """Records what it is shown and passes on twice of it."""

    seen: list[Grads] = field(default_factory=list, compare=False)

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        self.seen.append([None if g is None else g.clone() for g in grads])
        return [None if g is None else g * 2 for g in grads], state
