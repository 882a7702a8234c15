"""Error feedback around a selection, in place and in one pass over gradients and memory.

The plain way writes what is owed to new memory, what is sent to more, and the difference to yet
more: most of its time goes into the operating system's zeroing of pages. Here what is owed is
computed where it is looked at; once the choice is made and nothing can be refused any more, a
second pass brings memory and gradients up to date, stretch by stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradguard.core import Grads, State
from gradguard.finite import NonFiniteGradientError, check_finite
from gradguard.kernels.memory_order import in_memory_order
from gradguard.kernels.selection import Numbers, OverflowInSelectionError, Selects, Stretch


@dataclass(frozen=True)
class Rule:
    """How memories and a gradient become what is owed; on stretches, memories first.

    Args:
        owed: What is owed, in scratch memory; nothing is written to.
        advance: The same in place; the last of the memories is what is owed afterwards.
        forgets: Which of the other memories are set to zero where something was sent.
    """

    owed: Callable[..., Tensor]
    advance: Callable[..., None]
    forgets: tuple[int, ...] = ()


def alike(grads: Grads, *memories: Sequence[Tensor]) -> bool:
    """Whether all can be walked through side by side, in the order in which they lie in memory."""
    for grad, *held in zip(grads, *memories, strict=True):
        if grad is None:
            continue
        if not grad.is_floating_point() or in_memory_order(grad) is None:
            return False
        form = grad.shape, grad.stride(), grad.device
        for memory in held:
            wide = torch.promote_types(grad.dtype, memory.dtype)
            if (memory.shape, memory.stride(), memory.device) != form or wide != memory.dtype:
                return False
    return True


def flat_views(grads: Grads, *lists: Sequence[Tensor | None]) -> list[list[Tensor]]:
    """Flat views of each list's tensors, wherever there is a gradient."""
    present = [i for i, grad in enumerate(grads) if grad is not None]
    views = [[in_memory_order(held[i]) for i in present] for held in lists]  # type: ignore[arg-type]
    return [[view for view in term if view is not None] for term in views]


def choose(
    transform: Selects, grads: Grads, numbers: Numbers, state: State
) -> tuple[list[Stretch], State]:
    """What the transform selects; a number that is not finite is refused by parameter.

    Raises:
        NonFiniteGradientError: A gradient is not finite, or no longer with what is owed.
    """
    try:
        return transform.select(numbers, state)
    except OverflowInSelectionError as error:
        check_finite(grads)
        index = [i for i, grad in enumerate(grads) if grad is not None][error.index]
        what = "is too large together with what is still owed"
        raise NonFiniteGradientError(index, what=what) from None


@torch.no_grad()
def send_(
    grads: Grads, memories: Sequence[Sequence[Tensor]], rule: Rule, transform: Selects, state: State
) -> State:
    """Replace ``grads`` by what is sent of what is owed, and bring the memories up to date.

    Nothing is written to if this raises.

    Returns:
        The transform's state for the next step.

    Raises:
        NonFiniteGradientError: See :func:`choose`; or what is owed does not fit the dtype.
    """
    *held, raw = flat_views(grads, *memories, grads)
    like = [grad for grad in grads if grad is not None]
    chosen, state = choose(transform, grads, Numbers((*held, raw), rule.owed, like), state)
    sent = [_fitting(stretch, grads, like) for stretch in chosen]
    for stretch, values in zip(chosen, sent, strict=True):
        inside = slice(stretch.start, stretch.stop)
        *past, grad = (term[stretch.index][inside] for term in (*held, raw))
        rule.advance(*past, grad)
        grad.zero_()
        if values.numel():
            where = stretch.positions.to(grad.device, torch.int64)
            grad.scatter_(0, where, values)
            _settle(past, rule, where, stretch.values, values)
    return state


def _settle(past: Sequence[Tensor], rule: Rule, where: Tensor, owed: Tensor, sent: Tensor) -> None:
    """What is still owed, and what is forgotten, where something was sent."""
    if sent.dtype == owed.dtype:
        past[-1].index_fill_(0, where, 0.0)
    else:
        # Not zero: what rounding to the gradient's dtype takes away is owed as well.
        past[-1].scatter_(0, where, owed.to(past[-1]) - sent.to(past[-1]))
        # A value that its dtype rounds to zero is not sent, and not forgotten either.
        where = where[sent != 0]
    for index in rule.forgets:
        past[index].index_fill_(0, where, 0.0)


def _fitting(stretch: Stretch, grads: Grads, like: Sequence[Tensor]) -> Tensor:
    """The chosen values in the gradient's own dtype, on its device."""
    target = like[stretch.index]
    if target.dtype.itemsize >= stretch.values.dtype.itemsize:
        return stretch.values.to(target)
    values = stretch.values.to(target) + 0.0  # rounded to zero, a value must not show its sign
    if not bool(torch.isfinite(values).all()):
        index = [i for i, grad in enumerate(grads) if grad is not None][stretch.index]
        what = f"does not fit {target.dtype} after the transform"
        raise NonFiniteGradientError(index, what=what)
    return values
