"""A task on which the best possible attacker is known: linear messages with Gaussian noise.

Examples are Gaussian around one template a class, a message is their mean and Gaussian noise. So
the messages of all batches with the same label counts have one Gaussian distribution, and there are
few enough counts to list them all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradguard.attacks import Knowledge
from gradguard.attacks.baselines import greedy_constant_guess
from gradguard.attacks.simulation import Message
from gradguard.attacks.threat import Client

HEAD_FEATURES, BODY = 12, (10, 12)


class _Mean(torch.autograd.Function):
    """Logits that ignore the parameters, whose cross-entropy has the mean input for a gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, body: Tensor, head: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.shapes = body.shape, head.shape
        return inputs.new_zeros(len(inputs), len(head))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        (inputs,) = ctx.saved_tensors
        body, head = ctx.shapes
        # The gradient at zero logits is (1 / C - [c = y]) / B: the same least entry for every y.
        share = -grads[0].min(dim=1).values * head[0] / (head[0] - 1)
        mean = share @ inputs
        return None, mean[: body.numel()].view(body), mean[body.numel() :].view(head)


class Linear(nn.Module):
    """A model whose gradient is linear in its inputs, whatever the labels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(BODY[1], BODY[0], bias=False)
        self.head = nn.Linear(HEAD_FEATURES, classes, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = _Mean.apply(  # type: ignore[no-untyped-call]
            inputs, self.body.weight, self.head.weight
        )
        return logits


@dataclass(frozen=True)
class Toy:
    """Templates, examples around them, and a client that adds noise to their mean.

    Args:
        name: How hard it is, in words.
        classes: Classes.
        batch_size: Examples behind a message.
        composition: ``"iid"`` or ``"skewed"``.
        noise: Standard deviation that the client adds to the mean, per coordinate.
        spread: Standard deviation of an example around its template, per coordinate.
        seed: Of the templates, whose coordinates are standard normal.
    """

    name: str
    classes: int
    batch_size: int
    composition: str
    noise: float
    spread: float = 1.0
    seed: int = 0

    def model(self) -> Linear:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Linear(self.classes)

    def templates(self) -> Tensor:
        """Mean message of each class, ``(classes, coordinates)``, body first."""
        size = math.prod(BODY) + self.classes * HEAD_FEATURES
        rng = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.classes, size, generator=rng)

    def examples(self, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
        """Examples and labels, every class in turn."""
        labels = torch.arange(per_class * self.classes) % self.classes
        means = self.templates()[labels]
        rng = torch.Generator().manual_seed(1000 * self.seed + seed)
        return means + self.spread * torch.randn(means.shape, generator=rng), labels

    def client(self, seed: int) -> Client:
        """Sends the mean of its inputs, and noise."""
        rng = torch.Generator().manual_seed(1000 * self.seed + seed)
        shapes = {name: p.shape for name, p in self.model().named_parameters()}

        def send(inputs: Tensor, labels: Tensor) -> Message:
            flat = inputs.mean(dim=0)
            flat = flat + self.noise * torch.randn(flat.shape, generator=rng)
            parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
            return {n: part.view(shapes[n]) for n, part in zip(shapes, parts, strict=True)}

        return send

    def knowledge(self, per_class: int = 1000) -> Knowledge:
        """What the attacker has: the model, examples of its own and the client's code."""
        return Knowledge(
            model=self.model(),
            auxiliary=self.examples(per_class, seed=1),
            client=self.client(seed=2),
            num_classes=self.classes,
            batch_size=self.batch_size,
            composition=self.composition,
            seed=self.seed,
        )

    def oracle(self, messages: list[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Counts of highest expected overlap for who knows templates, variances and the prior.

        Returns:
            The counts, ``(messages, classes)``, and the success that it expects of each,
            ``(messages,)``. No attacker does better on average.
        """
        counts, weights = self.prior()
        flat = np.stack([torch.cat([t.flatten() for t in m.values()]).numpy() for m in messages])
        means = counts / self.batch_size @ self.templates().double().numpy()
        variance = self.spread**2 / self.batch_size + self.noise**2
        squares = ((flat[:, None].astype(np.float64) - means) ** 2).sum(axis=2)
        log = np.log(weights) - squares / (2 * variance)
        posterior = np.exp(log - log.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        at_least = counts[:, :, None] >= np.arange(1, self.batch_size + 1)
        tails = np.einsum("mk,kcl->mcl", posterior, at_least)
        guesses = [greedy_constant_guess(t, self.batch_size) for t in tails]
        return np.stack([guess for guess, _ in guesses]), np.array([hope for _, hope in guesses])

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        """All label counts that the generator makes, and their probabilities."""
        mass: dict[tuple[int, ...], float] = {}
        for counts, weight in self._ways():
            mass[counts] = mass.get(counts, 0.0) + weight
        return np.array(list(mass)), np.array(list(mass.values()))

    def _ways(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """Counts with their probabilities, some of them several times."""
        if self.composition == "iid":
            yield from _multinomial(self.classes, self.batch_size)
            return
        half, quarter = self.batch_size // 2, self.batch_size // 4
        pairs = list(itertools.permutations(range(self.classes), 2))
        for major, minor in pairs:
            fixed = np.zeros(self.classes, dtype=np.int64)
            fixed[major], fixed[minor] = half, quarter
            for rest, weight in _multinomial(self.classes, self.batch_size - half - quarter):
                yield tuple((fixed + np.array(rest)).tolist()), weight / len(pairs)


def _multinomial(classes: int, total: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every way of spreading ``total`` over the classes, with its probability if uniform."""
    for bars in itertools.combinations(range(total + classes - 1), classes - 1):
        edges = (-1, *bars, total + classes - 1)
        counts = tuple(b - a - 1 for a, b in itertools.pairwise(edges))
        ways = math.factorial(total) / math.prod(math.factorial(n) for n in counts)
        yield counts, ways / classes**total


TOYS = (
    Toy("easy", 4, 8, "iid", noise=0.5),
    Toy("easy, skewed", 5, 8, "skewed", noise=0.5),
    Toy("middle", 4, 8, "iid", noise=1.5),
    Toy("middle, skewed", 5, 8, "skewed", noise=2.0),
    Toy("hard", 4, 4, "iid", noise=4.0),
    Toy("hard, skewed", 5, 8, "skewed", noise=4.0),
    Toy("one example", 5, 1, "iid", noise=4.0, spread=2.0),
    Toy("one example, strong noise", 5, 1, "iid", noise=16.0, spread=2.0),
    Toy("one example, drowned", 4, 1, "iid", noise=30.0, spread=2.0),
)
"""From messages that are read nearly as well as can be to some that hardly tell anything."""
