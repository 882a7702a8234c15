"""Additive noise. The standard deviation or scale is in gradient units, per coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.finite import magnitudes
from gradguard.kernels.elementwise import copied, overwrite, pieces
from gradguard.kernels.one_thread import add
from gradguard.kernels.scratch import CHUNK, scratch
from gradguard.randomness import fresh_rng, generator

_CPU = torch.device("cpu")  # draws are the same on every device
# Elements at a time, which stay in the cache. Of sixteens, by which torch draws.
_DRAWN = 2**17 - 16


@dataclass(frozen=True)
class AddGaussian:
    """Add independent normal noise to every coordinate of the gradient.

    Guarantees:

    - the noise has mean 0 and standard deviation ``stddev`` in each coordinate;
    - the stream is drawn from the operating system and shared with no other transform or client;
    - a stddev of 0 is the identity.

    It gives no differential-privacy guarantee: nothing bounds what one example contributes, and
    the noise is made of floating-point numbers from a generator that is not cryptographic.

    Args:
        stddev: Standard deviation in gradient units; at least 0, finite.

    >>> state = {"rng": fresh_rng()}
    >>> (noised,), _ = AddGaussian(0.5).update([torch.zeros(20_000)], state)
    >>> round(noised.std().item(), 1)
    0.5
    """

    stddev: float
    is_noise: ClassVar[bool] = True
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        _check_scale("stddev", self.stddev)

    def init(self, params: Sequence[Tensor]) -> State:
        return {"rng": fresh_rng()}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["rng"])

        def draw(size: int, dtype: torch.dtype) -> Tensor:
            noise = scratch("noise", size, dtype, device=_CPU)
            if size < 16:  # these few torch would round otherwise
                return noise.normal_(generator=rng).mul_(self.stddev)
            return noise.normal_(std=self.stddev, generator=rng)

        # Sixteen deviations: double precision has no number whose logarithm gives nine.
        _add_(grads, draw, most=16 * self.stddev)
        return grads, {"rng": rng.get_state()}


@dataclass(frozen=True)
class AddLaplace:
    """Add independent Laplace noise to every coordinate of the gradient.

    Guarantees:

    - the noise has density ``exp(-|x| / scale) / (2 scale)``, standard deviation
      ``scale * sqrt(2)``;
    - the stream is drawn from the operating system and shared with no other transform or client;
    - a scale of 0 is the identity.

    Like :class:`AddGaussian` it gives no differential-privacy guarantee.

    Args:
        scale: Scale in gradient units; at least 0, finite.

    >>> state = {"rng": fresh_rng()}
    >>> (noised,), _ = AddLaplace(0.5).update([torch.zeros(20_000)], state)
    >>> round(noised.abs().mean().item(), 1)
    0.5
    """

    scale: float
    is_noise: ClassVar[bool] = True
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        _check_scale("scale", self.scale)

    def init(self, params: Sequence[Tensor]) -> State:
        return {"rng": fresh_rng()}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        return self.update_(copied(grads), state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        rng = generator(state["rng"])

        def draw(size: int, dtype: torch.dtype) -> Tensor:
            return _laplace(size, rng).mul_(self.scale).to(dtype)

        # 40 scales: double precision has no number whose logarithm gives 37.
        _add_(grads, draw, most=40 * self.scale)
        return grads, {"rng": rng.get_state()}


def _laplace(size: int, rng: torch.Generator) -> Tensor:
    # Not Tensor.exponential_: where torch is built with MKL it takes one 32-bit word of the
    # generator to seed another one, and the noise would have 2**32 possible values in all.
    uniform = scratch("noise", size, torch.float64, device=_CPU)
    uniform.uniform_(generator=rng).mul_(2)
    positive = uniform < 1
    magnitude = uniform.frac_().neg_().log1p_()
    return torch.where(positive, -magnitude, magnitude)


def _add_(grads: Grads, draw: Callable[[int, torch.dtype], Tensor], *, most: float) -> None:
    """Add what ``draw`` gives, which is no larger than ``most``, in the order of the indices."""
    for index, (grad, largest) in enumerate(zip(grads, magnitudes(grads), strict=True)):
        if grad is None:
            continue

        def add_(piece: Tensor) -> None:
            for part in pieces(piece, size=_DRAWN) if piece.is_cpu else torch.split(piece, CHUNK):
                add(part, draw(len(part), part.dtype).to(part.device), out=part)

        overwrite(grad, add_, index=index, most=largest + most, row_major=True)


def _check_scale(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}")
