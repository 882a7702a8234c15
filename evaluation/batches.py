"""Batches of a given composition, drawn from a pool of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradguard.attacks.composition import draw_counts
from gradguard.evaluation.data import Data


@dataclass(frozen=True, eq=False)
class Batch:
    """What one client computes one gradient from.

    Args:
        inputs: Shape ``(batch, channels, height, width)``.
        labels: Int64 of shape ``(batch,)``.
        counts: Int64 of shape ``(classes,)``: the secret, how many of each label.
    """

    inputs: Tensor
    labels: Tensor
    counts: np.ndarray


def draw_batches(
    data: Data,
    pool: np.ndarray,
    *,
    composition: str | None,
    batch_size: int,
    number: int,
    seed: int,
) -> list[Batch]:
    """Independent batches, deterministic in ``seed``.

    Guarantees:

    - every image comes from ``pool``;
    - a batch has the composition's counts, and holds no image twice where the pool has enough
      images of the class (otherwise that class is drawn with replacement).

    Args:
        pool: Indices into ``data``.
        composition: A name of :data:`gradguard.attacks.composition.NAMES`; ``None`` mixes them.
    """
    rng = np.random.default_rng(seed)
    labels = data.labels.numpy()
    by_class = [pool[labels[pool] == label] for label in range(data.num_classes)]
    prior = np.array([len(members) for members in by_class]) / len(pool)
    batches = []
    for _ in range(number):
        counts = draw_counts(composition, data.num_classes, batch_size, rng, prior)
        chosen = [
            rng.choice(members, size=count, replace=bool(count > len(members)))
            for members, count in zip(by_class, counts, strict=True)
            if count
        ]
        # The order inside a batch must not tell the labels to an attacker that sees per-example
        # randomness; a gradient does not depend on it.
        batches.append(Batch(*data.take(rng.permutation(np.concatenate(chosen))), counts))
    return batches
