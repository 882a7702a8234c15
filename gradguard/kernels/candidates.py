"""Candidates for a selection, and leaving only the largest among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradguard.kernels.memory_order import row_major


@dataclass
class Run:
    """Stretches of tensors that are looked at together, and what was found in them."""

    parts: list[tuple[int, int, int]]  # tensor, start, stop
    begins: NDArray[np.int32]  # where each part begins in the run
    positions: NDArray[np.int32]  # sorted, counted from the run's first element
    values: NDArray[Any]

    def keep(self, mask: NDArray[np.bool_]) -> None:
        self.positions, self.values = self.positions[mask], self.values[mask]

    def bounds(self) -> NDArray[np.int64]:
        """Where each part's positions begin, and where the last part's end."""
        return np.append(np.searchsorted(self.positions, self.begins), len(self.positions))


def thin_out(runs: list[Run], like: Sequence[Tensor], count: int, high: Any) -> float:
    """Leave only the ``count`` largest; among equals the first in row-major order.

    Args:
        runs: Candidates, in any order; changed.
        like: Tensors whose shape and strides say where an element stands in row-major order.
        count: How many may stay.
        high: A magnitude that is probably just above the smallest to stay; infinity if unknown.

    Returns:
        The smallest magnitude that stayed, or 0 if all did.
    """
    if sum(len(run.positions) for run in runs) <= count:
        return 0.0
    smallest = _kth_largest(runs, count, high) if count else math.inf
    stays = [np.abs(run.values) >= smallest for run in runs]
    surplus = sum(map(np.count_nonzero, stays)) - count
    if surplus:
        ties = [np.abs(run.values) == smallest for run in runs]
        room = sum(map(np.count_nonzero, ties)) - surplus
        stays = [kept & ~tie for kept, tie in zip(stays, ties, strict=True)]
        _lowest(runs, like, ties, room)
        stays = [kept | tie for kept, tie in zip(stays, ties, strict=True)]
    for run, kept in zip(runs, stays, strict=True):
        run.keep(kept)
    return float(smallest)


def _kth_largest(runs: list[Run], count: int, high: Any) -> Any:
    # A numpy number, of a dtype that holds every magnitude: rounded, it would make or lose ties.
    # What lies above the bracket needs no ranking: of many candidates that leaves a few.
    below = [m[m < high] for m in (np.abs(run.values) for run in runs)]
    surely = sum(len(run.values) for run in runs) - sum(map(len, below))
    if surely >= count:
        return _kth_largest(runs, count, math.inf)
    unsure = np.concatenate(below)
    at = len(unsure) - (count - surely)
    return np.partition(unsure, at)[at]


def _lowest(
    runs: list[Run], like: Sequence[Tensor], ties: list[NDArray[np.bool_]], room: int
) -> None:
    """Of the ties only the ``room`` that come first in row-major order, tensor by tensor."""
    offsets = np.cumsum([0, *(tensor.numel() for tensor in like)])
    ranks = []
    for run in runs:
        rank = np.empty(len(run.positions), dtype=np.int64)
        at = run.bounds()
        for (index, start, _), begin, first, last in zip(
            run.parts, run.begins, at[:-1], at[1:], strict=True
        ):
            inside = run.positions[first:last].astype(np.int64) - begin + start
            rank[first:last] = offsets[index] + row_major(like[index], inside)
        ranks.append(rank)
    tied = np.concatenate([rank[equal] for rank, equal in zip(ranks, ties, strict=True)])
    last_in = np.partition(tied, room - 1)[room - 1] if room else -1
    for rank, equal in zip(ranks, ties, strict=True):
        equal &= rank <= last_in
