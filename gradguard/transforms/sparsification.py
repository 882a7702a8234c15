"""Keeping k coordinates of the gradient: the largest ones, or random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import check_finite
from gradguard.kernels.elementwise import restore, widen
from gradguard.kernels.fused import choose, flat_views
from gradguard.kernels.memory_order import from_row_major, in_memory_order
from gradguard.kernels.random_coordinates import Coordinates, draw_coordinates
from gradguard.kernels.selection import Numbers, Stretch, largest
from gradguard.randomness import fresh_rng, generator

Scope = Literal["tensor", "global"]


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

    Beside the gradients it needs about 12 bytes for each coordinate kept, and a few megabytes that
    it uses again in every step.

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

    def select(self, numbers: Numbers, state: State) -> tuple[list[Stretch], State]:
        sizes = [tensor.numel() for tensor in numbers.like]
        if self.scope == "global":
            return largest(numbers, kept_of(self.ratio, sum(sizes))), state
        counts = (kept_of(self.ratio, size) for size in sizes)
        each = [largest(numbers, count, among=(i,)) for i, count in enumerate(counts)]
        return [stretch for stretches in each for stretch in stretches], state

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        chosen, state = _chosen(self, grads, state)
        out: Grads = [None if g is None else torch.zeros_like(g) for g in grads]
        _fill(out, chosen)
        return out, state

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        chosen, state = _chosen(self, grads, state)
        grads = _zeroed(grads)
        _fill(grads, chosen)
        return grads, state


@dataclass(frozen=True)
class KeepRandomK:
    """Keep a uniformly random set of coordinates, scaled up so that the mean is right.

    The set is drawn over the whole message, not per parameter, so a small parameter is often
    absent altogether.

    Guarantees, for ``n`` coordinates and ``k = max(1, round(ratio * n))``:

    - exactly ``k`` coordinates are drawn, without replacement, and multiplied by ``n / k``;
    - the expected output is the gradient;
    - a dropped coordinate is ``+0.0``: not even its sign is sent.

    The mask is fresh in every step and drawn by the client alone. It does not hide labels. The
    state's ``mask_seed`` is what
    :func:`gradguard.kernels.random_coordinates.draw_coordinates` drew the last message's
    coordinates from, all gradients laid end to end in row-major order: sent in their place, where
    none of them is zero, it saves their bytes, and it tells nothing about any other message's.
    It is -1 before the first message.

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
        return {"rng": fresh_rng(), "mask_seed": torch.tensor(-1, device="cpu")}  # no message yet

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        drawn, state = self._drawn(grads, state)
        out: Grads = [None if g is None else torch.zeros_like(g) for g in grads]
        return _put(out, drawn), state

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        drawn, state = self._drawn(grads, state)
        return _put(_zeroed(grads), drawn), state

    def _drawn(self, grads: Grads, state: State) -> tuple[list[_Sent], State]:
        """For every gradient the places drawn in it, row-major, and what is sent of them."""
        check_finite(grads)
        rng = generator(state["rng"])
        seed = _mask_seed(rng)
        state = {"rng": rng.get_state(), "mask_seed": torch.tensor(seed, device="cpu")}
        offsets = np.cumsum([0, *(0 if g is None else g.numel() for g in grads)])
        size = int(offsets[-1])
        count = kept_of(self.ratio, size)
        drawn = draw_coordinates(seed, size, count)
        bounds = np.searchsorted(drawn, offsets)
        sent: list[_Sent] = []
        for i, grad in enumerate(grads):
            places = drawn[bounds[i] : bounds[i + 1]] - offsets[i]
            if grad is not None and len(places):
                where = torch.from_numpy(places).to(grad.device)
                kept = widen(torch.take(grad.detach(), where)) * (size / count)
                # Adding zero turns -0.0 into 0.0, which tells no sign.
                sent.append((i, places, restore(kept, kept.to(grad.dtype), index=i) + 0.0))
        return sent, state


_Sent = tuple[int, Coordinates, Tensor]


def _mask_seed(rng: torch.Generator) -> int:
    """A seed that may be published: 63 bits, from which no other seed can be computed."""
    # Hashed, because whoever sees enough of a Mersenne Twister's words knows all the others.
    words = torch.empty(4, dtype=torch.int64, device="cpu").random_(generator=rng)
    return int.from_bytes(hashlib.sha256(words.numpy().tobytes()).digest()[:8], "big") >> 1


def _put(grads: Grads, sent: Sequence[_Sent]) -> Grads:
    """Write what is sent into gradients of zeros without gaps."""
    for index, places, values in sent:
        grad = grads[index]
        assert grad is not None
        flat = in_memory_order(grad)
        assert flat is not None
        where = torch.from_numpy(from_row_major(grad, places)).to(grad.device)
        flat.scatter_(0, where, values)  # not put_, which deterministic mode refuses
    return grads


def _chosen(transform: KeepTopK, grads: Grads, state: State) -> tuple[list[Stretch], State]:
    dense = _dense(grads)
    if not all(g is None or g.is_floating_point() for g in dense):
        check_finite(dense)  # says which, and what to do
    (flat,) = flat_views(dense, dense)
    like = [g for g in dense if g is not None]
    return choose(transform, dense, Numbers((flat,), lambda part: part, like), state)


def _fill(grads: Grads, chosen: Sequence[Stretch]) -> None:
    """Write what was chosen into gradients of zeros."""
    (flat,) = flat_views(grads, grads)
    for stretch in chosen:
        if stretch.positions.numel():
            target = flat[stretch.index][stretch.start : stretch.stop]
            where = stretch.positions.to(target.device, torch.int64)
            target.scatter_(0, where, stretch.values.to(target))


def _dense(grads: Grads) -> Grads:
    """Gradients without gaps or overlaps: copies of those that have any, all others as they are."""
    return [
        g if g is None or in_memory_order(g) is not None else torch.empty_like(g).copy_(g.detach())
        for g in grads
    ]


def _zeroed(grads: Grads) -> Grads:
    """Zeros, in the memory of ``grads`` where it has neither gaps nor overlaps."""
    grads = _dense(grads)
    for grad in grads:
        if grad is not None:
            grad.detach().zero_()
    return grads


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio!r}")
