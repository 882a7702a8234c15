"""Refusing NaN and infinity: a defence must neither spread them nor hide them.

One NaN turns a norm, a scale or an average into NaN and so poisons every other coordinate; a
comparison with NaN is false and so drops it in silence. Both were found in published compressors.
Every transform but :class:`~gradguard.core.Identity` therefore refuses such a gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradguard.core import Grads
from gradguard.kernels.memory_order import in_memory_order


class NonFiniteGradientError(ArithmeticError):
    """A gradient holds NaN or infinity, so nothing was sent and no noise was spent.

    Args:
        index: Position of the parameter in optimizer order.
        name: The parameter's name, where it is known.
        what: How the value came about.
    """

    def __init__(
        self, index: int, *, name: str | None = None, what: str = "contains NaN or infinity"
    ) -> None:
        super().__init__(index, name, what)
        self.index, self.name, self.what = index, name, what

    def __str__(self) -> str:
        parameter = f"parameter {self.index}" + (f" ({self.name!r})" if self.name else "")
        return (
            f"the gradient of {parameter} {self.what}; expected finite numbers. Skip this batch "
            "(GradScaler does so by itself on overflow), or lower the learning rate"
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle by their positional arguments; these are keywords.
        return _rebuild, (self.index, self.name, self.what)


def _rebuild(index: int, name: str | None, what: str) -> NonFiniteGradientError:
    return NonFiniteGradientError(index, name=name, what=what)


class NonFiniteExampleError(ArithmeticError):
    """One example's gradient holds NaN or infinity and cannot be left out; nothing was sent."""


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is finite.

    >>> is_finite(torch.tensor([1.0, 3e38, 3e38])), is_finite(torch.tensor([float("nan")]))
    (True, False)
    """
    # One reduction settles almost every case; the sum of finite values may overflow, hence the
    # second, exact look. A NaN or infinity can never sum to a finite number.
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def check_finite(grads: Grads) -> None:
    """Raise for the first gradient that is not finite, or not made of real floating numbers.

    Raises:
        NonFiniteGradientError: A gradient contains NaN or infinity.
        TypeError: A gradient is complex or integer.

    >>> check_finite([torch.ones(2), None])
    >>> check_finite([None, torch.tensor([0.0, float("inf")])])
    Traceback (most recent call last):
        ...
    gradguard.finite.NonFiniteGradientError: the gradient of parameter 1 contains NaN or \
infinity; expected finite numbers. Skip this batch (GradScaler does so by itself on overflow), \
or lower the learning rate
    """
    check_real(grads)
    for index, grad in enumerate(grads):
        if grad is not None and not is_finite(grad):
            raise NonFiniteGradientError(index)


def check_real(grads: Grads) -> None:
    """Raise ``TypeError`` for a gradient that is complex or integer."""
    for index, grad in enumerate(grads):
        if grad is not None and not grad.is_floating_point():
            raise TypeError(
                f"the gradient of parameter {index} has dtype {grad.dtype}; expected real floating "
                "point numbers. Leave this parameter out of the optimizer"
            )


def magnitudes(grads: Grads) -> list[float]:
    """The largest magnitude in each gradient, and 0 where there is none; checks as it goes.

    Raises:
        NonFiniteGradientError: A gradient contains NaN or infinity.
        TypeError: A gradient is complex or integer.

    >>> magnitudes([torch.tensor([1.0, -3.0]), None, torch.zeros(0)])
    [3.0, 0.0, 0.0]
    """
    check_real(grads)
    found = []
    for index, grad in enumerate(grads):
        if grad is None or grad.numel() == 0:
            found.append(0.0)
            continue
        flat = grad if grad.is_contiguous() else in_memory_order(grad)
        # One pass, where abs().max() takes three. Both are NaN if one element is.
        extremes = torch.aminmax(grad if flat is None else flat)
        low, high = extremes.min.item(), extremes.max.item()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NonFiniteGradientError(index)
        found.append(max(abs(low), abs(high)))
    return found
