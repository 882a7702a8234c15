"""What a guard refuses before and after a transform has run: each check raises, or all is well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradguard.core import Grads, GradTransform

STALE = (
    "these gradients were already transformed: transforming them again would send a different "
    "message than intended. Run zero_grad() and backward() before the next step() or release()"
)


def check_wrappable(inner: Optimizer, transform: GradTransform) -> None:
    """Raise ``TypeError`` for what a guard around it would not defend, or not defend with."""
    if hasattr(inner, "original_optimizer"):  # Opacus: it overwrites p.grad inside step()
        raise TypeError(
            f"{type(inner).__name__} overwrites p.grad inside step(), so a guard around it "
            "would have no effect. Guard the plain optimizer and pass the guard on: "
            "make_private(optimizer=guard(optimizer, transform), ...)"
        )
    if isinstance(transform, type) or not isinstance(transform, GradTransform):
        raise TypeError(
            f"transform must have init and update, got {transform!r}; combine several with "
            "chain(...)"
        )


def check_params(params: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raise unless the optimizer still has the parameters that the guard was made for."""
    # By identity: in another order, a layer that is withheld would be sent.
    if [*map(id, params)] != [*map(id, known)]:
        raise RuntimeError(
            f"the inner optimizer has {len(params)} parameters that are not the "
            f"{len(known)} which the guard knows, in this order; add parameters with "
            "add_param_group() of the guard, and guard anew after any other change"
        )


def check_dense(grads: Grads) -> None:
    """Raise ``TypeError`` for a sparse gradient."""
    for index, grad in enumerate(grads):
        if grad is not None and grad.layout != torch.strided:
            raise TypeError(
                f"the gradient of parameter {index} is sparse, which no transform can read; "
                "build the embedding with sparse=False"
            )


def check_form(transform: GradTransform, raw: Grads, defended: Grads) -> None:
    """Raise if a gradient was added or dropped, or has another shape or dtype than before."""
    for index, (old, new) in enumerate(zip(raw, defended, strict=True)):
        if old is new:
            continue
        if old is None or new is None:
            raise RuntimeError(f"{transform!r} added or dropped a gradient")
        before, after = (tuple(old.shape), old.dtype), (tuple(new.shape), new.dtype)
        if before != after:  # copy_ would broadcast and cast without a word
            raise RuntimeError(
                f"{transform!r} changed the gradient of parameter {index}: expected "
                f"{before}, got {after}"
            )


def check_whole(failure: str | None) -> None:
    """Raise if an earlier update failed after it had written to its state."""
    if failure is not None:
        raise RuntimeError(
            f"an update failed half way, after it had written to the guard's state ({failure}): "
            "residuals may be counted twice and noise may repeat, so nothing is sent, applied or "
            "saved. Call reset() to start as in a first round, or load_state_dict() of a checkpoint"
        )
