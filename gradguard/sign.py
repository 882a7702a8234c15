"""Scaled signs: one bit per coordinate and one magnitude per tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.elementwise import map_present


@dataclass(frozen=True)
class Sign:
    """Replace every coordinate by its sign times the tensor's mean magnitude.

    Guarantees:

    - every non-zero coordinate keeps its sign, and a zero stays zero;
    - the sum of magnitudes over each tensor without zeros is kept, up to rounding.

    The result is biased: wrap it in ``ErrorFeedback`` to train well. It does not hide labels;
    signs alone give most of them away.

    Sai Praneeth Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes", 2019, arXiv:1901.09847 (the scaled sign).

    >>> Sign().update([torch.tensor([1.0, -3.0]), torch.tensor([0.0])], {})[0]
    [tensor([ 2., -2.]), tensor([0.])]
    """

    reads: ClassVar[Reads] = "input"

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return map_present(_scaled_sign, grads), state


def _scaled_sign(grad: Tensor) -> Tensor:
    # In float64: a float32 sum of large magnitudes overflows, and the mean of tiny ones vanishes.
    mean = grad.abs().mean(dtype=torch.float64).to(grad.dtype)
    return torch.sign(grad) * mean
