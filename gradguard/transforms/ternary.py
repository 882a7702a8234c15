"""TernGrad: every coordinate becomes minus, zero or plus one common magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import magnitudes
from gradguard.kernels.elementwise import copied, overwrite
from gradguard.kernels.scratch import CHUNK, scratch
from gradguard.randomness import fresh_rng, generator


@dataclass(frozen=True)
class Ternary:
    """Replace ``x`` by ``sign(x) * m`` with probability ``|x| / m`` and by zero otherwise.

    ``m`` is the largest magnitude in the same tensor. The paper also clips at 2.5 standard
    deviations, which biases the result and erases tensors of one element; that is left out.

    Guarantees:

    - the expected output is the gradient, up to ``2**-24`` of ``m``, of which draws are multiples;
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
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["rng"])
        for index, (grad, largest) in enumerate(zip(grads, magnitudes(grads), strict=True)):
            if grad is not None:
                change = partial(_ternary_, largest=largest, rng=rng)
                overwrite(grad, change, index=index, most=largest, row_major=True)
        return grads, {"rng": rng.get_state()}


def _ternary_(piece: Tensor, *, largest: float, rng: torch.Generator) -> None:
    for part in torch.split(piece, CHUNK):  # an accelerator's piece may be longer
        draw = scratch("ternary.draw", len(part), part.dtype).uniform_(generator=rng)
        if largest == 0:
            part.zero_()
            continue
        share = torch.abs(
            part, out=scratch("ternary.share", len(part), part.dtype, device=part.device)
        )
        # Strictly less: a draw of exactly 0 must not turn a zero coordinate into a level.
        # A quotient, not draw * largest < magnitude: that product underflows to 0 < 0.
        share.div_(torch.tensor(largest, dtype=part.dtype, device=part.device))
        kept = torch.lt(draw.to(part.device), share, out=share)
        part.sign_().mul_(kept).add_(0.0).mul_(largest)  # adding zero makes 0.0 of -0.0
