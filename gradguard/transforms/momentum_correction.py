"""Deep Gradient Compression: momentum that is accumulated before coordinates are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.aliasing import separated
from gradguard.core import Grads, GradTransform, Reads, State
from gradguard.finite import check_finite
from gradguard.kernels.elementwise import restore, widen
from gradguard.kernels.fused import Rule, alike, send_
from gradguard.kernels.one_thread import add, multiply
from gradguard.kernels.scratch import scratch
from gradguard.kernels.selection import Selects, selects
from gradguard.transforms.error_feedback import refuse_noise


@dataclass(frozen=True)
class MomentumCorrection:
    """Send what is largest in the accumulated velocity, and forget both where it was sent.

    ``u = momentum * u + gradient``; ``v = v + u``; ``sent = transform(v)``; ``v = v - sent``;
    ``u = 0`` wherever something was sent (momentum factor masking).

    With error feedback alone, a coordinate that is sent after ten steps carries the sum of ten
    gradients; dense momentum would have carried their discounted sums. This sends the latter. The
    momentum is in here: **the outer optimizer must be plain SGD without momentum**, which would
    count it twice. The paper clips each client's gradient first and warms the sparsity up::

        chain(ClipByGlobalNorm(1.0), MomentumCorrection(0.9, WarmUp(KeepTopK(0.001), steps=500)))

    Guarantees:

    - all that was sent plus ``v`` is the sum of all ``u``, up to rounding;
    - where something was sent, ``u`` is zero, unless ``masking`` is off;
    - with ``KeepTopK(1.0)`` and without masking it is SGD with dense momentum;
    - both memories are held in at least float32; a parameter without gradient keeps its own.

    Over many rounds the server learns *more* than without it: everything is sent in the end.

    Args:
        momentum: Factor of the velocity, in [0, 1).
        transform: What is sent of ``v``; made for ``KeepTopK``, alone or in ``WarmUp``. Noise is
            refused, as by ``ErrorFeedback``.
        nesterov: Accumulate ``gradient + momentum * u`` in place of ``u``.
        masking: Forget ``u`` where something was sent, so that stale momentum does not push on.

    Yujun Lin, Song Han, Huizi Mao, Yu Wang and William J. Dally, "Deep Gradient Compression:
    Reducing the Communication Bandwidth for Distributed Training", 2018, arXiv:1712.01887.

    >>> from gradguard.transforms.sparsification import KeepTopK
    >>> correction = MomentumCorrection(0.5, KeepTopK(0.5))
    >>> state = correction.init([torch.zeros(2)])
    >>> sent = []
    >>> for _ in range(3):
    ...     (out,), state = correction.update([torch.tensor([2.0, 4.0])], state)
    ...     sent.append(out.tolist())
    >>> sent, state["velocity"], state["owed"]
    ([[0.0, 4.0], [5.0, 0.0], [0.0, 10.0]], [tensor([2., 0.])], [tensor([2., 0.])])
    """

    momentum: float
    transform: GradTransform
    _: KW_ONLY
    nesterov: bool = False
    masking: bool = True
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}")
        refuse_noise(self)

    def init(self, params: Sequence[Tensor]) -> State:
        velocity, owed = ([torch.zeros_like(widen(p.detach())) for p in params] for _ in range(2))
        inner = self.transform.init(params)
        return {"velocity": velocity, "owed": owed, type(self.transform).__name__: inner}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        if not self._fuses(grads, state):
            return self._updated(grads, state)
        copied: Grads = [None if g is None else g.detach().clone() for g in grads]
        own = {key: [m.clone() for m in state[key]] for key in ("velocity", "owed")}
        return self.update_(copied, {**state, **own})

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        if not self._fuses(grads, state):
            return separated(*self._updated(grads, state))
        assert isinstance(self.transform, Selects)
        key = type(self.transform).__name__
        memories = state["velocity"], state["owed"]
        rule = Rule(self._owed, self._advance, forgets=(0,) if self.masking else ())
        inner = send_(grads, memories, rule, self.transform, state[key])
        return grads, {"velocity": memories[0], "owed": memories[1], key: inner}

    def _fuses(self, grads: Grads, state: State) -> bool:
        return selects(self.transform) and alike(grads, state["velocity"], state["owed"])

    # Products and sums apart, never torch.add(..., alpha=...): a fused multiply-add rounds once,
    # and whether torch uses one depends on where in a vector an element stands.

    def _owed(self, velocity: Tensor, owed: Tensor, grad: Tensor) -> Tensor:
        size, dtype, device = velocity.numel(), velocity.dtype, velocity.device
        out = scratch("momentum_correction.owed", size, dtype, device=device)
        add(multiply(velocity, self.momentum, out=out), grad, out=out)
        if self.nesterov:
            add(multiply(out, self.momentum, out=out), grad, out=out)
        return add(out, owed, out=out)

    def _advance(self, velocity: Tensor, owed: Tensor, grad: Tensor) -> None:
        velocity.mul_(self.momentum).add_(grad)
        if not self.nesterov:
            owed.add_(velocity)
            return
        size, dtype, device = velocity.numel(), velocity.dtype, velocity.device
        step = scratch("momentum_correction.owed", size, dtype, device=device)
        owed.add_(torch.mul(velocity, self.momentum, out=step).add_(grad))

    def _updated(self, grads: Grads, state: State) -> tuple[Grads, State]:
        """The plain way, around any transform and for any layout."""
        check_finite(grads)
        key = type(self.transform).__name__
        velocity: list[Tensor] = list(state["velocity"])
        owed: list[Tensor] = list(state["owed"])
        for i, grad in enumerate(grads):
            if grad is not None:
                wide = widen(grad.detach())
                velocity[i] = velocity[i].to(grad.device) * self.momentum + wide
                step = velocity[i] * self.momentum + wide if self.nesterov else velocity[i]
                owed[i] = owed[i].to(grad.device) + step
        due: Grads = [None if g is None else o for g, o in zip(grads, owed, strict=True)]
        sent, inner = self.transform.update(due, state[key])
        out: Grads = list(sent)
        for i, (grad, values) in enumerate(zip(grads, sent, strict=True)):
            if grad is not None and values is not None:
                out[i] = rounded = restore(values, grad, index=i)
                owed[i] = owed[i] - widen(rounded)
                if self.masking:
                    velocity[i] = velocity[i].masked_fill(rounded != 0, 0.0)
        return out, {"velocity": velocity, "owed": owed, key: inner}
