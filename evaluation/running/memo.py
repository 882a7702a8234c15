"""A client for attackers that computes each raw gradient once, however many defences follow.

Every defence is attacked with the same simulated batches. The backward pass does not depend on
the defence, so it is shared; the defended message is drawn afresh by the real guard each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Grads = list[Tensor | None]


class ReleasingClient(Protocol):
    """The two halves of a client that :meth:`gradguard.Defense.client` returns."""

    @property
    def kind(self) -> str:
        """The same for clients whose ``gradients`` of the same batch are the same."""
        ...

    def gradients(self, inputs: Tensor, labels: Tensor) -> Grads:
        """Gradients of the batch before the defence, in parameter order; torch's global state
        decides what is random in them, such as dropout and the order of local training."""
        ...

    def release(
        self, grads: Grads, *, batch_size: int | None = None, first: bool = True
    ) -> dict[str, Tensor]:
        """The defended message, with fresh randomness; if not ``first``, of the next round."""
        ...


@dataclass(eq=False)
class GradientMemo:
    """Raw gradients of one model by the content of the batch, at most ``max_bytes`` of them.

    Keep one per model: the key does not say which model a gradient belongs to.

    Args:
        max_bytes: Gradients beyond this are computed again each time.
    """

    max_bytes: int
    held_bytes: int = 0
    backward_passes: int = 0
    _known: dict[bytes, Grads] = field(default_factory=dict)
    _varies: dict[str, bool] = field(default_factory=dict)

    def varies(self, client: ReleasingClient, inputs: Tensor, labels: Tensor) -> bool:
        """Whether the gradients of a batch differ from round to round, as with dropout.

        Found out once for each kind of client, from the first batch that is asked about.
        """
        if client.kind not in self._varies:
            pair = [self.gradients(client, inputs, labels, number) for number in (0, 1)]
            same = all(
                one is other or (one is not None and other is not None and torch.equal(one, other))
                for one, other in zip(*pair, strict=True)
            )
            self._varies[client.kind] = not same
        return self._varies[client.kind]

    def gradients(
        self, client: ReleasingClient, inputs: Tensor, labels: Tensor, number: int = 0
    ) -> Grads:
        """``client.gradients(inputs, labels)``, computed at most once while there is room.

        Args:
            number: Of the round; another number is another draw of what is random in them.
        """
        key = _digest(f"{client.kind}/{number}" if number else client.kind, inputs, labels)
        if key in self._known:
            return self._known[key]
        # Dropout draws from torch's global state. Its masks then depend on the batch, not on what
        # was computed before it, or in which process.
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it seeds accelerators as well, which are not restored here, and
            # takes longer than a small model's backward pass.
            torch.default_generator.manual_seed(int.from_bytes(key[:8], "big") >> 1)
            grads = client.gradients(inputs, labels)
        self.backward_passes += 1
        size = sum(g.numel() * g.element_size() for g in grads if g is not None)
        # Full means full: batches come round in the same order for every defence, and evicting
        # the oldest would then throw each one away just before it is asked for again.
        if self.held_bytes + size <= self.max_bytes:
            self._known[key] = grads
            self.held_bytes += size
        return grads


@dataclass(frozen=True, eq=False)
class MemoisedClient:
    """``client`` with its backward passes taken from ``memo``; its messages are always new."""

    client: ReleasingClient
    memo: GradientMemo

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return next(self.rounds(inputs, labels, 1))

    def rounds(self, inputs: Tensor, labels: Tensor, number: int) -> Iterator[dict[str, Tensor]]:
        """The messages of one client's first ``number`` rounds, all from this one batch."""
        # release must not write into what it is given; the memo would hand out defended tensors.
        new = number > 1 and self.memo.varies(self.client, inputs, labels)
        for index in range(number):
            grads = self.memo.gradients(self.client, inputs, labels, index if new else 0)
            yield self.client.release(grads, batch_size=len(labels), first=index == 0)


def _digest(kind: str, inputs: Tensor, labels: Tensor) -> bytes:
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    for tensor in (inputs, labels):
        # Shape and type too: the same bytes can be another batch.
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
