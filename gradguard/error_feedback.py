"""Error feedback: what a lossy transform drops is remembered and sent later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradguard.core import Grads, GradTransform, Reads, State, walk
from gradguard.elementwise import restore, widen
from gradguard.finite import check_finite


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

    >>> from gradguard.sparsification import KeepTopK
    >>> feedback = ErrorFeedback(KeepTopK(0.5))
    >>> state = feedback.init([torch.zeros(2)])
    >>> sent, state = feedback.update([torch.tensor([1.0, 3.0])], state)
    >>> sent, state["memory"]
    ([tensor([0., 3.])], [tensor([1., 0.])])
    """

    transform: GradTransform
    reads: ClassVar[Reads] = "input"

    def __post_init__(self) -> None:
        noisy = [t for t in walk(self.transform) if getattr(t, "is_noise", False)]
        if noisy:
            raise ValueError(
                f"ErrorFeedback around {noisy[0]!r} would take the noise back: the memory holds "
                "its negative and sends that in the next round. Put the noise before or after: "
                "chain(noise, ErrorFeedback(...)) or chain(ErrorFeedback(...), noise)"
            )

    def init(self, params: Sequence[Tensor]) -> State:
        memory = [torch.zeros_like(widen(p.detach())) for p in params]
        return {"memory": memory, type(self.transform).__name__: self.transform.init(params)}

    def update(self, grads: Grads, state: State) -> tuple[Grads, State]:
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
