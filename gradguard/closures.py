"""Stepping with a closure, such as LBFGS evaluates several times within one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def step_with(
    inner: Optimizer,
    closure: Callable[[], Any],
    *,
    params: Sequence[Tensor],
    transform_grads: Callable[[], None],
) -> Any:
    """Step ``inner``, transforming the gradients after every evaluation of ``closure``.

    Gradients from before are hidden until the first evaluation, which accumulates into them: an
    optimizer that looked at them earlier would see raw ones.

    Raises:
        RuntimeError: ``inner`` did not evaluate the closure.
    """
    hidden = [(p, p.grad) for p in params]

    def show() -> None:
        while hidden:
            p, grad = hidden.pop()
            p.grad = grad

    def guarded() -> Any:
        show()
        loss = closure()
        transform_grads()
        return loss

    for p, _ in hidden:
        p.grad = None
    try:
        result = inner.step(guarded)
        if hidden:
            raise RuntimeError(
                f"{type(inner).__name__} did not evaluate the closure, so there was no "
                "gradient to defend; call backward() and step() without a closure"
            )
    finally:
        show()
    return result
