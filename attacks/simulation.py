"""What an adaptive attacker rehearses on: its own images, sent by the client's own code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.composition import draw_counts
from gradguard.attacks.forward import labels_array
from gradguard.attacks.threat import Client, NotApplicableError

Message = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled examples to draw batches from, indexed by class.

    Args:
        inputs: Examples, shape ``(examples, ...)``.
        labels: Integer labels in ``[0, classes)``, shape ``(examples,)``.
        by_class: Row numbers of each class, one array per class.
    """

    inputs: Tensor
    labels: Tensor
    by_class: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, inputs: Tensor, labels: Tensor, num_classes: int) -> Pool:
        """Index the examples by class; at least one class must have one.

        Raises:
            ValueError: A label lies outside of the classes, or there is no example.
        """
        found = labels_array(labels, num_classes)
        if len(inputs) != len(found) or len(found) == 0:
            raise ValueError(
                f"expected as many labels as examples and at least one, "
                f"got {len(inputs)} examples and {len(found)} labels"
            )
        return cls(inputs, labels, tuple(np.flatnonzero(found == c) for c in range(num_classes)))

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[Pool, Pool]:
        """Two pools without a common image; ``fraction`` of every class goes to the first."""
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for rows in self.by_class:
            shuffled = rng.permutation(rows)
            # A class with two images or more is on both sides: neither may be blind to it.
            cut = int(
                np.clip(round(fraction * len(rows)), min(1, len(rows)), max(1, len(rows) - 1))
            )
            parts[0].append(shuffled[:cut])
            parts[1].append(shuffled[cut:])
        first, second = (Pool(self.inputs, self.labels, tuple(part)) for part in parts)
        if all(len(rows) == 0 for rows in second.by_class):
            raise NotApplicableError(
                "rehearsing takes auxiliary data with two examples of some class, one to learn "
                "from and one to judge by; there are fewer"
            )
        return first, second

    def prior(self) -> np.ndarray:
        """The share of each class, shape ``(classes,)``."""
        sizes = np.array([len(rows) for rows in self.by_class], dtype=np.float64)
        share: np.ndarray = sizes / sizes.sum()
        return share

    def draw(self, counts: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A batch with these label counts; images repeat only where a class has too few."""
        rows = np.concatenate(
            [
                rng.choice(pool, size=n, replace=n > len(pool))
                for pool, n in zip(self.by_class, counts, strict=True)
                if n
            ]
        )
        chosen = torch.from_numpy(rows)
        return self.inputs[chosen], self.labels[chosen]

    def feasible(self, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``counts`` with the share of classes that have no image moved to others at random."""
        empty = np.array([len(rows) == 0 for rows in self.by_class])
        moved = int(counts[empty].sum())
        if not moved:
            return counts
        others = rng.multinomial(moved, self.prior())
        feasible: np.ndarray = np.where(empty, 0, counts) + others
        return feasible


def rehearse(
    client: Client,
    pool: Pool,
    composition: str | None,
    batch_size: int,
    trials: int,
    rng: np.random.Generator,
) -> Iterator[tuple[Message, np.ndarray]]:
    """Yield ``trials`` pairs of a defended message and its true label counts.

    One at a time, because the messages of a large model do not fit into memory together.
    """
    classes = len(pool.by_class)
    for _ in range(trials):
        counts = draw_counts(composition, classes, batch_size, rng, pool.prior())
        counts = pool.feasible(counts, rng)
        inputs, labels = pool.draw(counts, rng)
        yield client(inputs, labels), counts
