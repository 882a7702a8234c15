"""Bytes of sparse messages against the entropy of what they say."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from benchmarks.gradients import Gradients, gradients
from benchmarks.table import print_table
from gradguard import ErrorFeedback, KeepTopK, wire

RATIO = 0.01
ROUNDS = 8
INDEX_BITS = {"error feedback": 7.0, "uniform": 10.0}
WHOLE = 1.10  # over entropy of the gaps and the bits of the values
VALUE_BITS = 32


def print_sizes(model: str) -> bool:
    """Print bits per index of a 1 % top-k message and its size; true if all are small enough."""
    messages = {
        "error feedback": _with_feedback(gradients(model, last=ROUNDS)),
        "first message": _kept(gradients(model)[0]),
    }
    messages["uniform"] = _uniform(messages["first message"])
    rows, met = [], True
    for name, message in messages.items():
        kept, entropy = _entropy(message.values())
        # With equal values next to nothing but the indices is left; names and shapes count.
        index = 8 * len(wire.encode({n: (g != 0).float() for n, g in message.items()})) / kept
        whole = 8 * len(wire.encode(message)) / kept / (entropy + VALUE_BITS)
        most = INDEX_BITS.get(name)
        fine = (most is None or index <= most) and (name == "uniform" or whole <= WHOLE)
        met &= fine
        limit = "" if most is None else f"{most:g}"
        numbers = [f"{kept:,}", f"{entropy:.2f}", f"{index:.2f}", limit, f"{whole:.3f}"]
        rows.append([name, *numbers, "yes" if fine else "NO"])
    header = ["message", "kept", "entropy of gaps", "bits per index", "at most", "whole", "met"]
    print_table(f"{model}, top-k 1 %: whole is over entropy + {VALUE_BITS} bits", header, rows)
    return met


def _kept(found: Gradients) -> Gradients:
    sent, _ = KeepTopK(RATIO).update(list(found.values()), {})
    return _named(found, sent)


def _with_feedback(rounds: list[Gradients]) -> Gradients:
    transform = ErrorFeedback(KeepTopK(RATIO))
    state = transform.init(list(rounds[0].values()))
    for found in rounds:
        sent, state = transform.update(list(found.values()), state)
    return _named(rounds[-1], sent)


def _named(found: Gradients, sent: Iterable[Tensor | None]) -> Gradients:
    return {n: g for n, g in zip(found, sent, strict=True) if g is not None}


def _uniform(message: Gradients) -> Gradients:
    """The same values at uniformly random places."""
    flat = torch.cat([g.reshape(-1) for g in message.values()])
    mixed = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))]
    pieces = torch.split(mixed, [g.numel() for g in message.values()])
    return {n: p.view(g.shape) for (n, g), p in zip(message.items(), pieces, strict=True)}


def _entropy(tensors: Iterable[Tensor]) -> tuple[int, float]:
    """How many coordinates survive, and the empirical entropy of the gaps between them, in bits."""
    flat = np.concatenate([g.reshape(-1).numpy() for g in tensors])
    gaps = np.diff(np.flatnonzero(flat), prepend=-1)
    shares = np.unique(gaps, return_counts=True)[1] / len(gaps)
    return len(gaps), float(-(shares * np.log2(shares)).sum())
