"""PowerSGD: each matrix of the gradient as the product of two thin ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import check_finite
from gradguard.kernels.elementwise import restore, widen
from gradguard.kernels.low_rank_product import outer_sum

_START_SEED = 0  # of the first subspace
_ALIGNMENT = 64  # bytes, as torch's own allocations have
_SAFE = 1e-20, 1e20  # largest elements whose products neither vanish nor overflow in float32


@dataclass(frozen=True)
class LowRank:
    """Send each matrix as a product of two factors with ``rank`` columns.

    A gradient of two or more dimensions is taken as a matrix of shape ``(first, all others)``.
    One step of subspace iteration, started where the last message ended, finds the directions.

    Guarantees, for finite gradients:

    - a sent matrix has at most rank ``rank``; one that had is sent unchanged up to rounding,
      or refused where its factors overflow, not far below the largest number of its dtype;
    - tensors of fewer dimensions, and matrices no larger than their factors, pass bitwise;
    - a matrix of zeros stays zero, and neither zero nor parallel columns ever give NaN;
    - on a gradient that stays the same, the message converges to the best one of its rank;
    - the factors' product is the message to the last bit, in the receiver's process as well.

    Not guaranteed: the message is biased, and in its first steps far from the best of its rank.
    Compose it as ``ErrorFeedback(LowRank(rank))``, as the paper does, so that what is left out is
    sent later. It does not hide labels. Here every client has factors of its own; the paper's
    clients average the factors between the two halves of the step, which takes two exchanges.

    The state holds the factors of the last message: ``state["factors"][i]`` has ``p`` of shape
    ``(first, rank)`` and ``q`` of shape ``(all others, rank)``, in at least float32. They are
    zero where the gradient was missing and have no elements where it goes out as it is.

    Args:
        rank: Columns of each factor, at least 1.

    Thijs Vogels, Sai Praneeth Karimireddy and Martin Jaggi, "PowerSGD: Practical Low-Rank
    Gradient Compression for Distributed Optimization", 2019, arXiv:1905.13727.

    >>> low_rank, params = LowRank(1), [torch.zeros(3, 4), torch.zeros(2)]
    >>> (matrix, bias), state = low_rank.update(
    ...     [torch.ones(3, 4), torch.tensor([1.0, 2.0])], low_rank.init(params)
    ... )
    >>> matrix.round(decimals=4)
    tensor([[1., 1., 1., 1.],
            [1., 1., 1., 1.],
            [1., 1., 1., 1.]])
    >>> bias, state["factors"][0]["p"].shape, state["factors"][0]["q"].shape
    (tensor([1., 2.]), torch.Size([3, 1]), torch.Size([4, 1]))
    """

    rank: int
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int):
            raise TypeError(f"rank must be an integer of at least 1, got {self.rank!r}")
        if not self.rank >= 1:
            raise ValueError(f"rank must be at least 1, got {self.rank!r}")

    def init(self, params: Sequence[Tensor]) -> State:
        factors = [_no_factors(p, self.rank) for p in params]
        # The same in every client and every run: random only so that hardly any gradient is
        # orthogonal to it. It is no noise and hides nothing.
        return {"start": [_gaussian(f["q"]) for f in factors], "factors": factors}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        out, starts, factors = list(grads), list(state["start"]), list(state["factors"])
        for i, (grad, start) in enumerate(zip(grads, starts, strict=True)):
            if not start.numel():
                continue
            if grad is None:
                factors[i] = {name: torch.zeros_like(f) for name, f in factors[i].items()}
                continue
            matrix = _aligned(widen(grad).reshape(len(grad), -1))
            p, q, starts[i] = _subspace_step(matrix, start.to(matrix))
            factors[i] = {"p": p, "q": q}
            out[i] = restore(outer_sum(p, q).view(grad.shape), grad, index=i)
        return out, {"start": starts, "factors": factors}


def _no_factors(param: Tensor, rank: int) -> dict[str, Tensor]:
    """Factors of a matrix of zeros; without elements where they would be no smaller than it."""
    rows, columns = 0, 0
    if param.ndim >= 2 and param.numel():
        rows, columns = len(param), param.numel() // len(param)
    if rank * (rows + columns) >= rows * columns:
        rows, columns = 0, 0
    kind = widen(param.detach())
    return {"p": kind.new_zeros(rows, rank), "q": kind.new_zeros(columns, rank)}


def _aligned(matrix: Tensor) -> Tensor:
    # Products of matrices round in an order that depends on where in memory they begin.
    return matrix.clone() if matrix.data_ptr() % _ALIGNMENT else matrix


def _gaussian(like: Tensor) -> Tensor:
    rng = torch.Generator("cpu").manual_seed(_START_SEED)
    return torch.randn(like.shape, generator=rng, device="cpu").to(like)


def _subspace_step(matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of ``matrix`` projected onto ``matrix @ start``, and where to start next."""
    low, high = torch.aminmax(matrix)
    largest = max(-low.item(), high.item())
    if largest == 0:
        return matrix.new_zeros(len(matrix), start.shape[1]), torch.zeros_like(start), start
    scale = 1.0 if _SAFE[0] < largest < _SAFE[1] else _power_of_two(largest, matrix)
    with torch.autocast(matrix.device.type, enabled=False):
        scaled = matrix if scale == 1 else matrix / scale
        # Not Gram-Schmidt: it divides by the norm of what is left of a column, which is 0 / 0 for
        # a zero or parallel one. Householder's reflections complete the basis instead.
        p = torch.linalg.qr(scaled @ start).Q
        q = scaled.t() @ p
    return p, q * scale, _next_start(q)


def _next_start(q: Tensor) -> Tensor:
    columns = q.abs().amax(0)
    largest = columns.max().item()
    # About one in size, or the products of the next step would vanish; without rounding.
    start = q / _power_of_two(largest, q) if largest else q
    missing = columns == 0  # such a column would stay zero for ever
    return torch.where(missing, _gaussian(q), start) if bool(missing.any()) else start


def _power_of_two(magnitude: float, like: Tensor) -> float:
    """The largest one that is no larger, and a normal number in the dtype of ``like``."""
    return max(math.ldexp(1.0, math.frexp(magnitude)[1] - 1), torch.finfo(like.dtype).tiny)
