"""iLRG: label counts by linear equations in confidences that the gradient itself reveals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch import Tensor

from gradguard.attacks.ebi import require_bias
from gradguard.attacks.head import head_module
from gradguard.attacks.messages import (
    as_counts,
    batch_sizes,
    finite,
    head_biases,
    head_weights,
)
from gradguard.attacks.rounding import Floats, Ints
from gradguard.attacks.threat import Knowledge, Observation, require

LARGEST_FEATURE = 1e10


def class_embeddings(weight: Floats, bias: Floats) -> Floats:
    """The mean feature vector of each class, read off the gradient: ``dW_c / db_c``.

    With ``dW_c = mean_i (p_ic - y_ic) h_i`` and ``db_c`` the same without ``h_i``, the ratio is an
    average of the features in which the class's own examples dominate while confidences are low.
    Entries are held within ``1e10``; a class whose ``db_c`` is zero gets zeros.

    Args:
        weight: The head's weight gradient, shape ``(classes, features)``.
        bias: The head's bias gradient, shape ``(classes,)``.
    """
    # Normalised first: the ratio of two subnormal numbers would lose its digits.
    scale = np.abs(bias).max(initial=0.0) or 1.0
    denominators = np.where(bias == 0, 1.0, bias / scale)[:, None]
    with np.errstate(over="ignore"):  # clipped on the next line
        ratios = np.where(bias[:, None] == 0, 0.0, weight / scale / denominators)
    embeddings: Floats = np.clip(ratios, -LARGEST_FEATURE, LARGEST_FEATURE)
    return embeddings


def solve_counts(confidences: Floats, bias: Floats, size: int) -> Floats:
    """Real-valued counts: the least-squares solution of the paper's ``C + 1`` equations.

    ``sum_c n_c q_c[j] - n_j = B db_j`` for each class ``j``, and ``sum_c n_c = B``.

    Args:
        confidences: ``q[c]`` is the softmax output for examples of class ``c``; shape
            ``(classes, classes)``.
        bias: The head's bias gradient, shape ``(classes,)``.
        size: The batch size ``B``.
    """
    classes = len(bias)
    equations = np.vstack([np.ones(classes), confidences.T - np.eye(classes)])
    known = np.concatenate([[size], size * bias])
    solution: Floats = np.linalg.lstsq(equations, known, rcond=None)[0]
    return solution


def correct_to_batch(estimates: Floats, size: int) -> Ints:
    """Round to the nearest counts, then correct the worst-rounded by one until they sum to ``B``.

    Negative estimates, and those above the batch, are taken as zero before. The paper corrects one
    count; going on until the sum fits is ours, and differs where more than one is missing.

    Guarantees:

    - non-negative integers that sum to ``size``.

    >>> correct_to_batch(np.array([2.4, 1.3, -0.2, 9.0]), 4)
    array([3, 1, 0, 0])
    """
    kept = np.where((estimates > 0) & (estimates <= size + 0.5), estimates, 0.0)
    counts: Ints = np.rint(kept).astype(np.int64)
    for _ in range(abs(size - int(counts.sum()))):
        if counts.sum() < size:
            counts[(kept - counts).argmax()] += 1
        else:
            counts[np.where(counts > 0, counts - kept, -np.inf).argmax()] -= 1
    return counts


@dataclass(frozen=True)
class ILRG:
    """Instance-wise Label Restoration from Gradients: the model and one gradient, no data.

    Each class's mean features are read off the gradient, put through the head to give the class's
    confidences, and the counts solve the linear equations that the bias gradient then satisfies.
    Features may have any sign. It is built on a model that is not yet confident: where examples
    differ within a class and confidences are high, the ratio is no longer the class's mean, and the
    equations are nearly singular.

    Guarantees:

    - exact where all examples have the same features, whatever their labels;
    - rows sum to the batch, by the paper's correction of the worst-rounded count.

    Rescaled messages are misread: the embeddings are not changed, the equations are.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The output layer has no bias.

    Source: Ma et al., "Instance-wise Batch Label Restoration via Gradients in Federated Learning",
    ICLR 2023.
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "num_classes"})

    def fit(self, knowledge: Knowledge) -> FittedILRG:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.num_classes is not None
        require_bias(knowledge, self.head)
        layer = head_module(knowledge.model, knowledge.num_classes, self.head)
        return FittedILRG(
            finite(layer.weight.detach().double()),
            finite(layer.bias.detach().double()),
            head=self.head,
        )


@dataclass(frozen=True, eq=False)  # arrays have no useful ==
class FittedILRG:
    """The output layer before the round: weight ``(classes, features)`` and bias ``(classes,)``."""

    weight: Floats
    bias: Floats
    _: KW_ONLY
    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        biases = head_biases(observations, self.head)
        counts = np.zeros(biases.shape, dtype=np.int64)
        for row, gradient in enumerate(head_weights(observations, self.head)):
            if gradient.shape != self.weight.shape:
                raise ValueError(
                    f"fitted for a head of shape {self.weight.shape}, got {tuple(gradient.shape)}"
                )
            estimates = self.estimate(finite(gradient.double()), biases[row], int(sizes[row]))
            counts[row] = correct_to_batch(estimates, int(sizes[row]))
        return as_counts(counts)

    def estimate(self, weight: Floats, bias: Floats, size: int) -> Floats:
        """Real-valued counts behind one gradient of the head, before rounding."""
        logits = class_embeddings(weight, bias) @ self.weight.T + self.bias
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return solve_counts(shifted / shifted.sum(axis=1, keepdims=True), bias, size)
