"""What a defence does to a gradient, learned by rehearsing it: survival, scale and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradguard.attacks.composition import draw_counts
from gradguard.attacks.coordinates import Coordinates, unit_of
from gradguard.attacks.forward import attacker_copy
from gradguard.attacks.rounding import Floats, Ints
from gradguard.attacks.simulation import Pool
from gradguard.attacks.templates.class_gradients import raw_gradient
from gradguard.attacks.threat import Knowledge

# A coordinate's noise is pulled towards its tensor's as if by this many further batches.
SHRINKAGE = 8


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Batches of the attacker's own: raw gradient in, message out.

    Args:
        raw: Gradients of the attacker's copy of the model, float32 ``(batches, coordinates)``.
        sent: The client's messages for the same batches, same shape, times ``unit``.
        counts: Label counts, int64 ``(batches, classes)``.
        unit: In which messages are read: that of the first one which is not all zeros.
    """

    raw: np.ndarray
    sent: np.ndarray
    counts: Ints
    unit: float = 1.0


@dataclass(frozen=True, eq=False)
class Channel:
    """``sent = scale * raw + noise`` on the coordinates that survive.

    Args:
        masked: Whether a zero means "not sent" and is left out, or is a value like any other.
        scale: Per coordinate, the same within a tensor; shape ``(coordinates,)``.
        noise: Variance of ``sent - scale * raw``, per coordinate.
    """

    masked: bool
    scale: np.ndarray
    noise: np.ndarray


def draw_batches(knowledge: Knowledge, number: int) -> list[tuple[Tensor, Tensor, Ints]]:
    """Auxiliary batches of the composition the attacker expects, deterministic in its seed."""
    assert knowledge.auxiliary is not None  # for the type checker; the attack has checked
    assert knowledge.num_classes is not None
    assert knowledge.batch_size is not None
    pool = Pool.of(*knowledge.auxiliary, knowledge.num_classes)
    rng = np.random.default_rng([knowledge.seed % 2**64, 0xBB67AE85])
    batches = []
    for _ in range(number):
        counts = draw_counts(
            knowledge.composition,
            knowledge.num_classes,
            knowledge.batch_size,
            rng,
            pool.prior(),
        )
        counts = pool.feasible(counts, rng)
        batches.append((*pool.draw(counts, rng), counts.astype(np.int64)))
    return batches


def rehearse_pairs(
    knowledge: Knowledge,
    batches: Sequence[tuple[Tensor, Tensor, Ints]],
    coordinates: Coordinates,
) -> Rehearsal:
    """Each batch through the attacker's model and through the client; one message held at a time.

    Raises:
        ValueError: A message is not finite, or lacks a tensor of the model.
    """
    assert knowledge.model is not None  # for the type checker; the attack has checked
    assert knowledge.client is not None
    attacker = attacker_copy(knowledge.model)
    raw, sent = [], []
    unit: float | None = None
    for number, (inputs, labels, _) in enumerate(batches):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)  # a model's own randomness, such as dropout
            raw.append(coordinates.read(raw_gradient(attacker, inputs, labels)))
        # Outside of the fork: a client that draws from torch's generator would otherwise start
        # again where it was, and send its next messages with the noise of the rehearsal.
        message = knowledge.client(inputs, labels)
        if unit is None and any(bool(tensor.any()) for tensor in message.values()):
            unit = unit_of([message])
        sent.append(read_message(message, replace(coordinates, unit=unit or 1.0)))
    counts = np.stack([c for _, _, c in batches])
    return Rehearsal(np.stack(raw), np.stack(sent), counts, unit or 1.0)


def read_message(message: Mapping[str, Tensor], coordinates: Coordinates) -> np.ndarray:
    """The chosen coordinates of a message, float32; refused if incomplete or not finite."""
    missing = [name for name in coordinates.chosen if name not in message]
    if missing:
        raise ValueError(
            f"expected a message with every parameter of the model; {missing[:3]} are missing. "
            "Send zeros for what is withheld"
        )
    values = coordinates.read(message)
    if not np.isfinite(values).all():
        raise ValueError(
            "expected a finite message, got NaN or infinity; "
            "the client diverged, so there is no leakage to measure"
        )
    return values


def learn_channel(rehearsal: Rehearsal, tensors: Ints, *, masked: bool) -> Channel:
    """Fit scale per tensor and noise per coordinate.

    All that a template cannot predict is noise to it: additive noise, quantization, and what a
    sign or a clip does beyond a common scale. Comparing with the raw gradient, which a white-box
    attacker has, measures all of it; sending one batch many times would see only the random part.

    Args:
        rehearsal: At least one batch.
        tensors: Which tensor each coordinate belongs to, from 0; shape ``(coordinates,)``.
        masked: As in :class:`Channel`.
    """
    raw = rehearsal.raw.astype(np.float64)
    sent = rehearsal.sent.astype(np.float64)
    seen = (sent != 0) if masked else np.ones(sent.shape, dtype=bool)
    raw = np.where(seen, raw, 0.0)
    power = np.bincount(tensors, (raw**2).sum(axis=0))
    # A tensor that is never sent gets scale 0, which takes it out of the fit.
    match = np.bincount(tensors, (raw * sent).sum(axis=0))
    scale: Floats = (match / np.where(power > 0, power, 1.0))[tensors]
    squares = ((sent - scale * raw) ** 2).sum(axis=0)
    number = seen.sum(axis=0)
    typical = np.bincount(tensors, squares) / np.maximum(np.bincount(tensors, number), 1)
    noise = (squares + SHRINKAGE * typical[tensors]) / (number + SHRINKAGE)
    return Channel(masked, scale.astype(np.float32), noise.astype(np.float32))


def drops_coordinates(rehearsal: Rehearsal) -> bool:
    """Whether the defence sends zeros where the raw gradient is not zero."""
    return bool(((rehearsal.sent == 0) & (rehearsal.raw != 0)).any())
