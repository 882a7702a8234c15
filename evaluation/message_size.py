"""How many bytes a client sends: real messages, encoded and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradguard import (
    Defense,
    GradTransform,
    GuardedOptimizer,
    LocalTraining,
    NonFiniteGradientError,
    WarmUp,
    wire,
)
from gradguard.evaluation.exchange import Message
from gradguard.evaluation.specs import TrainingSpec
from gradguard.evaluation.training import endless, loader
from gradguard.finite import NonFiniteExampleError

MESSAGES = 8
"""How many messages are encoded, those of a client's first rounds."""

METHOD = (
    f"Bytes are the mean length of the messages of a client's first {MESSAGES} rounds of training, "
    "encoded by gradguard.wire and compressed by zlib; of a WarmUp, as they are after the warm-up."
)
MASKED = (
    "What a client of a cohort sends is masked for secure aggregation: random bits, of which none "
    "can be left out."
)


def dense_bytes(model: nn.Module) -> int:
    """Bytes of one uncompressed message in float32: of the parameters that are trained.

    >>> dense_bytes(nn.Sequential(nn.Linear(10, 2).requires_grad_(False), nn.Linear(2, 1)))
    12
    """
    return 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def bytes_per_update(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    spec: TrainingSpec,
    seed: int,
    defense: Defense,
    training: LocalTraining | None = None,
) -> float | None:
    """The mean length of one client's encoded messages over its first rounds.

    The client trains by itself: its residuals fill up and its model moves, so that the message of
    the very first round is one of several.

    Guarantees:

    - every message is encoded with what the deployed guard knows of it;
    - a ``WarmUp`` is left out: its first messages are longer than almost all of those of a
      training run, so what is counted is the transform that it leads to;
    - the same seed gives the same bytes, whether ``zstandard`` is installed or not: sections are
      compressed by zlib, which every receiver can read. With zstd they are a few percent shorter
      as a rule, and sometimes longer;
    - ``model`` is copied and never changed.

    Of a cohort, one client's bytes. Under secure aggregation its message is masked: uniformly
    random words, whatever the transform dropped, which is what is then encoded and counted. A
    protocol's own keys and shares come on top.

    Args:
        data: Inputs and labels that the client trains on, in batches of ``spec.batch_size``.
        seed: Decides batches and noise.
        training: What the client does locally; without it messages are gradients.

    Returns:
        Bytes, or ``None`` where not even the first gradient is finite.
    """
    sizes = []
    defense = replace(defense, transform=_settled(defense.chain))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        for message, guard in _messages(model, data, spec, seed, defense, training):
            if defense.cohort > 1:
                sizes.append(len(wire.encode(_masked(message), portable=True)))
                break  # of random bits every message is as long
            sizes.append(len(wire.encode_release(message, guard, portable=True)))
    return sum(sizes) / len(sizes) if sizes else None


def _messages(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    spec: TrainingSpec,
    seed: int,
    defense: Defense,
    training: LocalTraining | None,
) -> Iterator[tuple[Message, GuardedOptimizer]]:
    """Messages of one client that trains by itself, and its guard as it is after each."""
    client: Any = defense.client(
        model, loss=spec.criterion, batch_size=spec.batch_size, seed=seed, training=training
    )
    rate, momentum = (spec.learning_rate, spec.momentum) if training is None else (1.0, 0.0)
    server = torch.optim.SGD(client.params, lr=rate, momentum=momentum)
    batches = endless(loader(*data, batch_size=spec.batch_size, seed=seed))
    for number in range(MESSAGES):
        inputs, labels = next(batches)
        try:
            grads = client.gradients(inputs, labels)
            message = client.release(grads, batch_size=len(labels), first=number == 0)
        except (NonFiniteGradientError, NonFiniteExampleError):
            return
        yield message, client.guard
        for name, p in zip(client.names, client.params, strict=True):
            p.grad = message[name]
        server.step()
        server.zero_grad()


def _settled(transform: GradTransform) -> GradTransform:
    """The transform with every ``WarmUp`` in it replaced by what it ends with."""
    if isinstance(transform, WarmUp):
        return transform.transform
    if not is_dataclass(transform):
        return transform
    later: dict[str, Any] = {}
    for field in fields(transform):
        value = getattr(transform, field.name)
        if isinstance(value, GradTransform):
            later[field.name] = _settled(value)
        elif isinstance(value, tuple):
            later[field.name] = tuple(
                _settled(part) if isinstance(part, GradTransform) else part for part in value
            )
    changed = {name: value for name, value in later.items() if value != getattr(transform, name)}
    return replace(transform, **changed) if changed else transform


def _masked(message: Message) -> Message:
    # Masks are drawn from all words of the message's width, so that a masked part tells nothing.
    return {
        name: torch.randint(256, (part.numel() * part.element_size(),), dtype=torch.uint8)
        for name, part in message.items()
    }
