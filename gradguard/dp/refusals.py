"""What would void the guarantee, refused before the first step with the mend in the message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard.core import GradTransform, State, walk
from gradguard.optimizer import GuardedOptimizer

INPUT_ONLY = ("input", "noised")
RAW = ("raw_sum", "raw_per_sample")


def check_transform(transform: object) -> None:
    """Raise if a transform declares that it reads gradients from before the noise."""
    if isinstance(transform, type) or not isinstance(transform, GradTransform):
        raise TypeError(f"after must be a transform or None, got {transform!r}")
    for part in walk(transform):
        reads = getattr(part, "reads", "input")
        if reads in RAW:
            raise ValueError(
                f"{part!r} declares reads = {reads!r}: a mask, scale or memory from gradients "
                "without noise tells the server what the noise hides, and no epsilon would hold. "
                "Compute it from the gradient that update() is given, which carries the noise"
            )
        if reads not in INPUT_ONLY:
            raise ValueError(
                f"{part!r} declares reads = {reads!r}; expected one of "
                f"{', '.join((*INPUT_ONLY, *RAW))}"
            )


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise unless ``optimizer`` is plain and new: its memory would hold raw gradients."""
    if isinstance(optimizer, DPOptimizer):
        raise TypeError(
            "the optimizer is private already, and Opacus would unwrap it and drop its "
            "accounting; give make_private the plain optimizer"
        )
    guarded = isinstance(optimizer, GuardedOptimizer)
    inner = optimizer.inner if isinstance(optimizer, GuardedOptimizer) else optimizer
    if hasattr(inner, "original_optimizer"):
        raise TypeError("the guard is around a private optimizer, where it has no effect")
    if isinstance(inner, torch.optim.LBFGS):
        raise TypeError(
            "LBFGS evaluates the gradient several times per step, each of them a release that "
            "would not be accounted for; use SGD or Adam"
        )
    # Step counters of some optimizers are there from the start, at zero.
    used = any(_nonzero(v) for entry in inner.state.values() for v in entry.values())
    if used or (guarded and _has_memory(optimizer.guard_state)):  # type: ignore[attr-defined]
        raise ValueError(
            "the optimizer has been used: its momentum or residuals hold gradients without "
            "noise, which the first private steps would send. Make a new optimizer; to resume, "
            "make it private first and load its checkpoint then"
        )
    if isinstance(optimizer, GuardedOptimizer):
        check_transform(optimizer.transform)


def check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise unless the optimizer has the model's trainable parameters and no others."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in model.parameters()}
    if not held <= own:
        raise ValueError(
            f"{len(held - own)} of the optimizer's parameters are not the model's; build the "
            "optimizer from the parameters of this very model"
        )
    left = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if left:
        raise ValueError(
            f"the optimizer lacks {', '.join(map(repr, left))}: their gradients would stay raw "
            "beside the noised ones. Add them, or freeze them with requires_grad_(False)"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no trainable parameter, so there is nothing to release")
    check_only_these_gradients(optimizer.param_groups)
    check_gradient_hooks(p for p in model.parameters() if p.requires_grad)


def check_only_these_gradients(param_groups: Sequence[dict[str, Any]]) -> None:
    """Raise if a frozen parameter holds a gradient, which would be applied without noise."""
    params = [p for group in param_groups for p in group["params"]]
    if any(p.grad is not None and not p.requires_grad for p in params):
        raise RuntimeError(
            "a frozen parameter holds a gradient from before, which would be sent without "
            "noise; set its grad to None when you freeze it"
        )


def check_gradient_hooks(params: Iterable[Tensor]) -> None:
    """Raise if a hook on a parameter could see or keep a gradient without noise."""
    for p in params:
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise RuntimeError(
                "a hook on a parameter sees gradients before the noise; remove it, and do what "
                "it does in a transform: make_private(..., after=transform)"
            )


def _has_memory(state: State) -> bool:
    """Whether residuals per parameter, which are kept in lists, hold anything."""
    return any(
        _has_memory(v) if isinstance(v, dict) else isinstance(v, list) and any(map(_nonzero, v))
        for v in state.values()
    )


def _nonzero(value: object) -> bool:
    if isinstance(value, Tensor):
        return bool(value.count_nonzero())
    return bool(value) if isinstance(value, int | float) else value is not None
