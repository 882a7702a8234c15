"""Additive noise. The standard deviation or scale is in gradient units, per coordinate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, Reads, State
from gradguard.elementwise import map_present
from gradguard.randomness import fresh_rng, generator


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
        rng = generator(state["rng"])

        def noised(grad: Tensor) -> Tensor:
            noise = torch.randn(grad.shape, generator=rng, dtype=grad.dtype).mul_(self.stddev)
            return grad + noise.to(grad.device)

        return map_present(noised, grads), {"rng": rng.get_state()}


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
        rng = generator(state["rng"])

        def noised(grad: Tensor) -> Tensor:
            noise = _laplace(grad.shape, rng).mul_(self.scale)
            return grad + noise.to(device=grad.device, dtype=grad.dtype)

        return map_present(noised, grads), {"rng": rng.get_state()}


def _laplace(shape: torch.Size, rng: torch.Generator) -> Tensor:
    # Not Tensor.exponential_: where torch is built with MKL it takes one 32-bit word of the
    # generator to seed another one, and the noise would have 2**32 possible values in all.
    uniform = torch.rand(shape, generator=rng, dtype=torch.float64).mul_(2)
    positive = uniform < 1
    magnitude = torch.log1p(-torch.where(positive, uniform, uniform - 1))  # of a value in [0, 1)
    return torch.where(positive, -magnitude, magnitude)


def _check_scale(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}")
