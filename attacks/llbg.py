"""LLBG: the greedy step on the bias gradient, with the impact that theory gives an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch import Tensor

from gradguard.attacks.ebi import require_bias
from gradguard.attacks.forward import HeadPass, head_pass, labels_array
from gradguard.attacks.label_sets import fill_greedily, ranks
from gradguard.attacks.messages import as_counts, batch_sizes, head_biases
from gradguard.attacks.rounding import Floats
from gradguard.attacks.threat import Knowledge, Observation, require


def own_confidence(passed: HeadPass, labels: np.ndarray) -> Floats:
    """The model's mean confidence in each class on that class's examples, shape ``(classes,)``.

    A class without examples is taken to be like the others: it gets their mean.
    """
    classes = passed.probabilities.shape[1]
    members = (labels[:, None] == np.arange(classes)).astype(np.float64)
    totals = members.sum(axis=0)
    sums = (members * passed.probabilities).sum(axis=0)
    seen = totals > 0
    fallback = (sums[seen] / totals[seen]).mean()
    confidence: Floats = np.where(seen, sums / np.maximum(totals, 1), fallback)
    return confidence


@dataclass(frozen=True)
class LLBG:
    """Label Leakage from Bias Gradients, with the confidence of each class from auxiliary data.

    An example of class ``c`` adds ``-(1 - p_c) / B`` to ``db_c``, where ``p_c`` is the model's
    confidence in it. The impact on class ``c`` is this with the mean confidence of auxiliary
    examples of class ``c``; for an untrained model that is about ``1 / C``. Every class with a
    negative entry is output once, and then the most negative entry in turn, each output taking its
    class's impact out of the entry. The published offset of ``1 / C`` for untrained models is left
    out: it is the same for all classes, and moves no minimum.

    The impact does not come from the message, as EBI's does: rescaled messages are misread. And it
    does not count that an example of class ``c`` is none of another class, which would have added
    ``p_c``: frequent classes are overstated, most where classes are few.

    Guarantees:

    - batches of one class are read perfectly where their mean confidences are the auxiliary data's;
    - every class with a negative entry is named, as long as there are no more than the batch.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The output layer has no bias.

    Source: Gat and Sharif, "Harmful Bias: A General Label-Leakage Attack on Federated Learning
    from Bias Gradients", AISec 2024.
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "auxiliary", "num_classes"})

    def fit(self, knowledge: Knowledge) -> FittedLLBG:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.auxiliary is not None
        assert knowledge.num_classes is not None
        require_bias(knowledge, self.head)
        inputs, labels = knowledge.auxiliary
        classes = knowledge.num_classes
        passed = head_pass(
            knowledge.model, inputs, num_classes=classes, head=self.head, seed=knowledge.seed
        )
        confidence = own_confidence(passed, labels_array(labels, classes))
        return FittedLLBG(tuple(confidence.tolist()), head=self.head)


@dataclass(frozen=True)
class FittedLLBG:
    """The greedy step with a given confidence per class.

    >>> import torch
    >>> bias = torch.tensor([-0.25, -0.25, 0.25, 0.25])
    >>> update = {"fc.weight": torch.zeros(4, 2), "fc.bias": bias}
    >>> FittedLLBG((0.25, 0.25, 0.25, 0.25)).infer([Observation(update, 8, 4)])
    tensor([[4, 4, 0, 0]])
    """

    confidence: tuple[float, ...]
    _: KW_ONLY
    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        biases = head_biases(observations, self.head)
        if biases.shape[1] != len(self.confidence):
            raise ValueError(f"fitted for {len(self.confidence)} classes, got {biases.shape[1]}")
        negative = (biases < 0) & (ranks(biases) < sizes[:, None])
        steps = (1 - np.array(self.confidence)) / sizes[:, None]
        counts = negative.astype(np.int64)
        left = biases + steps * counts
        return as_counts(fill_greedily(counts, left, steps=steps, sizes=sizes))
