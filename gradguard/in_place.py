"""One update of a guard: the transform works where the gradients lie, if that is safe.

``p.grad`` and the guard's state belong to the guard, so they are given up to a transform that has
``update_``. Where two of these tensors share memory they go through the pure ``update`` instead.
"""

from __future__ import annotations

import torch

from gradguard.aliasing import disjoint, storages, unaliased
from gradguard.core import Grads, GradTransform, State, update_in_place
from gradguard.freshness import tensors_in, version, versions
from gradguard.guard_checks import check_form
from gradguard.randomness import has_randomness


def transformed(transform: GradTransform, raw: Grads, state: State) -> tuple[Grads, State]:
    """Defended gradients and the new state, neither in memory of ``raw``.

    A defended gradient that *is* the raw tensor was transformed where it lies. ``raw`` and
    ``state`` are given up; if this raises, :class:`Before` tells whether they are still whole.
    """
    if disjoint([*raw, *tensors_in(state)]):
        defended, new = update_in_place(transform, list(raw), state)
    else:
        defended, new = transform.update(list(raw), state)
    check_form(transform, raw, defended)
    if all(a is b for a, b in zip(raw, defended, strict=True)) and not new:
        return defended, new
    memory = storages(raw)
    pairs = zip(raw, defended, strict=True)
    apart = [new if new is old else unaliased(new, memory=memory) for old, new in pairs]
    return apart, unaliased(new, memory=memory)


def write_back(raw: Grads, defended: Grads) -> None:
    """Put the defended gradients where the raw ones lie.

    Raises:
        RuntimeError: Gradients in one memory were given different values, of which one is lost.
    """
    outside = [(a, b) for a, b in zip(raw, defended, strict=True) if a is not b]
    for old, new in outside:
        if old is not None and new is not None:
            old.copy_(new)  # in place: DDP buckets and CUDA graphs alias p.grad
    if not outside or disjoint(raw):
        return
    for index, (old, new) in enumerate(zip(raw, defended, strict=True)):
        if old is not None and new is not None and not torch.equal(old, new):
            raise RuntimeError(
                f"the gradient of parameter {index} shares memory with another, and the transform "
                "gives them different values: nothing was sent or applied. Give every parameter "
                "a gradient of its own with p.grad = p.grad.clone()"
            )


class Before:
    """Gradients and state before an update, to tell after an error what was written to.

    >>> grad, state = torch.ones(1), {"rng": torch.zeros(8)}
    >>> before = Before([grad], state)
    >>> _ = grad.add_(1.0)
    >>> before.wrote(), before.spoilt()
    (True, True)
    """

    def __init__(self, grads: Grads, state: State) -> None:
        self.grads, self.state = list(grads), state
        self._versions = _versions(grads), versions(state)

    def wrote(self) -> bool:
        """Whether anything was written since."""
        return (_versions(self.grads), versions(self.state)) != self._versions

    def spoilt(self) -> bool:
        """Whether this state must not be used again.

        It was written to; or noise from its streams lies in a gradient, and would be drawn again.
        """
        if versions(self.state) != self._versions[1]:
            return True
        return self.wrote() and has_randomness(self.state)


def _versions(grads: Grads) -> list[int | None]:
    return [None if g is None else version(g) for g in grads]
