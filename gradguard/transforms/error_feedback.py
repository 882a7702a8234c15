"""Error feedback: what a lossy transform drops is remembered and sent later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.aliasing import separated
from gradguard.core import Grads, GradTransform, Reads, State, walk
from gradguard.finite import check_finite
from gradguard.kernels.elementwise import restore, widen
from gradguard.kernels.fused import Rule, alike, send_
from gradguard.kernels.one_thread import add
from gradguard.kernels.scratch import scratch
from gradguard.kernels.selection import Selects, selects


@dataclass(frozen=True)
class ErrorFeedback:
    """Add what was not sent before to the gradient, transform, and remember the difference.

    ``sent = transform(gradient + memory)``; ``memory = gradient + memory - sent``.

    Guarantees:

    - all that was sent plus the memory is the sum of all gradients, up to rounding;
    - the memory is held in at least float32;
    - a parameter without gradient in a step keeps its memory.

    Over many rounds the server learns *more* than without it: everything is sent in the end. An
    unbiased but spreading transform (``KeepRandomK``, ``Quantize`` at few bits) may let the
    memory grow without bound; use it with ``KeepTopK`` and ``Sign``.

    Args:
        transform: Any transform but noise. Noise is refused: the memory would hold its negative
            and send it in the next round, so that the noise cancels and nothing is protected.

    Sebastian U. Stich, Jean-Baptiste Cordonnier and Martin Jaggi, "Sparsified SGD with Memory",
    2018, arXiv:1809.07599.

    >>> from gradguard.transforms.sparsification import KeepTopK
    >>> feedback = ErrorFeedback(KeepTopK(0.5))
    >>> state = feedback.init([torch.zeros(2)])
    >>> sent, state = feedback.update([torch.tensor([1.0, 3.0])], state)
    >>> sent, state["memory"]
    ([tensor([0., 3.])], [tensor([1., 0.])])
    """

    transform: GradTransform
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        refuse_noise(self)

    def init(self, params: Sequence[Tensor]) -> State:
        memory = [torch.zeros_like(widen(p.detach())) for p in params]
        return {"memory": memory, type(self.transform).__name__: self.transform.init(params)}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
        if self._fuses(grads, state):
            memory: list[Tensor] = state["memory"]
            copied: Grads = [None if g is None else g.detach().clone() for g in grads]
            kept = [m if g is None else m.clone() for g, m in zip(grads, memory, strict=True)]
            return self.update_(copied, {**state, "memory": kept})
        return self._updated(grads, state)

    def update_(self, grads: Grads, state: State) -> tuple[Grads, State]:
        if not self._fuses(grads, state):
            return separated(*self._updated(grads, state))
        assert isinstance(self.transform, Selects)
        key = type(self.transform).__name__
        inner = send_(grads, (state["memory"],), _RULE, self.transform, state[key])
        return grads, {"memory": state["memory"], key: inner}

    def _fuses(self, grads: Grads, state: State) -> bool:
        return selects(self.transform) and alike(grads, state["memory"])

    def _updated(self, grads: Grads, state: State) -> tuple[Grads, State]:
        check_finite(grads)
        key = type(self.transform).__name__
        memory: list[Tensor] = state["memory"]
        owed: Grads = [
            None if g is None else widen(g) + m.to(g.device)
            for g, m in zip(grads, memory, strict=True)
        ]
        sent, inner = self.transform.update(owed, state[key])
        out: Grads = []
        rest: list[Tensor] = []
        for i, (g, o, s, m) in enumerate(zip(grads, owed, sent, memory, strict=True)):
            if g is None or o is None or s is None:
                out.append(s)
                rest.append(m)
                continue
            # Rounded to the gradient's dtype first: what rounding takes away is owed as well.
            out.append(restore(s, g, index=i))
            rest.append(o - widen(out[-1]))  # type: ignore[arg-type]
        return out, {"memory": rest, key: inner}


def _owed(memory: Tensor, grad: Tensor) -> Tensor:
    out = scratch("error_feedback.owed", memory.numel(), memory.dtype, device=memory.device)
    return add(memory, grad, out=out)


def _advance(memory: Tensor, grad: Tensor) -> None:
    memory.add_(grad)


_RULE = Rule(_owed, _advance)


def refuse_noise(feedback: GradTransform) -> None:
    """Raise ``ValueError`` if a transform that remembers what was not sent holds noise."""
    noisy = [t for t in walk(feedback) if getattr(t, "is_noise", False)]
    if noisy:
        name = type(feedback).__name__
        raise ValueError(
            f"{name} around {noisy[0]!r} would take the noise back: the memory holds its negative "
            f"and sends that in the next round. Put the noise before or after: "
            f"chain(noise, {name}(...)) or chain({name}(...), noise)"
        )
