"""Exact selection of the largest magnitudes, in one pass over numbers that are never all in memory.

A strided sample gives a bound that is almost surely just below the answer. One pass, chunk by
chunk, keeps whatever reaches the bound, and only these few candidates are ranked. A misleading
sample costs time and never correctness: with too few candidates the pass is made again without
the bound, with too many they are thinned out on the way.

The numbers may be sums of gradients and state, computed where they are looked at: a selection
writes to nothing, so an update that is refused has changed nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradguard.core import GradTransform, State, stands_for_update
from gradguard.kernels.candidates import Run, thin_out
from gradguard.kernels.scratch import scratch

_RUN = 2**18  # elements looked at together: more would leave the processor's cache
_RUN_ON_ACCELERATOR = 2**26  # there every look costs a wait for the device
_SAMPLES = 2**14  # each costs a line of memory; more would narrow the bounds by little
_LEAST_STRIDE = 65  # a short gradient is searched as a whole rather than sampled densely
_FEW = 2**16  # so many candidates need no thinning out
_SMALL = 2**15  # elements of a tensor that is looked at together with others:
_TOGETHER = 2**16  # so many elements of them
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_ONE_PART = np.zeros(1, dtype=np.int32)


class OverflowInSelectionError(ArithmeticError):
    """A number to choose from is not finite. ``index`` is the tensor that it lies in."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class Numbers:
    """Numbers to choose from: an elementwise function of one or several lists of flat tensors.

    Args:
        terms: Lists of flat tensors without gaps; the i-th of each list has the same length,
            dtype and device for a given list.
        combine: From one stretch of every list to the numbers; may return scratch memory.
        like: For every tensor one of its shape and strides, which says where an element stands
            in row-major order.
    """

    terms: tuple[Sequence[Tensor], ...]
    combine: Callable[..., Tensor]
    like: Sequence[Tensor]


@dataclass(frozen=True)
class Stretch:
    """Chosen coordinates in the elements ``start`` to ``stop`` of one flat tensor.

    Args:
        index: Which tensor.
        start: First element of the stretch.
        stop: End of the stretch.
        positions: Sorted positions of what was chosen, counted from ``start``; int32.
        values: The numbers there, in at least float32.
    """

    index: int
    start: int
    stop: int
    positions: Tensor
    values: Tensor


@runtime_checkable
class Selects(GradTransform, Protocol):
    """A transform that sends some coordinates as they are, and zeros in place of all others.

    Error feedback then need not compute what is owed anywhere but where it is looked at.
    """

    def select(self, numbers: Numbers, state: State) -> tuple[list[Stretch], State]:
        """What ``update`` would send of these numbers, and the state for the next step."""
        ...


def selects(transform: GradTransform) -> bool:
    """Whether ``select`` is there and stands for the ``update`` that is there.

    A subclass that overrides ``update`` alone has inherited a ``select`` that does something else.
    """
    return stands_for_update(transform, "select")


def largest(numbers: Numbers, count: int, *, among: Sequence[int] | None = None) -> list[Stretch]:
    """The ``count`` numbers of largest magnitude, as stretches that cover every element once.

    Guarantees, where at least ``count`` numbers are not zero (zeros are never chosen):

    - exactly ``count`` are chosen, and none that is left is larger in magnitude;
    - among equals the lowest index is chosen, in row-major order, tensor by tensor;
    - nothing is written to, and all numbers are finite if this returns;
    - the same numbers give the same choice, whatever the number of threads.

    Args:
        numbers: What is chosen from.
        count: How many are chosen.
        among: Only these tensors, by index; all by default.

    Raises:
        OverflowInSelectionError: A number is NaN or infinite.

    >>> flat = [torch.tensor([1.0, -2.0, 2.0, 1.0])]
    >>> (found,) = largest(Numbers((flat,), lambda part: part, flat), 3)
    >>> found.positions, found.values
    (tensor([0, 1, 2], dtype=torch.int32), tensor([ 1., -2.,  2.]))
    """
    indices = range(len(numbers.like)) if among is None else among
    low, high = _bracket(numbers, indices, count)
    runs = _candidates(numbers, indices, count, low)
    held = sum(len(run.positions) for run in runs)
    if held < count and low > 0:
        runs = _candidates(numbers, indices, count, 0.0)
    thin_out(runs, numbers.like, count, high)
    return [stretch for run in runs for stretch in _stretches(run)]


