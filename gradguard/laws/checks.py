"""What the laws are stated with: gradients to try, equality bit by bit, and the error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradguard.core import Grads, GradTransform
from gradguard.transforms.routing import NamedParameters


class LawBrokenError(AssertionError):
    """A transform breaks a law; the message names the law, the transform and what was seen."""


def require(holds: bool, transform: GradTransform, law: str, seen: object) -> None:
    if not holds:
        raise LawBrokenError(f"{law} does not hold for {transform!r}: {seen}")


def gradients(params: NamedParameters) -> Grads:
    return [p.detach().clone() for p in params]  # clone keeps the memory layout


def form(tensor: Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.stride()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(bits(a), bits(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)  # NaN equals itself bit by bit
