"""TernGrad: every coordinate becomes minus, zero or plus one common magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.elementwise import map_present
from gradguard.randomness import fresh_rng, generator


@dataclass(frozen=True)
class Ternary:
    """Replace ``x`` by ``sign(x) * m`` with probability ``|x| / m`` and by zero otherwise.

    ``m`` is the largest magnitude in the same tensor. The paper also clips at 2.5 standard
    deviations, which biases the result and erases tensors of one element; that is left out.

    Guarantees:

    - the expected output is the gradient;
    - every coordinate is ``-m``, ``0`` or ``m``, and never has the wrong sign;
    - one-element, constant and zero tensors come out exactly.

    It does not hide labels.

    Wei Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep
    Learning", 2017, arXiv:1705.07878.

    >>> state = {"rng": fresh_rng()}
    >>> Ternary().update([torch.tensor([2.0, 0.0, -2.0])], state)[0]
    [tensor([ 2.,  0., -2.])]
    """

    reads: ClassVar[Reads] = "input"

    def init(self, params: Sequence[Tensor]) -> State:
        return {"rng": fresh_rng()}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["rng"])

        def ternary(grad: Tensor) -> Tensor:
            magnitude = grad.abs()
            largest = magnitude.max()
            draw = torch.rand(grad.shape, generator=rng, dtype=grad.dtype).to(grad.device)
            # Strictly less: a draw of exactly 0 must not turn a zero coordinate into a level.
            # A quotient, not draw * largest < magnitude: that product underflows to 0 < 0.
            kept = (draw < magnitude / largest) if largest > 0 else torch.zeros_like(draw).bool()
            return torch.where(kept, torch.copysign(largest, grad), 0.0)

        return map_present(ternary, grads), {"rng": rng.get_state()}
