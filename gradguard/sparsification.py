"""Keeping k coordinates of the gradient: the largest ones, or random ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.elementwise import map_present, restore, widen
from gradguard.finite import check_finite
from gradguard.randomness import fresh_rng, generator

Scope = Literal["tensor", "global"]
_SAMPLED_FROM = 2**18  # below, one selection over everything is as quick


def kept_of(ratio: float, size: int) -> int:
    """How many of ``size`` coordinates a ratio keeps: the nearest integer, and at least one.

    >>> [kept_of(0.1, n) for n in (0, 1, 30, 99)]
    [0, 1, 3, 10]
    """
    return min(size, max(1, round(ratio * size)))


@dataclass(frozen=True)
class KeepTopK:
    """Keep the coordinates that are largest in magnitude and set all others to zero.

    Guarantees, for ``n`` coordinates and ``k = max(1, round(ratio * n))``:

    - exactly ``k`` coordinates are kept, unchanged; all others are zero;
    - no dropped coordinate is larger in magnitude than a kept one;
    - among equals the lowest index is kept, in row-major order whatever the memory layout;
    - a dropped coordinate is ``+0.0``: not even its sign is sent.

    It saves bytes. It does not hide labels: which coordinates survive, and their signs, still
    tell an attacker who knows the model what the batch held.

    Args:
        ratio: Share of coordinates kept, in (0, 1].
        scope: ``"global"`` ranks all coordinates of the message together, ``"tensor"`` ranks
            within each parameter, so that every parameter sends something.

    Alham Fikri Aji and Kenneth Heafield, "Sparse Communication for Distributed Gradient Descent",
    2017, arXiv:1704.05021.

    >>> KeepTopK(0.5).update([torch.tensor([1.0, -3.0]), torch.tensor([2.0, 0.5])], {})[0]
    [tensor([ 0., -3.]), tensor([2., 0.])]
    """

    ratio: float
    _: KW_ONLY
    scope: Scope = "global"
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope must be 'tensor' or 'global', got {self.scope!r}")

    def init(self, params: Sequence[Tensor]) -> State:
        return {}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        if self.scope == "global":
            return _masked_together(grads, lambda flat: largest(flat, ratio=self.ratio)), state

        def kept(grad: Tensor) -> Tensor:
            flat = grad.reshape(-1)
            return _masked(flat, largest(flat, ratio=self.ratio)).view(grad.shape)

        return map_present(kept, grads), state


@dataclass(frozen=True)
class KeepRandomK:
    """Keep a uniformly random set of coordinates, scaled up so that the mean is right.

    The set is drawn over the whole message, not per parameter, so a small parameter is often
    absent altogether.

    Guarantees, for ``n`` coordinates and ``k = max(1, round(ratio * n))``:

    - exactly ``k`` coordinates are drawn, without replacement, and multiplied by ``n / k``;
    - the expected output is the gradient;
    - a dropped coordinate is ``+0.0``: not even its sign is sent.

    The mask is fresh in every step and drawn by the client alone. It does not hide labels.

    Args:
        ratio: Share of coordinates kept, in (0, 1].

    Jakub Konečný et al., "Federated Learning: Strategies for Improving Communication Efficiency",
    2016, arXiv:1610.05492 (random mask).

    >>> (kept,), _ = KeepRandomK(0.25).update([torch.ones(8)], {"rng": fresh_rng()})
    >>> kept.sort().values
    tensor([0., 0., 0., 0., 0., 0., 4., 4.])
    """

    ratio: float
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def init(self, params: Sequence[Tensor]) -> State:
        return {"rng": fresh_rng()}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["rng"])

        def factors(flat: Tensor) -> Tensor:
            count = kept_of(self.ratio, len(flat))
            chosen = torch.randperm(len(flat), generator=rng)[:count]
            scale = torch.zeros(len(flat), dtype=flat.dtype)
            scale[chosen] = len(flat) / count
            return scale.to(flat.device)

        return _masked_together(grads, factors), {"rng": rng.get_state()}


def largest(flat: Tensor, *, ratio: float) -> Tensor:
    """Boolean mask of the ``kept_of(ratio, n)`` largest magnitudes; ties go to the lowest index.

    >>> largest(torch.tensor([1.0, -2.0, 2.0, 1.0]), ratio=0.75)
    tensor([ True,  True,  True, False])
    """
    count = kept_of(ratio, len(flat))
    # On the CPU whatever the device: numpy selects with SIMD, several times faster than
    # torch.topk, which also allocates a value and an index for every coordinate.
    magnitude = flat.detach().abs().cpu().numpy()
    threshold = _kth_largest(magnitude, count)
    mask = magnitude > threshold
    missing = count - np.count_nonzero(mask)
    mask[np.flatnonzero(magnitude == threshold)[:missing]] = True
    return torch.from_numpy(mask).to(flat.device)


def _kth_largest(values: np.ndarray, count: int) -> np.floating[Any]:
    if len(values) > _SAMPLED_FROM:
        # A sample gives a bound that is almost surely below the answer; only what exceeds it is
        # searched. A misleading sample costs time and never correctness.
        sample = values[:: (len(values) // 65_536) | 1]
        expected = count * len(sample) / len(values)
        rank = int(expected + 4 * expected**0.5 + 5)
        if rank < len(sample):
            bound = np.partition(sample, len(sample) - rank)[len(sample) - rank]
            candidates = values[values >= bound]
            values = candidates if len(candidates) >= count else values
    at = len(values) - count
    found: np.floating[Any] = np.partition(values, at)[at]
    return found


def _masked(flat: Tensor, factors: Tensor) -> Tensor:
    # Adding zero turns -0.0 into 0.0: a negative value times zero is -0.0, and the sign bit of
    # every dropped coordinate would go out with the message.
    return (flat * factors).add_(0.0)


def _masked_together(grads: Grads, factors: Callable[[Tensor], Tensor]) -> Grads:
    """Multiply all gradients, laid end to end, by one vector of factors."""
    check_finite(grads)
    present = [g for g in grads if g is not None]
    if not sum(g.numel() for g in present):
        return list(grads)
    device = present[0].device  # a model spread over several devices ranks on its first
    wide = max((widen(g).dtype for g in present), key=lambda dtype: dtype.itemsize)
    flat = torch.cat([g.reshape(-1).to(device=device, dtype=wide) for g in present])
    pieces = iter(torch.split(_masked(flat, factors(flat)), [g.numel() for g in present]))
    return [
        None if g is None else restore(next(pieces).view(g.shape).to(g.device), g, index=i)
        for i, g in enumerate(grads)
    ]


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio!r}")
