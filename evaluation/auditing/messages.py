"""Messages for an audit: drawn from a client in random order, in blocks that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gradguard.evaluation.auditing.statistics import Array

_BLOCK_NUMBERS = 2**21  # of a message block held at a time: 16 MB of float64


class AuditedClient(Protocol):
    """Anything that sums and releases: a gradguard client, or a pipeline of one's own."""

    def gradients(self, inputs: Tensor, labels: Tensor) -> Sequence[Tensor | None]: ...

    def release(self, grads: Any) -> dict[str, Tensor]: ...


Sampler = Callable[[bool, int], Array]
"""``n`` fresh messages with (``True``) or without the canary, shape ``(n, coordinates)``."""


def blocks(
    sample: Sampler, rng: np.random.Generator, count: int, width: int
) -> Iterator[tuple[bool, Array]]:
    """Yield ``count`` messages of either side in blocks that fit into memory."""
    room = max(1, min(count, _BLOCK_NUMBERS // max(width, 1)))
    for start in range(0, count, room):
        size = min(room, count - start)
        order = rng.permutation(np.repeat([True, False], size))
        ends = np.flatnonzero(np.diff(order)) + 1
        parts: dict[bool, list[Array]] = {True: [], False: []}
        for run in np.split(order, ends):
            parts[bool(run[0])].append(sample(bool(run[0]), len(run)))
        for side in (True, False):
            yield side, np.concatenate(parts[side])


def message(client: AuditedClient, sums: Sequence[Tensor | None], rounds: int) -> dict[str, Tensor]:
    """One draw: ``rounds`` releases of the same sums, added up."""
    reset = getattr(client, "reset", None)
    if callable(reset):
        reset()
    total = client.release(sums)
    for _ in range(rounds - 1):
        total = {name: total[name] + sent for name, sent in client.release(sums).items()}
    return total


def flat(sent_by_name: dict[str, Tensor]) -> Array:
    """One message as one vector."""
    parts = [sent.detach().reshape(-1) for sent in sent_by_name.values()]
    return np.asarray(torch.cat(parts).to(device="cpu", dtype=torch.float64).numpy())


def difference_of(
    with_canary: Sequence[Tensor | None], without: Sequence[Tensor | None], width: int
) -> Array:
    """What the canary adds to the sum; zeros where messages have another layout than sums."""
    parts = []
    for one, other in zip(with_canary, without, strict=True):
        if one is None and other is None:
            continue
        some = one if one is not None else other
        assert some is not None
        zero = torch.zeros_like(some)
        gap = (zero if one is None else one) - (zero if other is None else other)
        parts.append(gap.detach().reshape(-1))
    found = np.asarray(torch.cat(parts).to(device="cpu", dtype=torch.float64).numpy())
    if len(found) != width:
        # Messages of another layout: the known difference says nothing about their coordinates.
        return np.zeros(width)
    return found
