"""EBI: the greedy step of LLG on the output layer's bias gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gradguard.attacks.head import find_head
from gradguard.attacks.llg import greedy_counts
from gradguard.attacks.messages import as_counts, batch_sizes, head_biases
from gradguard.attacks.threat import Knowledge, NotApplicableError, Observation


def require_bias(knowledge: Knowledge, head: str | None) -> None:
    """Raise where the attacker's model shows before the round that there is no bias to read.

    Raises:
        NotApplicableError: The output layer of ``knowledge.model`` has no bias.
    """
    if knowledge.model is None or knowledge.num_classes is None:
        return
    found = find_head(dict(knowledge.model.named_parameters()), knowledge.num_classes, head)
    if found.bias is None:
        raise NotApplicableError(f"the output layer {found.layer!r} has no bias to read")


@dataclass(frozen=True)
class EBI:
    """Label counts from the bias gradient alone, with an impact estimated from its negative part.

    ``db_c`` is negative only if class ``c`` is in the batch, whatever the features' signs. The
    impact of an example is taken as ``(1/B)`` times the sum of the negative entries; each negative
    class is output once, and then the most negative entry in turn, each output taking the impact
    out of its entry (:func:`~gradguard.attacks.llg.greedy_counts`).

    Guarantees:

    - every class with a negative entry is named, as long as there are no more than the batch;
    - batches of one class are read perfectly from an undefended gradient that is not zero;
    - without negative entries the answer is an even spread.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The output layer has no bias.

    Source: the "bias-corrected" strategy of the ``breaching`` library; a baseline of Gat and
    Sharif, "Harmful Bias: A General Label-Leakage Attack on Federated Learning from Bias
    Gradients", AISec 2024.

    >>> import torch
    >>> update = {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.tensor([-0.4, 0.3, 0.1])}
    >>> EBI().fit(Knowledge()).infer([Observation(update, 4, 3)])
    tensor([[4, 0, 0]])
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def fit(self, knowledge: Knowledge) -> FittedEBI:
        require_bias(knowledge, self.head)
        return FittedEBI(head=self.head)


@dataclass(frozen=True)
class FittedEBI:
    """Nothing is learned: the impact is estimated from each message itself."""

    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        biases = head_biases(observations, self.head)
        impact = np.minimum(biases, 0.0).sum(axis=1) / sizes
        return as_counts(greedy_counts(biases, impact=impact, offset=np.zeros(1), sizes=sizes))
