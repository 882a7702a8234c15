"""Label counts from how many columns of each class row of the head's gradient are negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradguard.attacks.messages import as_counts, batch_sizes, finite, head_weights
from gradguard.attacks.rounding import proportional
from gradguard.attacks.threat import Knowledge, Observation


@dataclass(frozen=True)
class NegativeColumns:
    """Counts proportional to the number of negative entries in each class row of the head.

    With non-negative features the entry of class ``c`` and feature ``d`` can be negative only
    where an example of class ``c`` activates ``d``. The count of such columns ignores magnitudes,
    which a trained model's few misclassified examples dominate. It needs the gradient alone, and
    on trained models it beats LLG.

    Guarantees:

    - multiplying a message by a positive number changes nothing;
    - without negative entries the answer is the even spread.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    >>> gradient = torch.tensor([[-0.3, -0.1, -0.1], [0.2, -0.1, 0.2], [0.1, 0.2, 0.0]])
    >>> NegativeColumns().fit(Knowledge()).infer([Observation({"head.weight": gradient}, 4, 3)])
    tensor([[3, 1, 0]])
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def fit(self, knowledge: Knowledge) -> FittedNegativeColumns:
        return FittedNegativeColumns(head=self.head)


@dataclass(frozen=True)
class FittedNegativeColumns:
    """Nothing is learned."""

    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        negative = []
        for weight in head_weights(observations, self.head):
            finite(weight.sum(dtype=torch.float64)[None])  # NaN is never negative: look for it
            negative.append((weight < 0).sum(dim=1))
        return as_counts(proportional(torch.stack(negative).double().cpu().numpy(), sizes))
