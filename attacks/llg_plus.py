"""LLG+: LLG with impact and offset calibrated on auxiliary data, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from torch import Tensor

from gradguard.attacks.forward import HeadPass, head_pass, labels_array
from gradguard.attacks.llg import greedy_counts
from gradguard.attacks.messages import as_counts, batch_sizes, row_sums
from gradguard.attacks.rounding import Floats
from gradguard.attacks.threat import Knowledge, Observation, require


@dataclass(frozen=True)
class Calibration:
    """What an example adds to the head's row sums, times the batch size.

    Args:
        impact: Of an example on its own class's row sum, with the paper's ``1 + 1/C``.
        offset: Of the other classes' examples, per class; shape ``(classes,)``.
    """

    impact: float
    offset: tuple[float, ...]


def calibrate(passed: HeadPass, labels: np.ndarray) -> Calibration:
    """Impact and offset from a forward pass over labelled examples.

    The published procedure runs ``repeats * classes`` backward passes on batches of one class and
    reads the row sums ``g^(c)``. But ``dW_j = mean_i (p_ij - [j = c]) h_i``, so that
    ``g_j^(c) = mean_i (p_ij - [j = c]) sum_d h_id``: nothing needs a backward pass.

    Guarantees:

    - equal, up to rounding, to the published procedure run on the same examples, if each class
      has the same number of them there as here.

    Args:
        passed: A :class:`~gradguard.attacks.forward.HeadPass` over the examples.
        labels: Shape ``(examples,)``. A class without examples takes no part in the averages.
    """
    classes = passed.probabilities.shape[1]
    weighted = passed.probabilities * passed.feature_sums[:, None]
    members = labels[:, None] == np.arange(classes)
    present = np.flatnonzero(members.any(axis=0))
    sizes = members.sum(axis=0)[present]
    # sums[c, j] is g_j^(c), rows over the classes that have examples.
    sums = (members.T.astype(np.float64) @ weighted)[present] / sizes[:, None]
    own = (members.T.astype(np.float64) @ passed.feature_sums)[present] / sizes
    sums[np.arange(len(present)), present] -= own
    return calibration_of(sums, present)


def calibration_of(sums: Floats, present: np.ndarray) -> Calibration:
    """Impact and offset from the row sums of single-class batches.

    Args:
        sums: ``sums[k, j]`` is the row sum of class ``j`` from examples of class ``present[k]``.
        present: The classes that have examples.
    """
    classes = sums.shape[1]
    own = np.arange(len(present)), present
    others = np.ones(sums.shape, dtype=bool)
    others[own] = False
    # With a single class present nothing was seen of that class's offset: leave it at zero.
    offset = np.where(others, sums, 0.0).sum(axis=0) / np.maximum(others.sum(axis=0), 1)
    impact = (1 + 1 / classes) * float(sums[own].mean())
    return Calibration(impact, tuple(offset.tolist()))


@dataclass(frozen=True)
class LLGPlus:
    """LLG by an attacker who has the model and auxiliary data.

    Uses all auxiliary examples, where the paper draws ten batches per class. The calibration costs
    one forward pass per model and none per message.

    Guarantees:

    - calibrated to the published procedure's values on the same examples, up to 1e-5.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Source: Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", 2021,
    arXiv:2105.09369.
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"model", "auxiliary", "num_classes"})

    def fit(self, knowledge: Knowledge) -> FittedLLGPlus:
        require(knowledge, self)
        assert knowledge.model is not None  # for the type checker; require has raised
        assert knowledge.auxiliary is not None
        assert knowledge.num_classes is not None
        inputs, labels = knowledge.auxiliary
        passed = head_pass(
            knowledge.model,
            inputs,
            num_classes=knowledge.num_classes,
            head=self.head,
            seed=knowledge.seed,
        )
        calibration = calibrate(passed, labels_array(labels, knowledge.num_classes))
        return FittedLLGPlus(calibration, head=self.head)


@dataclass(frozen=True)
class FittedLLGPlus:
    """LLG's greedy step with a given calibration; also LLG*'s."""

    calibration: Calibration
    _: KW_ONLY
    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        sums = row_sums(observations, self.head)
        offset = np.array(self.calibration.offset)
        if sums.shape[1] != len(offset):
            raise ValueError(f"calibrated for {len(offset)} classes, got {sums.shape[1]}")
        impact = self.calibration.impact / sizes
        return as_counts(greedy_counts(sums, impact=impact, offset=offset, sizes=sizes))
