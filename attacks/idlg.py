"""iDLG's label step: the label of a single example from the signs of the head's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.label_sets import spread_over_set
from gradguard.attacks.messages import as_counts, batch_sizes, head_weights, row_sums
from gradguard.attacks.rounding import Floats
from gradguard.attacks.threat import Knowledge, Observation


def single_label(weight: Tensor, sums: Floats) -> int:
    """The class whose row points against the rows of all others.

    With one example all rows are multiples of its features, ``dW_c = (p_c - [c = y]) h``, and only
    the label's multiple is negative. Inner products of rows show that whatever the signs of the
    features; the row sum alone shows it where features are not negative. It decides between
    classes that are opposed to equally many others, as both are where there are two.

    Args:
        weight: The head's weight gradient, shape ``(classes, features)``.
        sums: Its row sums, shape ``(classes,)``.

    >>> rows = torch.tensor([[0.1], [-0.3], [0.2]]) * torch.tensor([[-1.0, 0.5]])
    >>> single_label(rows, rows.sum(dim=1).numpy())  # the row sum of class 1 is positive
    1
    """
    rows = weight.to("cpu", torch.float64)
    opposed = (rows @ rows.T < 0).sum(dim=1).numpy()
    return int(np.lexsort((sums, -opposed))[0])


@dataclass(frozen=True)
class IDLG:
    """The label of a batch of one; for larger batches the published extension to a set.

    A batch of one is read by :func:`single_label`. For larger batches the answer is built on the
    set of classes whose row sum is negative: each class of the set once, and the rest of the batch
    evenly over it. The extension, used as a baseline by later papers, needs features that are not
    negative, and says nothing of how often a class occurs.

    Guarantees:

    - exact for one example and its undefended gradient, for more than two classes whatever the
      features' signs, and for two classes where features are not negative;
    - for larger batches the answer is the even spread over the classes with a negative row sum.

    Exact means while the gradient is not zero: where the label's confidence rounds to 1, nothing
    is left to read.

    Args:
        head: Name of the output layer, where shape and position would mislead.

    Source: Zhao, Mopuri and Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020,
    arXiv:2001.02610.

    >>> gradient = torch.tensor([[-0.3, -0.3], [0.1, 0.2], [0.2, 0.1]])
    >>> IDLG().fit(Knowledge()).infer([Observation({"head.weight": gradient}, 1, 3)])
    tensor([[1, 0, 0]])
    """

    head: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def fit(self, knowledge: Knowledge) -> FittedIDLG:
        return FittedIDLG(head=self.head)


@dataclass(frozen=True)
class FittedIDLG:
    """Nothing is learned."""

    head: str | None = None

    def infer(self, observations: Sequence[Observation]) -> Tensor:
        sizes = batch_sizes(observations)
        sums = row_sums(observations, self.head)
        counts = spread_over_set(sums, sums < 0, sizes)
        for row in np.flatnonzero(sizes == 1).tolist():
            (weight,) = head_weights([observations[row]], self.head)
            counts[row] = np.eye(sums.shape[1], dtype=np.int64)[single_label(weight, sums[row])]
        return as_counts(counts)
