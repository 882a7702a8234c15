"""One small network for all classes: from a class's summary to its share of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

HIDDEN = 32
EPOCHS = 40
MANY, FEWER_EPOCHS = 1000, 30  # with so many messages fewer epochs are measured to do as well
BATCH = 64
PEAK_RATE = 1e-2


@dataclass(frozen=True, eq=False)
class SharedNetwork:
    """Scores every class by the same weights; a softmax over classes gives the shares.

    The network sees a class's own numbers and their average over classes. A per-class offset is
    learned beside it, because some classes are easier to hear than others.
    """

    body: nn.Sequential
    offset: Tensor
    centre: np.ndarray
    scale: np.ndarray

    def predict(self, numbers: np.ndarray) -> np.ndarray:
        """Shares ``(messages, classes)`` on the simplex, from ``(messages, classes, numbers)``."""
        with torch.no_grad():
            logits = self.body(_with_context(numbers, self.centre, self.scale))[..., 0]
            shares: np.ndarray = (logits + self.offset).softmax(1).double().numpy()
        return shares


def fit_shared_network(numbers: np.ndarray, shares: np.ndarray, seed: int) -> SharedNetwork:
    """Train on rehearsed messages; the loss is the cross-entropy to the true label shares.

    Args:
        numbers: ``(messages, classes, numbers)``.
        shares: ``(messages, classes)``, rows sum to one.
        seed: Of the initial weights and the order; the global generator is left alone.
    """
    centre, scale = numbers.mean((0, 1)), numbers.std((0, 1)) + 1e-6
    inputs = _with_context(numbers, centre, scale)
    targets = torch.from_numpy(shares).float()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed % 2**63)
        body = nn.Sequential(
            nn.Linear(inputs.shape[2], HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, 1),
        )
        offset = torch.zeros(shares.shape[1], requires_grad=True)
        _train(body, offset, inputs, targets)
    return SharedNetwork(body.requires_grad_(False), offset.detach(), centre, scale)


def _train(body: nn.Sequential, offset: Tensor, inputs: Tensor, targets: Tensor) -> None:
    # Fused: on a network this small the time goes into Python, not into arithmetic.
    optimizer = torch.optim.AdamW([*body.parameters(), offset], weight_decay=1e-2, fused=True)
    epochs = EPOCHS if len(inputs) < MANY else FEWER_EPOCHS
    steps = epochs * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            logits = body(inputs[rows])[..., 0] + offset
            loss = -(targets[rows] * logits.log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _with_context(numbers: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> Tensor:
    # Clamped: one message far outside what was rehearsed must not send the network anywhere.
    own = torch.from_numpy(((numbers - centre) / scale).astype(np.float32)).clamp(-6, 6)
    return torch.cat([own, own.mean(1, keepdim=True).expand_as(own)], dim=2)
