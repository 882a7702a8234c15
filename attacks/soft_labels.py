"""Labels behind label smoothing and mixup: soft labels recovered, and counts from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from scipy.special import softmax
from torch import Tensor

from gradguard.attacks.forward import attacker_copy, head_pass
from gradguard.attacks.head import find_head, head_module
from gradguard.attacks.messages import as_counts, batch_sizes, finite, head_biases, head_weights
from gradguard.attacks.rounding import Floats, round_to_batch
from gradguard.attacks.threat import Knowledge, NotApplicableError, Observation, require

# Half of the label's mass elsewhere is more smoothing than anyone trains with.
SMOOTHINGS = np.linspace(0.0, 0.5, 51)
# How much better counts must fit whole numbers before smoothing is believed.
EVIDENCE = 0.25
# Scales tried on a logarithmic grid, then on finer ones around the best.
GRID = 400
REFINEMENTS = 4


@dataclass(frozen=True)
class SoftLabels:
    """The batch's mean soft label, and the counts that label smoothing or mixup made it of.

    A single example's head gradient is ``dW = (p - y) h^T``: its direction is known, and one
    unknown scalar, the size of the features, fixes ``h``, hence ``p`` and the soft label ``y``.
    With a bias the scalar is read off. Without, it is the one whose ``y`` looks like a hard,
    smoothed or mixed label: all but two entries equal. Of several examples the mean soft label is
    ``p - db``, or ``p_c - g_c / O`` from row sums where there is no bias, with mean confidence
    ``p`` and feature sum ``O`` from auxiliary data.

    Smoothing by ``eps`` is then undone: ``n_c = (B y_c - B eps / C) / (1 - eps)``. Where ``eps`` is
    not given it is the one for which the counts are nearest to whole numbers, and none where that
    is not clearly so. Mixup within the batch leaves the sum of its labels as it was: there is
    nothing to undo.

    Guarantees:

    - the soft label of a single example is exact on an undefended gradient with bias;
    - counts are exact on an undefended gradient of smoothed labels, given the smoothing and the
      batch's own mean confidence.

    Args:
        smoothing: The client's, in [0, 1); ``None`` estimates it from each message.
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        ValueError: The smoothing is out of range.
        NotApplicableError: The head has no bias and the features sum to zero on average.

    Source: for one example after Wang, Liang and He, "Towards Eliminating Hard Label Constraints
    in Gradient Inversion Attacks", ICLR 2024, arXiv:2402.03124.
    """

    smoothing: float | None = None
    _: KW_ONLY
    head: str | None = None

    def __post_init__(self) -> None:
        if self.smoothing is not None and not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {self.smoothing!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "auxiliary", "num_classes"})

    def fit(self, knowledge: Knowledge) -> FittedSoftLabels:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.auxiliary is not None
        classes = knowledge.num_classes
        assert classes is not None
        model = attacker_copy(knowledge.model)
        passed = head_pass(
            model, knowledge.auxiliary[0], num_classes=classes, head=self.head, seed=knowledge.seed
        )
        layer = head_module(model, classes, self.head)
        has_bias = find_head(dict(model.named_parameters()), classes, self.head).bias is not None
        if not has_bias and passed.feature_sums.mean() == 0:
            raise NotApplicableError(
                "the output layer has no bias and its features sum to zero on average: "
                "neither says what the labels are"
            )
        return FittedSoftLabels(
            passed.probabilities.mean(axis=0),
            feature_sums=passed.feature_sums,
            weight=finite(layer.weight.detach().double()),
            bias=finite(layer.bias.detach().double()) if has_bias else None,
            smoothing=self.smoothing,
            head=self.head,
        )


@dataclass(frozen=True, eq=False)
class FittedSoftLabels:
    """What the model does on auxiliary data, and its head.

    Args:
        confidence: Mean softmax output per class.
        feature_sums: Of the auxiliary examples, at the head's input.
        weight: Of the head, shape ``(classes, features)``.
        bias: Of the head, ``None`` where it has none.
    """

    confidence: Floats
    _: KW_ONLY
    feature_sums: Floats
    weight: Floats
    bias: Floats | None
    smoothing: float | None = None
    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        soft = self.soft_labels(observations)
        counts = np.stack([self._hardened(y, n) for y, n in zip(soft, sizes, strict=True)])
        return as_counts(round_to_batch(counts, sizes))

    def soft_labels(self, observations: Sequence[Observation]) -> Floats:
        """Estimated mean soft label of each batch, shape ``(observations, classes)``."""
        batch_sizes(observations)
        classes = len(self.confidence)
        if observations[0].num_classes != classes:
            raise ValueError(f"fitted for {classes} classes, got {observations[0].num_classes}")
        weights = head_weights(observations, self.head)
        labels = []
        for o, weight in zip(observations, weights, strict=True):
            gradient = finite(weight.double())
            db = None if self.bias is None else head_biases([o], self.head)[0]
            single = o.batch_size == 1 and bool(np.abs(gradient).max() > 0)
            labels.append(self._single(gradient, db) if single else self._mean(gradient, db))
        return np.stack(labels)

    def _mean(self, gradient: Floats, db: Floats | None) -> Floats:
        if db is None:
            db = gradient.sum(axis=1) / self.feature_sums.mean()
        mean: Floats = self.confidence - db
        return mean

    def _single(self, gradient: Floats, db: Floats | None) -> Floats:
        """``y = softmax(W h + b) - r`` of one example, from ``gradient = r h^T``."""
        if db is not None and self.bias is not None and (size := float(db @ db)) > 0:
            features = db @ gradient / size
            label: Floats = softmax(self.weight @ features + self.bias) - db
            return label
        left, values, right = np.linalg.svd(gradient, full_matrices=False)
        residual, direction = values[0] * left[:, 0], right[0]
        if direction.sum() * self.feature_sums.mean() < 0:
            residual, direction = -residual, -direction
        return self._most_plausible(residual, direction)

    def _hardened(self, label: Floats, size: int) -> Floats:
        """Counts whose smoothing gives the mean soft label ``label``."""
        if self.smoothing is not None:
            return unsmoothed(label, size, self.smoothing)
        tried = np.stack([unsmoothed(label, size, eps) for eps in SMOOTHINGS])
        distance = ((tried - np.maximum(np.rint(tried), 0.0)) ** 2).sum(axis=1)
        best = int(distance.argmin())
        counts: Floats = tried[best if distance[best] < EVIDENCE * distance[0] else 0]
        return counts

    def _most_plausible(self, residual: Floats, direction: Floats) -> Floats:
        """Search the size ``t`` of the features: ``h = t direction``, ``p - y = residual / t``."""
        low, high = self._plausible_sizes(residual, direction)
        logits = self.weight @ direction
        shift = 0.0 if self.bias is None else self.bias
        for _ in range(REFINEMENTS):
            sizes = np.geomspace(low, high, GRID)
            labels = softmax(sizes[:, None] * logits + shift, axis=1) - residual / sizes[:, None]
            best = int(implausibility(labels).argmin())
            low, high = sizes[max(best - 1, 0)], sizes[min(best + 1, GRID - 1)]
        label: Floats = labels[best]
        return label

    def _plausible_sizes(self, residual: Floats, direction: Floats) -> tuple[float, float]:
        # |p - y| is at most sqrt(2), so that the features have at least this size. With ever
        # larger ones p becomes a perfect hard label: without an upper end that would always fit.
        least = float(np.linalg.norm(residual)) / 2**0.5
        sums, scale = np.abs(self.feature_sums), abs(float(direction.sum()))
        if scale * 1e3 < 1 or sums.max() == 0:  # the sum says nothing about the size
            return least, 1e3 * least
        low = max(least, float(sums.min()) / scale / 2)
        return low, max(2 * float(sums.max()) / scale, 2 * low)


def unsmoothed(label: Floats, size: int, smoothing: float) -> Floats:
    """Label counts behind a batch's mean soft label ``(1 - eps) n / B + eps / C``.

    >>> unsmoothed(np.array([0.55, 0.3, 0.05, 0.1]), 4, 0.2).tolist()
    [2.5, 1.25, 0.0, 0.25]
    """
    counts: Floats = size * (label - smoothing / len(label)) / (1 - smoothing)
    return counts


def implausibility(labels: Floats) -> Floats:
    """How far labels are from hard, smoothed or mixed ones, shape ``(labels,)``.

    All but two entries of such labels are equal, and none is negative.
    """
    ordered = np.sort(labels, axis=1)
    rest = ordered[:, : max(labels.shape[1] - 2, 1)]
    spread = ((rest - rest.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    cost: Floats = spread + (np.minimum(labels, 0.0) ** 2).sum(axis=1)
    return cost
