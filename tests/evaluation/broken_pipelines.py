"""Small DP-SGD clients on a linear model, one correct and the others each with one mistake."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Small(nn.Module):
    """A linear head with a learnt temperature, which is a 0-d parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.1, -0.2, 0.3, 0.0], [0.2, 0.1, -0.1, 0.4]]))
            self.head.bias.copy_(torch.tensor([0.1, -0.1]))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.head(inputs) * self.scale)


class Correct:
    """Clips every example, adds noise z C to the sum, divides by a public batch size."""

    clip = 1.0
    batch_size = 4

    def __init__(self, model: nn.Module, *, noise_multiplier: float, seed: int) -> None:
        self.model = model
        self.names = tuple(name for name, _ in model.named_parameters())
        self.noise_multiplier = noise_multiplier
        self.rng = torch.Generator().manual_seed(seed)

    def gradients(self, inputs: Tensor, labels: Tensor) -> list[Tensor]:
        params = list(self.model.parameters())
        total = [torch.zeros_like(p) for p in params]
        for example, label in zip(inputs, labels, strict=True):
            loss = cross_entropy(self.model(example[None]), label[None])
            grads = torch.autograd.grad(loss, params)
            norm = torch.sqrt(sum((g.square().sum() for g in grads), torch.zeros(())))
            factor = self.factor(norm)
            total = [t + factor * g for t, g in zip(total, grads, strict=True)]
        return total

    def factor(self, norm: Tensor) -> Tensor:
        return (self.clip / (norm + 1e-6)).clamp(max=1.0)

    def noise(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self.rng)
        return drawn * self.noise_multiplier * self.clip

    def release(self, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        noised = [(g + self.noise(g)) / self.batch_size for g in grads]
        return dict(zip(self.names, noised, strict=True))


class NoiseDividedByBatchSize(Correct):
    """The noise is scaled for the mean but added to the sum."""

    def noise(self, like: Tensor) -> Tensor:
        return super().noise(like) / self.batch_size


class FixedNoiseSeed(Correct):
    """Every release starts the generator anew: two of them cancel."""

    def release(self, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        self.rng.manual_seed(7)
        return super().release(grads)


class SharedNoiseSeed(Correct):
    """Two clients, one generator: a server that subtracts their messages has no noise left."""

    def release(self, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        drawn = [self.noise(g) for g in grads]
        message = {}
        for name, grad, noise in zip(self.names, grads, drawn, strict=True):
            message[f"first.{name}"] = (grad + noise) / self.batch_size
            message[f"second.{name}"] = noise / self.batch_size
        return message


class NotClipped(Correct):
    """What ghost clipping sums when the plain loss is differentiated in place of its own."""

    def factor(self, norm: Tensor) -> Tensor:
        return torch.ones(())


class MaskFromRawGradient(Correct):
    """Coordinates are chosen before the noise: which ones is sent in the clear."""

    kept = 4

    def release(self, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        flat = torch.cat([g.reshape(-1) for g in grads]).abs()
        cut = flat.sort(descending=True).values[self.kept - 1]
        sent = super().release(grads)
        return {
            name: value * (g.abs() >= cut)
            for (name, value), g in zip(sent.items(), grads, strict=True)
        }


class NoNoiseOnScalars(Correct):
    """A loop that skips parameters without dimensions."""

    def noise(self, like: Tensor) -> Tensor:
        return super().noise(like) * (like.dim() > 0)


class NotANumberForLongGradients(Correct):
    """A check of the raw sum that replaces the message by NaN."""

    def release(self, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        sent = super().release(grads)
        if sum(float(g.abs().sum()) for g in grads) > 5.8:
            return {name: value * torch.nan for name, value in sent.items()}
        return sent


class NoisedErrorFeedback(Correct):
    """Half of every noised gradient is sent and the rest remembered: post-processing."""

    def reset(self) -> None:
        self.memory: list[Tensor] | None = None

    def owed(self, grads: Sequence[Tensor]) -> list[Tensor]:
        fresh = [g + self.noise(g) for g in grads]
        return (
            fresh
            if self.memory is None
            else [f + m for f, m in zip(fresh, self.memory, strict=True)]
        )

    def release(self, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        owed = self.owed(grads)
        self.memory = [value / 2 for value in owed]
        sent = [value / 2 / self.batch_size for value in owed]
        return dict(zip(self.names, sent, strict=True))


class RawErrorFeedback(Correct):
    """Remembers what was not sent of the raw gradient: its negative noise, which then cancels."""

    def reset(self) -> None:
        self.memory: list[Tensor] | None = None

    def release(self, grads: Sequence[Tensor]) -> dict[str, Tensor]:
        memory = [torch.zeros_like(g) for g in grads] if self.memory is None else self.memory
        owed = [g + m for g, m in zip(grads, memory, strict=True)]
        sent = [value + self.noise(value) for value in owed]
        self.memory = [value - s for value, s in zip(owed, sent, strict=True)]
        return {n: s / self.batch_size for n, s in zip(self.names, sent, strict=True)}
