"""QSGD: random rounding to a few levels, unbiased."""

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
class Quantize:
    """Round every coordinate at random to one of the levels that fit in ``bits`` bits.

    Levels are spread evenly over ``[-m, m]``, where ``m`` is the largest magnitude in the same
    tensor. From two bits on there are ``2**bits - 1`` of them, zero among them: a sign and
    ``2**(bits - 1) - 1`` steps. One bit has the two levels ``-m`` and ``+m``, and no zero.

    Guarantees:

    - the expected output is the gradient;
    - a coordinate takes at most ``2**bits`` values, all within ``[-m, m]``;
    - a tensor of zeros stays zero.

    The paper scales by the L2 norm; the largest magnitude, which its experiments use, gives less
    variance on long tensors. It does not hide labels.

    Args:
        bits: Bits per coordinate, sign included; 1 to 16. ``m`` comes on top, once per tensor.

    Dan Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and
    Encoding", 2017, arXiv:1610.02132.

    >>> state = {"rng": fresh_rng()}
    >>> Quantize(2).update([torch.tensor([4.0, 0.0, -4.0])], state)[0]
    [tensor([ 4.,  0., -4.])]
    """

    bits: int
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise TypeError(f"bits must be an integer from 1 to 16, got {self.bits!r}")
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits must lie in 1 to 16, got {self.bits!r}")

    def init(self, params: Sequence[Tensor]) -> State:
        return {"rng": fresh_rng()}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["rng"])
        return map_present(lambda g: _rounded(g, self.bits, rng), grads), {"rng": rng.get_state()}


def _rounded(grad: Tensor, bits: int, rng: torch.Generator) -> Tensor:
    largest = grad.abs().max()
    if largest == 0:
        return grad
    draw = torch.rand(grad.shape, generator=rng, dtype=grad.dtype).to(grad.device)
    share = grad / largest  # in [-1, 1] exactly: |x| <= m, and division rounds to nearest
    if bits == 1:
        return torch.where(draw * 2 < 1 + share, largest, -largest)
    steps = 2 ** (bits - 1) - 1
    below = torch.floor(share * steps)
    # Not floor(share * steps + draw): that sum rounds, at times up to an integer past the top.
    level = below + (draw < share * steps - below)
    # Not level * (largest / steps): that quotient underflows, and its product exceeds largest.
    value: Tensor = level / steps * largest
    return value
