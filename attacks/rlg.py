"""RLG: which classes are present, by a singular value decomposition and linear programmes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from gradguard.attacks.head import find_head
from gradguard.attacks.label_sets import fill_greedily, ranks, spread_over_set
from gradguard.attacks.llg import impact_of
from gradguard.attacks.messages import as_counts, batch_sizes, finite, head_weights, row_sums
from gradguard.attacks.rounding import Floats, Ints
from gradguard.attacks.threat import Knowledge, NotApplicableError, Observation

# Singular values below this many roundings of the largest are taken for noise of the arithmetic.
ROUNDINGS = 8
# Residuals of a unit vector: below the first it lies in the cone, above the second it does not.
IN_CONE, OFF_CONE = 1e-9, 1e-5


def class_directions(weight: Tensor, batch_size: int) -> Floats:
    """Unit vectors, one per class, that span what the head's gradient says of the logits.

    ``dW = (P - Y)^T H / B`` has rank ``k <= B``, and its ``k`` left singular vectors span the same
    space as the columns of ``(P - Y)^T`` where features are independent. Row ``c`` of the result
    is the ``c``-th row of these singular vectors at length one, or zero where it is zero.

    Args:
        weight: The head's weight gradient, shape ``(classes, features)``.
        batch_size: Examples behind it.

    Returns:
        Shape ``(classes, k)``. The rank counts singular values above the rounding errors of the
        gradient's number type, relative to the largest, so that no unit of length enters.
    """
    values = finite(weight.double())
    largest = np.abs(values).max(initial=0.0) or 1.0
    left, singular, _ = np.linalg.svd(values / largest, full_matrices=False)
    threshold = ROUNDINGS * torch.finfo(weight.dtype).eps * singular[0]
    rank = min(int((singular > threshold).sum()), batch_size)
    lengths = np.linalg.norm(left[:, :rank], axis=1, keepdims=True)
    directions: Floats = left[:, :rank] / np.where(lengths > 0, lengths, 1.0)
    return directions


def separable_by_programme(directions: Floats, label: int) -> bool:
    """Whether a vector ``r`` has ``r q_label < 0`` and ``r q_j >= 0`` for all others, by an LP."""
    others = np.delete(directions, label, axis=0)
    found = linprog(
        directions[label], A_ub=-others, b_ub=np.zeros(len(others)), bounds=(-1, 1), method="highs"
    )
    return bool(found.status == 0 and found.fun < -OFF_CONE)


def present_classes(directions: Floats) -> np.ndarray:
    """Which classes can be separated from all others; boolean, shape ``(classes,)``.

    The paper sorts out easy cases with a perceptron and solves a linear programme for each of the
    rest. Here ``r = -q_c`` is tried first, for all classes in one product. Of the others, class
    ``c`` is not separable exactly if ``q_c`` is in the cone of the other classes' vectors (Farkas'
    lemma), which non-negative least squares decides ten times faster than a programme. Only where
    its residual is neither zero nor clear of zero does the programme decide.
    """
    gram = directions @ directions.T
    opposed = gram - np.diag(gram.diagonal()) <= IN_CONE
    present: np.ndarray = opposed.all(axis=1) & (gram.diagonal() > 0)
    for label in np.flatnonzero(~present & (gram.diagonal() > 0)):
        others = np.delete(directions, label, axis=0)
        try:
            _, residual = nnls(others.T, directions[label])
        except RuntimeError:  # too many iterations
            residual = (IN_CONE + OFF_CONE) / 2
        if IN_CONE < residual < OFF_CONE:
            present[label] = separable_by_programme(directions, int(label))
        else:
            present[label] = residual >= OFF_CONE
    return present


def counts_from_set(sums: Floats, members: np.ndarray, sizes: Ints) -> Ints:
    """Each member once, the most negative row sums first, and the rest by LLG's greedy step.

    The paper stops at the set. Where there is no negative row sum, and so no impact, or no member,
    the rest is spread evenly (:func:`~gradguard.attacks.label_sets.spread_over_set`).

    >>> sums = np.array([[-2.0, -0.6, 0.5, 2.1]])
    >>> counts_from_set(sums, np.array([[True, True, True, False]]), np.array([6]))
    array([[4, 1, 1, 0]])
    """
    even = spread_over_set(sums, members, sizes)
    impact = impact_of(sums, sizes)[:, None]
    left = np.where(members, sums, np.inf)
    once = (members & (ranks(left) < sizes[:, None])).astype(np.int64)
    usable = (impact < 0) & members.any(axis=1, keepdims=True)
    # Rows without an impact are full from the start, so that nothing is spent on them. LLG takes
    # the impact of the first outputs out too; every member has one, and no minimum moves.
    start = np.where(usable, once, even)
    return fill_greedily(start, left, steps=-impact, sizes=sizes)


def check_applicable(batch_size: int | None, num_classes: int | None, features: int | None) -> None:
    """Raise unless ``B < min(C, D)``, as far as the three are known.

    Raises:
        NotApplicableError: The batch is too large for rank to tell anything.
    """
    known = [bound for bound in (num_classes, features) if bound is not None]
    if batch_size is not None and known and not batch_size < min(known):
        raise NotApplicableError(
            f"expected fewer examples than classes and features of the output layer, got a batch "
            f"of {batch_size} for {num_classes} classes and {features} features; "
            "attack smaller batches with RLG"
        )


@dataclass(frozen=True)
class RLG:
    """The set of labels from the output layer's gradient alone: no model, no data.

    Class ``c`` is present only where a combination of the gradient's singular vectors is negative
    at ``c`` and at no other class: the row of ``P - Y`` of an example of class ``c`` is one. No
    sign of a feature matters, and no bias is read. The set is turned into counts by
    :func:`counts_from_set`, the last step of which does read signs.

    Guarantees:

    - no class of the batch is missed in an undefended gradient whose examples have linearly
      independent features, while residuals ``p - y`` are well above rounding;
    - the same answer for every positive multiple of a message.

    Not every member of the set is in the batch: the closer ``B`` is to ``C``, the more absent
    classes can be separated as well, and with ``C - 1`` independent examples all of them. Noise,
    sparsification and quantization break the test without hiding the labels from other attackers.

    A message costs about 1 ms for 10 classes and 70 ms for 100 (``B = 64``), on one core; for 1,000
    classes it is seconds.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Raises:
        NotApplicableError: The batch is not smaller than the numbers of classes and of features.

    Source: Dang et al., "Revealing and Protecting Labels in Distributed Training", 2021,
    arXiv:2111.00556.

    >>> features = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]])
    >>> residuals = torch.tensor([[-0.8, 0.3, 0.3, 0.2], [0.1, 0.4, -0.7, 0.2]])
    >>> update = {"fc.weight": residuals.T @ features / 2}
    >>> RLG().fit(Knowledge()).infer([Observation(update, 2, 4)])
    tensor([[1, 0, 1, 0]])
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def fit(self, knowledge: Knowledge) -> FittedRLG:
        features = None
        if knowledge.model is not None and knowledge.num_classes is not None:
            parameters = dict(knowledge.model.named_parameters())
            found = find_head(parameters, knowledge.num_classes, self.head)
            features = parameters[found.weight].shape[1]
        check_applicable(knowledge.batch_size, knowledge.num_classes, features)
        return FittedRLG(head=self.head)


@dataclass(frozen=True)
class FittedRLG:
    """Nothing is learned."""

    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        sums = row_sums(observations, self.head)
        members = np.zeros(sums.shape, dtype=bool)
        for row, weight in enumerate(head_weights(observations, self.head)):
            check_applicable(int(sizes[row]), *weight.shape)
            members[row] = present_classes(class_directions(weight, int(sizes[row])))
        return as_counts(counts_from_set(sums, members, sizes))