def _bracket(numbers: Numbers, indices: Sequence[int], count: int) -> tuple[float, Any]:
    """Bounds on the ``count``-th largest magnitude that a sample suggests."""
    total = sum(numbers.like[index].numel() for index in indices)
    stride = max(total // _SAMPLES, _LEAST_STRIDE) | 1  # odd: channel counts are even
    if total < _LEAST_STRIDE * 256:
        return 0.0, math.inf
    samples, offset = [], 0
    for index in indices:
        samples.append([term[index][-offset % stride :: stride] for term in numbers.terms])
        offset += numbers.like[index].numel()
    device = samples[0][0].device
    terms = [_joined([s.to(device) for s in term]) for term in zip(*samples, strict=True)]
    sample = _numpy(numbers.combine(*terms).abs())
    expected = count * len(sample) / total
    spread = 3 * math.sqrt(expected) + 5
    low, high = int(expected + spread), int(expected - spread)
    places = [len(sample) - rank for rank in (low, high) if 0 < rank < len(sample)]
    ranked = np.partition(sample, places) if places else sample
    least = float(ranked[len(sample) - low]) if low < len(sample) else 0.0
    # Where even this is NaN or infinite no bound must hide what has to be refused.
    return (
        least if math.isfinite(least) else 0.0,
        ranked[len(sample) - high] if high > 0 else math.inf,
    )


def _candidates(numbers: Numbers, indices: Sequence[int], count: int, low: float) -> list[Run]:
    """Everything not zero of magnitude ``low`` or more; less where more than enough is found."""
    runs, held, limit = [], 0, max(4 * count, _FEW)
    for parts in _plan(numbers, indices):
        run = _found(numbers, parts, low)
        runs.append(run)
        held += len(run.positions)
        if held > limit:
            low = max(low, thin_out(runs, numbers.like, count, math.inf))
            held = sum(len(run.positions) for run in runs)
    return runs


def _plan(numbers: Numbers, indices: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Long tensors in pieces; short ones together, because every call costs microseconds."""
    waiting: dict[Any, list[tuple[int, int, int]]] = {}
    sizes: dict[Any, int] = {}
    for index in indices:
        parts = [term[index] for term in numbers.terms]
        size = parts[0].numel()
        if size > _SMALL:
            step = _RUN if parts[0].device.type == "cpu" else _RUN_ON_ACCELERATOR
            yield from ([(index, at, min(size, at + step))] for at in range(0, size, step))
        elif size:
            kind = tuple((part.dtype, part.device) for part in parts)
            if sizes.get(kind, 0) + size > _TOGETHER:
                yield waiting.pop(kind)
                sizes[kind] = 0
            waiting.setdefault(kind, []).append((index, 0, size))
            sizes[kind] = sizes.get(kind, 0) + size
    yield from waiting.values()


def _found(numbers: Numbers, parts: list[tuple[int, int, int]], low: float) -> Run:
    lengths = [stop - start for _, start, stop in parts]
    begins = np.cumsum([0, *lengths[:-1]], dtype=np.int32) if len(parts) > 1 else _ONE_PART
    values = _read(numbers, parts)
    where = _reaching(values, low)
    found = _numpy(torch.take(values, where))
    if not np.isfinite(found).all():
        _refuse(numbers, parts)
    return Run(parts, begins, where.cpu().numpy().astype(np.int32), found)


def _reaching(values: Tensor, low: float) -> Tensor:
    """Where a number is not zero and has magnitude ``low`` or more, or is NaN."""
    # Bits without the sign, as an integer, order numbers by magnitude, with infinity and NaN on
    # top: whatever must be refused is among the candidates, and no pass has to look for it.
    bits, device = _BITS[values.dtype.itemsize], values.device
    magnitude = scratch("selection.magnitude", values.numel(), bits, device=device)
    unsigned, least = torch.iinfo(bits).max, _least(low, values.dtype)
    if device.type != "cpu":
        torch.bitwise_and(values.view(bits), unsigned, out=magnitude)
        return (magnitude >= least).nonzero().view(-1)
    np.bitwise_and(values.view(bits).numpy(), unsigned, out=magnitude.numpy())
    reached = scratch("selection.reached", values.numel(), torch.bool).numpy()
    np.greater_equal(magnitude.numpy(), least, out=reached)
    return torch.from_numpy(np.flatnonzero(reached))


@lru_cache(maxsize=64)
def _least(low: float, dtype: torch.dtype) -> int:
    """The bits of ``low``, and at least those of the smallest number above zero."""
    return max(1, int(torch.tensor(low, dtype=dtype, device="cpu").view(_BITS[dtype.itemsize])))


def _read(numbers: Numbers, parts: list[tuple[int, int, int]]) -> Tensor:
    if len(parts) == 1:
        ((index, start, stop),) = parts
        return numbers.combine(*(term[index][start:stop] for term in numbers.terms))
    return numbers.combine(*(_joined([term[i] for i, _, _ in parts]) for term in numbers.terms))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Flat tensors one after the other; in numpy, since torch needs microseconds for each."""
    first = pieces[0]
    if first.device.type != "cpu" or any(piece.dtype != first.dtype for piece in pieces):
        return torch.cat(list(pieces))
    bits = _BITS[first.dtype.itemsize]  # numpy does not know every dtype, but knows its bits
    joined = np.concatenate([piece.view(bits).numpy() for piece in pieces])
    return torch.from_numpy(joined).view(first.dtype)


def _refuse(numbers: Numbers, parts: list[tuple[int, int, int]]) -> None:
    for part in parts:
        if not bool(torch.isfinite(_read(numbers, [part])).all()):
            raise OverflowInSelectionError(part[0])


def _stretches(run: Run) -> Iterator[Stretch]:
    at = run.bounds()
    for (index, start, stop), begin, first, last in zip(
        run.parts, run.begins, at[:-1], at[1:], strict=True
    ):
        inside = run.positions[first:last]
        positions = torch.from_numpy(inside - begin if begin else inside)
        yield Stretch(index, start, stop, positions, torch.from_numpy(run.values[first:last]))


def _numpy(values: Tensor) -> NDArray[Any]:
    """On the CPU, in a dtype that numpy knows and that holds every value exactly."""
    values = values.detach().cpu()
    return (values if values.dtype == torch.float64 else values.float()).numpy()
