"""GradInversion's label step: the set of labels from the row minima of the head's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradguard.attacks.label_sets import spread_over_set
from gradguard.attacks.messages import as_counts, batch_sizes, finite, head_weights
from gradguard.attacks.rounding import Floats
from gradguard.attacks.threat import Knowledge, Observation


def row_minima(observations: Sequence[Observation], head: str | None = None) -> Floats:
    """The least entry of each class row of the head's weight gradient, ``(observations, classes)``.

    Raises:
        ValueError: An entry is not finite.
    """
    minima = []
    for weight in head_weights(observations, head):
        finite(weight.sum(dtype=torch.float64)[None])  # the minimum is blind to +infinity
        minima.append(weight.min(dim=1).values.double().cpu())
    return finite(torch.stack(minima))


@dataclass(frozen=True)
class GradInversionLabels:
    """The batch's classes by the smallest entry of each class row of the head's gradient.

    With non-negative features an entry of row ``c`` is negative only where an example of class
    ``c`` is active, so that the row minimum ``m_c`` tells presence even where the rest of the row
    is positive. The paper takes all labels of a batch to be distinct: the answer is the ``B``
    classes with the smallest minima, once each. A batch larger than the number of classes gets the
    extension of later papers: the set of classes with ``m_c < 0``, each once, and the rest of the
    batch evenly over it. Features that may be negative make every minimum negative, and the set
    is then all classes.

    Guarantees:

    - with features that are not negative, every class in the set is in the batch;
    - batches of distinct labels are named exactly where the features are not negative and every
      example has a feature that no other of its batch has.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Source: Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", 2021,
    arXiv:2104.07586.

    >>> gradient = torch.tensor([[0.3, -0.1], [0.1, 0.2], [-0.2, 0.1]])
    >>> fitted = GradInversionLabels().fit(Knowledge())
    >>> fitted.infer([Observation({"head.weight": gradient}, 2, 3)])
    tensor([[1, 0, 1]])
    >>> fitted.infer([Observation({"head.weight": gradient}, 5, 3)])
    tensor([[2, 0, 3]])
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def fit(self, knowledge: Knowledge) -> FittedGradInversionLabels:
        return FittedGradInversionLabels(head=self.head)


@dataclass(frozen=True)
class FittedGradInversionLabels:
    """Nothing is learned."""

    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        minima = row_minima(observations, self.head)
        # With B <= C every class is a candidate, and the B smallest minima are kept.
        members = (minima < 0) | (sizes <= minima.shape[1])[:, None]
        return as_counts(spread_over_set(minima, members, sizes))
