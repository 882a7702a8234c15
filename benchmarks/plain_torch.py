"""The line of plain torch that a user would write instead of each transform."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.turns import Work


def plain_lines(grads: Sequence[Tensor]) -> dict[str, Work]:
    """By the names of the operations that they stand beside."""
    found: dict[str, Work] = {}
    for ratio in (0.001, 0.01, 0.1):
        found[f"exact top-k {ratio:.1%}, selection"] = lambda r=ratio: _flat_top_k(grads, r)  # type: ignore[misc]
    found["exact top-k 1.0%, each tensor"] = lambda: [_kept(g, 0.01) for g in grads]
    found["sign + scale, to tensors"] = lambda: [g.sign() * g.abs().mean() for g in grads]
    found["int8"] = lambda: [_int8(g) for g in grads]
    for name in ("float16", "bfloat16", "float8_e4m3fn"):
        dtype = getattr(torch, name)
        found[f"cast {name}"] = lambda d=dtype: [g.copy_(g.to(d)) for g in grads]  # type: ignore[misc]
    found["clip by global norm"] = lambda: _clipped(grads)
    found["Gaussian noise / normal_"] = lambda: [
        g.add_(torch.randn_like(g), alpha=0.1) for g in grads
    ]
    return found


def _flat_top_k(grads: Sequence[Tensor], ratio: float) -> Tensor:
    flat = torch.cat([g.reshape(-1) for g in grads])
    return flat.abs().topk(max(1, round(ratio * len(flat))), sorted=False).indices


def _kept(grad: Tensor, ratio: float) -> Tensor:
    flat = grad.reshape(-1)
    best = flat.abs().topk(max(1, round(ratio * len(flat))), sorted=False).indices
    return torch.zeros_like(flat).index_copy_(0, best, flat[best]).view(grad.shape)


def _int8(grad: Tensor) -> Tensor:
    scale = grad.abs().max() / 127
    return (grad / scale).round().to(torch.int8).to(grad.dtype) * scale


def _clipped(grads: Sequence[Tensor]) -> None:
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
    for g in grads:
        g.mul_(torch.clamp(0.1 / norm, max=1.0))
