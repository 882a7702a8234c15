"""LLG: label counts from the row sums of the output layer's weight gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradguard.attacks.messages import as_counts, batch_sizes, row_sums
from gradguard.attacks.rounding import Floats, Ints, proportional
from gradguard.attacks.threat import Knowledge, Observation


def impact_of(sums: Floats, sizes: Ints) -> Floats:
    """The paper's estimate of what one example adds to its own class's row sum: negative or 0.

    ``m = (1 / B) (1 + 1 / C) * sum of the negative row sums``, shape ``(observations,)``.
    """
    classes = sums.shape[1]
    impact: Floats = (1 + 1 / classes) * np.minimum(sums, 0.0).sum(axis=1) / sizes
    return impact


def greedy_counts(sums: Floats, *, impact: Floats, offset: Floats, sizes: Ints) -> Ints:
    """The LLG family's second half: spend the batch on the most negative row sums.

    Every class whose raw row sum is negative is output once (the ``B`` most negative, if there
    are more), and each output takes the impact out of its class's row sum. Then, until ``B``
    labels are out, the class with the smallest offset row sum is next.

    Where ``impact`` is not negative nothing distinguishes one more example from none. That is the
    case without negative row sums, say for a withheld head. The answer then is an even spread over
    the classes whose row sum is not positive (over all, if there is none).

    Args:
        sums: Row sums, shape ``(observations, classes)``.
        impact: Shape ``(observations,)``.
        offset: What a row sum is without an example of its class; broadcast against ``sums``.
        sizes: Batch sizes, shape ``(observations,)``.
    """
    ranks = np.argsort(np.argsort(sums, axis=1, kind="stable"), axis=1, kind="stable")
    counts: Ints = ((sums < 0) & (ranks < sizes[:, None])).astype(np.int64)
    # `impact * counts`, not one step of the loop below: in at least one published implementation
    # the compensation went to the loop variable's last class instead of the selected ones.
    left = sums - offset - impact[:, None] * counts
    for _ in range(int((sizes - counts.sum(axis=1)).max(initial=0))):
        open_rows = np.flatnonzero(counts.sum(axis=1) < sizes)
        chosen = left[open_rows].argmin(axis=1)
        counts[open_rows, chosen] += 1
        left[open_rows, chosen] -= impact[open_rows]
    blind = ~(impact < 0)
    if blind.any():
        candidates = sums[blind] <= 0
        counts[blind] = proportional(candidates.astype(np.float64), sizes[blind])
    return counts


@dataclass(frozen=True)
class LLG:
    """Label Leakage from Gradients, from the gradient alone.

    With non-negative features a class's row sum is negative only if the class is in the batch,
    and falls by about the same impact with each of its examples. Written for undefended gradients
    of models at the start of training; sparsification and training make it weak, and its failure
    there says nothing about other attackers.

    Guarantees:

    - batches of one class are read perfectly, where features are non-negative and the model's
      confidence is about even over the other classes, as it is after a default initialisation;
    - without negative row sums the answer is the even spread, documented at
      :func:`greedy_counts`.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Source: Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", 2021,
    arXiv:2105.09369.

    >>> import torch
    >>> gradient = torch.tensor([[-0.3, -0.3], [0.1, 0.2], [-0.1, 0.1], [0.1, 0.2]])
    >>> LLG().fit(Knowledge()).infer([Observation({"head.weight": gradient}, 4, 4)])
    tensor([[4, 0, 0, 0]])
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def fit(self, knowledge: Knowledge) -> FittedLLG:
        return FittedLLG(head=self.head)


@dataclass(frozen=True)
class FittedLLG:
    """Nothing is learned: the impact is estimated from each message itself."""

    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        sums = row_sums(observations, self.head)
        impact = impact_of(sums, sizes)
        return as_counts(greedy_counts(sums, impact=impact, offset=np.zeros(1), sizes=sizes))
