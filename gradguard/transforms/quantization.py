"""QSGD: random rounding to a few levels, unbiased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import magnitudes
from gradguard.kernels.elementwise import copied, overwrite
from gradguard.kernels.random_words import sixteen_bits, words_from
from gradguard.kernels.scratch import scratch
from gradguard.randomness import fresh_rng, generator


@dataclass(frozen=True)
class Quantize:
    """Round every coordinate at random to one of the levels that fit in ``bits`` bits.

    Levels are spread evenly over ``[-m, m]``, where ``m`` is the largest magnitude in the same
    tensor. From two bits on there are ``2**bits - 1`` of them, zero among them: a sign and
    ``2**(bits - 1) - 1`` steps. One bit has the two levels ``-m`` and ``+m``, and no zero.

    Guarantees:

    - the expected output is the gradient, up to ``2**-16`` of the distance between two levels:
      chances of rounding up are multiples of ``2**-16``, the nearest one. In half precision the
      levels themselves are rounded, which adds up to half a unit in their last place;
    - ``m``, ``-m`` and, from two bits on, zero come out exactly;
    - a coordinate takes at most ``2**bits`` values, all within ``[-m, m]``;
    - a tensor of zeros stays zero.

    A coordinate nearer to zero than ``2**-17`` of that distance is therefore never sent; without
    that grid it would be sent less than once in 131,072 steps.

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
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["rng"])
        words = words_from(rng)
        for index, (grad, largest) in enumerate(zip(grads, magnitudes(grads), strict=True)):
            if grad is not None:
                change = partial(_round_, bits=self.bits, largest=largest, words=words)
                overwrite(grad, change, index=index, most=largest)
        return grads, {"rng": rng.get_state()}


def _round_(piece: Tensor, *, bits: int, largest: float, words: np.random.SFC64) -> None:
    """Replace a piece of a tensor by its levels, in units of gradient."""
    draw = sixteen_bits(words, len(piece)).to(piece.device)
    if largest == 0:
        piece.zero_()
        return
    steps = 0.5 if bits == 1 else 2 ** (bits - 1) - 1
    # Level plus draw must be exact. In single precision it is up to 127 steps: seven bits of level
    # and sixteen of draw, and half a unit more so that the sum never lies on a level itself.
    exact = piece.dtype if steps <= 127 else torch.float64
    levels = piece
    if exact != piece.dtype:
        levels = scratch("quantization.levels", len(piece), exact, device=piece.device).copy_(piece)
    scaled_(levels, steps=steps, largest=largest)
    unit = 2.0**-16
    chance = scratch("quantization.chance", len(piece), exact, device=piece.device).copy_(draw)
    levels.add_(0.5 + unit / 2 + (0.5 if bits == 1 else 0.0)).add_(chance, alpha=unit).floor_()
    if levels is not piece:
        piece.copy_(levels)
    if bits == 1:
        piece.mul_(2).sub_(1).mul_(largest)
    else:
        unscaled_(piece, steps=steps, largest=largest)


def scaled_(piece: Tensor, *, steps: float, largest: float) -> None:
    """Divide by ``largest`` and multiply by ``steps``, in place.

    ``largest`` itself becomes ``steps``, exactly for more than 31 of them and up to rounding else.
    """
    factor = steps / largest
    if steps <= 31 and factor < 1e30:  # beyond, the factor itself may be infinite
        piece.mul_(factor)
    else:
        # By a tensor: with a number, an accelerator multiplies by the reciprocal.
        piece.div_(torch.tensor(largest, dtype=piece.dtype, device=piece.device)).mul_(steps)


def unscaled_(piece: Tensor, *, steps: float, largest: float) -> None:
    """The value of whole levels, in place: ``level / steps * largest``, rounded twice.

    In this order: ``largest / steps`` underflows, and its multiple exceeds ``largest`` at times.
    The wire format knows a tensor of levels by these very values.
    """
    piece.div_(torch.tensor(steps, dtype=piece.dtype, device=piece.device)).mul_(largest)
