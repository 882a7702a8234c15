"""A guard that hands out nothing but what the private optimizer has noised.

After ``backward()`` raw gradients lie in ``p.grad``, and the optimizer that was made private is
still in the user's hands: stepping it would train on them, and no ledger would know.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from gradguard.core import GradTransform
from gradguard.freshness import Fingerprint, fingerprint, unchanged
from gradguard.optimizer import GuardedOptimizer

_RAW = (
    "the gradients here are not those that the private optimizer has noised: nothing was sent or "
    "applied. Train with training.optimizer.step(), or send training.release()"
)


class NoisedGuard(GuardedOptimizer):
    """The guard inside a private optimizer.

    Guarantees:

    - ``step`` and ``release`` refuse gradients other than the last noised ones, unwritten since;
    - so does the ``step`` of the plain optimizer that it wraps.
    """

    _noised: Fingerprint

    def _begin(self) -> None:
        super()._begin()
        self._noised = []  # a copy starts with nothing that it may send

    def allow(self) -> None:
        """The gradients that are there now carry the noise."""
        self._noised = fingerprint(self._params())

    def _transform_grads(self) -> None:
        if not all(unchanged(self._params(), self._noised)):
            raise RuntimeError(_RAW)
        super()._transform_grads()

    def _check_inner_step(self, *_: Any) -> None:
        if not all(self._stale()):
            raise RuntimeError(_RAW)


def noised_guard(optimizer: Optimizer, transform: GradTransform, *, model: Any) -> NoisedGuard:
    """The guard for ``optimizer``; one that is guarded already becomes such a guard itself."""
    inner = optimizer.inner if isinstance(optimizer, GuardedOptimizer) else optimizer
    hooks = inner._optimizer_step_pre_hooks.values()
    if any(getattr(hook, "__func__", None) is NoisedGuard._check_inner_step for hook in hooks):
        raise ValueError(
            "this optimizer belongs to another private training, which alone may step it; make a "
            "new one of the same kind"
        )
    if not isinstance(optimizer, GuardedOptimizer):
        optimizer = GuardedOptimizer(optimizer, transform, model=model)
    # In place, not a new guard: the user keeps the old name, and it must not send either.
    optimizer.__class__ = NoisedGuard
    assert isinstance(optimizer, NoisedGuard)
    optimizer._noised = []
    optimizer.inner.register_step_pre_hook(optimizer._check_inner_step)
    return optimizer
